//! Short names for tests: `a` and `a2` are branches of the resource manager `a`.

use lockstep_proto::{Bqual, Epoch, Gtrid, ResourceManagerName};

/// The branch called so: letters name the resource manager, digits behind them (1 if there are none) its branch.
pub(crate) fn bqual(name: &str) -> Bqual {
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[letters.len()..];
    let number = if digits.is_empty() { 1 } else { digits.parse().unwrap() };
    Bqual::new(&resource_manager(letters), number)
}

pub(crate) fn resource_manager(name: &str) -> ResourceManagerName {
    name.parse().unwrap()
}

/// The reverse of [`bqual`].
pub(crate) fn short(bqual: &Bqual) -> String {
    let name = bqual.resource_manager_str();
    let number = u64::from_str_radix(&bqual.as_str()[name.len() + 1..], 16).unwrap();
    if number == 1 { name.to_owned() } else { format!("{name}{number}") }
}

/// Replaces every bqual in a text by its short name.
pub(crate) fn shorten(text: &str) -> String {
    let shortened = text.split(' ').map(|word| {
        let end = word.trim_end_matches([':', ',']).len();
        word[..end].parse().map_or_else(|_| word.to_owned(), |bqual| short(&bqual) + &word[end..])
    });
    shortened.collect::<Vec<_>>().join(" ")
}

/// The transaction with this number.
pub(crate) fn gtrid(number: u8) -> Gtrid {
    Gtrid::new(Epoch::new(1).unwrap(), 1_000, [number; 10])
}
