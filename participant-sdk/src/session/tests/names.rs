//! Short names for what the scripts talk about.

use lockstep_proto::{Bqual, Epoch, Gtrid, Xid};

use super::Result_;

const LETTERS: &[u8] = b"abcdefgh";

/// `a`, or `a@1` for one of another epoch than 2.
pub(super) fn gtrid_of(name: &str) -> Result_<Gtrid> {
    let (letter, epoch) = name.split_once('@').unwrap_or((name, "2"));
    let number =
        LETTERS.iter().position(|known| letter.as_bytes() == [*known]).ok_or("no such transaction")?;
    let epoch = Epoch::new(epoch.parse()?).ok_or("no such epoch")?;
    Ok(Gtrid::new(epoch, u64::try_from(number)?, [0; 10]))
}

pub(super) fn letter_of(gtrid: &Gtrid) -> String {
    let letter = char::from(LETTERS[usize::try_from(gtrid.unix_ms()).unwrap()]);
    if gtrid.epoch().get() == 2 { letter.to_string() } else { format!("{letter}@{}", gtrid.epoch()) }
}

/// `a/7`, the branch that handler 7 has opened, or `a/other`.
pub(super) fn xid_of(name: &str) -> Result_<Xid> {
    let (gtrid, branch) = name.split_once('/').ok_or("a branch is written as a/7")?;
    let (resource_manager, random) = if branch == "other" { ("other", 0) } else { ("bank", branch.parse()?) };
    Ok(Xid { gtrid: gtrid_of(gtrid)?, bqual: Bqual::new(&resource_manager.parse()?, random) })
}

pub(super) fn show_xid(xid: &Xid) -> String {
    let suffix = xid.bqual.as_str().rsplit('.').next().unwrap();
    let branch = match xid.bqual.resource_manager_str() {
        "bank" => u64::from_str_radix(suffix, 16).unwrap().to_string(),
        other => other.to_owned(),
    };
    format!("{}/{branch}", letter_of(&xid.gtrid))
}

/// A text for people, with the short names in it.
pub(super) fn shorten(text: &str) -> String {
    let names = LETTERS
        .iter()
        .flat_map(|letter| (1..=3).map(move |epoch| format!("{}@{epoch}", char::from(*letter))));
    names.fold(text.to_owned(), |text, name| {
        let gtrid = gtrid_of(&name).unwrap();
        text.replace(&gtrid.to_string(), &letter_of(&gtrid))
    })
}
