//! What the journal keeps of one prepared branch: everything that it takes to do the branch's work again (P26).
//!
//! Not statements but rows: each row that the branch changed, as it was before and as it is after. The first is
//! compared before anything is written again, the second is written.
//!
//! Numbers are little-endian; a text or byte string is its length (u32) and its bytes; a list is its length (u32) and
//! its elements. The journal's version number covers this form too.

use lockstep_proto::ResourceManagerId;

use super::value::{Value, Values};
use crate::resource::BranchId;

/// Bytes of an encoded log position.
pub(super) const POSITION_BYTES: usize = 28;

/// A prepared branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub branch: BranchId,
    /// Of the database that it belongs to: a journal is of no use beside another one.
    pub identity: ResourceManagerId,
    /// The transaction's deadline and the time of prepare, in milliseconds since 1970 by this host's clock.
    pub deadline_ms: i64,
    pub prepared_ms: i64,
    /// The newest log position known at prepare, as the evidence row keeps it.
    pub position: [u8; POSITION_BYTES],
    pub tables: Vec<TableChanges>,
    /// All of `sqlite_sequence`, where there is one.
    pub sequences: Option<Sequences>,
}

/// The changed rows of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableChanges {
    pub name: String,
    /// Its `CREATE TABLE` statement: rows are only written into a table that is still the same.
    pub definition: String,
    /// The stored columns, in the order of the images.
    pub columns: Vec<String>,
    pub changes: Vec<Change>,
}

/// One row: `None` where it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub key: Values,
    pub before: Option<Values>,
    pub after: Option<Values>,
}

/// The rows (rowid, name, seq) of `sqlite_sequence`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequences {
    pub before: Vec<Values>,
    pub after: Vec<Values>,
}

/// Bytes that are no entry of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal's entry cannot be read: {0}")]
pub(super) struct Malformed(&'static str);

impl Entry {
    /// The entry as bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, self.branch.to_string().as_bytes());
        out.extend_from_slice(self.identity.as_bytes());
        out.extend_from_slice(&self.deadline_ms.to_le_bytes());
        out.extend_from_slice(&self.prepared_ms.to_le_bytes());
        out.extend_from_slice(&self.position);
        put_list(&mut out, &self.tables, put_table);
        match &self.sequences {
            None => out.push(0),
            Some(sequences) => {
                out.push(1);
                put_list(&mut out, &sequences.before, put_values);
                put_list(&mut out, &sequences.after, put_values);
            }
        }
        out
    }

    /// The reverse of [`Entry::encode`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(bytes);
        let entry = Self {
            branch: input.text()?.parse().map_err(|_text| Malformed("a branch's name"))?,
            identity: ResourceManagerId::from_bytes(input.array()?),
            deadline_ms: i64::from_le_bytes(input.array()?),
            prepared_ms: i64::from_le_bytes(input.array()?),
            position: input.array()?,
            tables: input.list(Input::table)?,
            sequences: match input.byte()? {
                0 => None,
                1 => {
                    Some(Sequences { before: input.list(Input::values)?, after: input.list(Input::values)? })
                }
                _ => return Err(Malformed("a mark")),
            },
        };
        if input.0.is_empty() { Ok(entry) } else { Err(Malformed("its end")) }
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("an entry is smaller than 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_length(out, items.len());
    items.iter().for_each(|item| put(out, item));
}

fn put_table(out: &mut Vec<u8>, table: &TableChanges) {
    put_bytes(out, table.name.as_bytes());
    put_bytes(out, table.definition.as_bytes());
    put_list(out, &table.columns, |out, column| put_bytes(out, column.as_bytes()));
    put_list(out, &table.changes, |out, change| {
        put_values(out, &change.key);
        put_image(out, change.before.as_ref());
        put_image(out, change.after.as_ref());
    });
}

fn put_image(out: &mut Vec<u8>, image: Option<&Values>) {
    out.push(u8::from(image.is_some()));
    if let Some(values) = image {
        put_values(out, values);
    }
}

fn put_values(out: &mut Vec<u8>, values: &Values) {
    put_list(out, values, put_value);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0),
        Value::Integer(integer) => {
            out.push(1);
            out.extend_from_slice(&integer.to_le_bytes());
        }
        Value::Real(bits) => {
            out.push(2);
            out.extend_from_slice(&bits.to_le_bytes());
        }
        Value::Text(bytes) => {
            out.push(3);
            put_bytes(out, bytes);
        }
        Value::Blob(bytes) => {
            out.push(4);
            put_bytes(out, bytes);
        }
    }
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N)?.try_into().expect("as many bytes were taken"))
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_small| Malformed("a length"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.length()?;
        self.take(length)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_bytes| Malformed("a text"))
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let length = self.length()?;
        // Each element takes a byte at least: a wrong length does not reserve memory for what cannot be there.
        if length > self.0.len() {
            return Err(Malformed("a list's length"));
        }
        (0..length).map(|_| item(self)).collect()
    }

    fn table(&mut self) -> Result<TableChanges, Malformed> {
        Ok(TableChanges {
            name: self.text()?.to_owned(),
            definition: self.text()?.to_owned(),
            columns: self.list(|input| Ok(input.text()?.to_owned()))?,
            changes: self.list(|input| {
                Ok(Change { key: input.values()?, before: input.image()?, after: input.image()? })
            })?,
        })
    }

    fn image(&mut self) -> Result<Option<Values>, Malformed> {
        match self.byte()? {
            0 => Ok(None),
            1 => Ok(Some(self.values()?)),
            _ => Err(Malformed("a mark")),
        }
    }

    fn values(&mut self) -> Result<Values, Malformed> {
        self.list(Self::value)
    }

    fn value(&mut self) -> Result<Value, Malformed> {
        match self.byte()? {
            0 => Ok(Value::Null),
            1 => Ok(Value::Integer(i64::from_le_bytes(self.array()?))),
            2 => Ok(Value::Real(u64::from_le_bytes(self.array()?))),
            3 => Ok(Value::Text(self.bytes()?.to_vec())),
            4 => Ok(Value::Blob(self.bytes()?.to_vec())),
            _ => Err(Malformed("a storage class")),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{config, near};

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<u64>().prop_map(Value::Real),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(Value::Blob),
        ]
    }

    fn values() -> impl Strategy<Value = Values> {
        proptest::collection::vec(value(), 0..4)
    }

    fn table() -> impl Strategy<Value = TableChanges> {
        let change = (values(), proptest::option::of(values()), proptest::option::of(values()))
            .prop_map(|(key, before, after)| Change { key, before, after });
        let columns = proptest::collection::vec(any::<String>(), 0..3);
        (any::<String>(), any::<String>(), columns, proptest::collection::vec(change, 0..3)).prop_map(
            |(name, definition, columns, changes)| TableChanges { name, definition, columns, changes },
        )
    }

    prop_compose! {
        pub(in crate::resource::sqlite) fn entry()(
            identity: [u8; 16],
            deadline_ms: i64,
            prepared_ms: i64,
            position in proptest::array::uniform28(any::<u8>()),
            tables in proptest::collection::vec(table(), 0..3),
            sequences in proptest::option::of((
                proptest::collection::vec(values(), 0..3),
                proptest::collection::vec(values(), 0..3),
            )),
        ) -> Entry {
            Entry {
                branch: "7c1f09ae:12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f:bank-a.00000000000000ff".parse().unwrap(),
                identity: ResourceManagerId::from_bytes(identity),
                deadline_ms,
                prepared_ms,
                position,
                tables,
                sequences: sequences.map(|(before, after)| Sequences { before, after }),
            }
        }
    }

    proptest! {
        #![proptest_config(config())]

        /// Whatever a journal holds behind a checksum that fits.
        #[test]
        fn fuzz_journal_entries(bytes in near("journal-entries")) {
            if let Ok(entry) = Entry::decode(&bytes) { prop_assert_eq!(entry.encode(), bytes); }
        }
    }

    proptest! {
        #[test]
        fn every_entry_survives_its_bytes(entry in entry()) {
            prop_assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(entry) = Entry::decode(&bytes) { prop_assert_eq!(entry.encode(), bytes); }
        }

        #[test]
        fn no_changed_byte_makes_it_panic(entry in entry(), at: usize, byte: u8) {
            let mut bytes = entry.encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(entry) = Entry::decode(&bytes) { prop_assert_eq!(entry.encode(), bytes); }
        }

        #[test]
        fn a_shortened_entry_is_refused(entry in entry(), cut: usize) {
            let bytes = entry.encode();
            prop_assert!(Entry::decode(&bytes[..cut % bytes.len()]).is_err());
        }
    }
}
