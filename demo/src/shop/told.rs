//! What customers were told of their orders. Written down, because the books have to agree with it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a customer was told, and with what in addition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "told", content = "detail")]
pub(super) enum Told {
    Committed,
    /// A service said no.
    Declined(String),
    /// Something broke.
    RolledBack(String),
    /// It may have committed or not: the transaction to ask for.
    Unknown(String),
    /// The services disagree, which is on record.
    Heuristic(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    order: String,
    #[serde(flatten)]
    told: Told,
}

/// A file with one line for each order. Several processes may write to it, each line in one write.
pub(super) struct Notes(Option<File>);

impl Notes {
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        path.map(open).transpose().map(Self)
    }

    pub(super) fn write(&self, order: &str, told: &Told) -> io::Result<()> {
        let Some(mut file) = self.0.as_ref() else { return Ok(()) };
        let mut line = serde_json::to_vec(&Line { order: order.to_owned(), told: told.clone() })?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

/// The last that was told of each order.
pub(super) fn read(path: &Path) -> io::Result<BTreeMap<String, Told>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    // What is being written has no end of its line yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |line: &str| serde_json::from_str::<Line>(line).map(|line| (line.order, line.told));
    Ok(whole.lines().map(line).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_half_a_line_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let notes = Notes::open(Some(file.path())).unwrap();
        notes.write("a", &Told::Unknown("1.2".to_owned())).unwrap();
        notes.write("b", &Told::Declined("no".to_owned())).unwrap();
        notes.write("a", &Told::Committed).unwrap();
        notes.0.as_ref().unwrap().write_all(b"{\"order\":\"c\",\"to").unwrap();
        let read = read(file.path()).unwrap();
        let expected = [("a", Told::Committed), ("b", Told::Declined("no".to_owned()))];
        assert_eq!(read, expected.map(|(order, told)| (order.to_owned(), told)).into());
        assert_eq!(super::read(Path::new("/no/such/file")).unwrap(), BTreeMap::new());
    }
}
