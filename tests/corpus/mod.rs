//! What fuzzing begins with: for each parser of bytes that nobody vouches for a folder of inputs, some right and some nearly so, and edits
//! that make others of them.
//!
//! The targets are the tests whose names begin with `fuzz`, in the crates that have the parsers. Every test run tries some
//! hundreds of inputs of each, the same ones; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` try more, and others. An input that breaks
//! something is printed: it becomes a file of its folder.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed};

/// Edits of one input.
const MOST_EDITS: usize = 6;
/// Bytes that an edit adds or removes.
const MOST_BYTES: usize = 16;

/// The same inputs each time, unless the environment wants others.
pub(crate) fn config() -> Config {
    let of_environment = Config { failure_persistence: None, ..Config::default() };
    match of_environment.rng_seed {
        RngSeed::Random => Config { rng_seed: RngSeed::Fixed(1), ..of_environment },
        RngSeed::Fixed(_) => of_environment,
    }
}

/// What is done to an input.
#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
    /// The rest is that of another input.
    Splice(Index, Index),
}

fn edits() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), select(vec![0, 1, 0x7f, 0x80, 0xff, b'0', b'-', b'.', b':', b'a', b'"', b'\n']))
            .prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), 1..MOST_BYTES).prop_map(|(at, length)| Edit::Remove(at, length)),
        (at(), vec(any::<u8>(), 1..MOST_BYTES)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1..MOST_BYTES).prop_map(|(at, length)| Edit::Repeat(at, length)),
        (at(), at()).prop_map(|(at, from)| Edit::Splice(at, from)),
    ]
}

fn apply(edit: Edit, bytes: &mut Vec<u8>, other: &[u8]) {
    let within = |at: Index, length: usize, bytes: &[u8]| {
        let from = at.index(bytes.len() + 1);
        from..(from + length).min(bytes.len())
    };
    match edit {
        Edit::Flip(at, bit) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Edit::Set(at, byte) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        Edit::Flip(..) | Edit::Set(..) => {}
        Edit::Remove(at, length) => drop(bytes.drain(within(at, length, bytes))),
        Edit::Insert(at, more) => {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, more);
        }
        Edit::Repeat(at, length) => {
            let range = within(at, length, bytes);
            let again = bytes[range.clone()].to_vec();
            bytes.splice(range.end..range.end, again);
        }
        Edit::Splice(at, from) => {
            bytes.truncate(at.index(bytes.len() + 1));
            bytes.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
    }
}

/// An input of this target's folder, or what some edits make of it.
pub(crate) fn near(target: &str) -> impl Strategy<Value = Vec<u8>> {
    let inputs = inputs(target);
    let edited = (select(inputs.clone()), select(inputs), vec(edits(), 0..MOST_EDITS));
    edited.prop_map(|(mut bytes, other, edits)| {
        edits.into_iter().for_each(|edit| apply(edit, &mut bytes, &other));
        bytes
    })
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder can be read").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| fs::read(file).expect("a file can be read")).collect()
}
