//! What a person has typed of a gtrid: its beginning, or that of its hex digits.

use lockstep_proto::Epoch;

/// Hex digits of a gtrid's UUID.
const UUID_DIGITS: usize = 32;

/// What a prefix asks for. Nothing else is the beginning of a gtrid.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Prefix<'a> {
    /// `12.0192`: the epoch, and the beginning of the digits, perhaps none.
    Epoch(u32, &'a str),
    /// `0192` or `12`: the beginning of the digits, or of the epoch.
    Either(&'a str),
}

/// What this text asks for; `None` if it begins no gtrid.
pub(super) fn parse(prefix: &str) -> Option<Prefix<'_>> {
    let is_hex = |text: &str| {
        text.len() <= UUID_DIGITS && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match prefix.split_once('.') {
        Some((epoch, digits)) => {
            let known = epoch.parse::<Epoch>().ok()?;
            is_hex(digits).then_some(Prefix::Epoch(known.get(), digits))
        }
        None => is_hex(prefix).then_some(Prefix::Either(prefix)),
    }
}

/// The lowest and the highest UUID that begin with these digits.
pub(super) fn range(digits: &str) -> (String, String) {
    (format!("{digits:0<UUID_DIGITS$}"), format!("{digits:f<UUID_DIGITS$}"))
}
