//! Many rows in one parameter: a JSON array that SQLite takes apart with `json_each` and `unhex`.
//!
//! One statement per batch, whatever its size, is prepared once; a row for each statement would cost a trip to the
//! connection's thread for each row, and lists of placeholders a new statement for each length.

use serde::{Serialize, Serializer};

/// Bytes as JSON text.
pub(super) struct Hex<B>(B);

impl<B: AsRef<[u8]>> Hex<B> {
    /// These bytes.
    pub(super) fn of(bytes: B) -> Self {
        Self(bytes)
    }
}

impl<B: AsRef<[u8]>> Serialize for Hex<B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let bytes = self.0.as_ref();
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        serializer.serialize_str(&text)
    }
}

/// A JSON array of these rows.
pub(super) fn json<T: Serialize>(rows: impl Iterator<Item = T>) -> String {
    let rows: Vec<T> = rows.collect();
    serde_json::to_string(&rows).expect("texts and numbers are JSON")
}
