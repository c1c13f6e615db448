//! The TOML file: flat, every key one of [`KEYS`], every value and every fault with its line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::nearest::nearest;
use super::value::TomlType;
use super::{Given, KEYS, Key, Origin, Problem, unreadable};

/// Bytes of a file: a hundred times what all keys need. A path mistaken for another must not fill the memory.
const MAX_BYTES: u64 = 1024 * 1024;

/// The file's values by the names of their keys.
pub(super) type Values = BTreeMap<&'static str, Given>;

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Values, Vec<Problem>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > MAX_BYTES => {
            Err(vec![unreadable(path, format!("it has more than {MAX_BYTES} bytes"))])
        }
        Ok(_) => parse(path, &text),
        Err(error) => Err(vec![unreadable(path, error)]),
    }
}

/// The values in a file's text.
fn parse(path: &Path, text: &str) -> Result<Values, Vec<Problem>> {
    let origin = |start| Origin::File { path: path.to_owned(), line: line_of(text, start) };
    let table = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        vec![Problem {
            place: origin(start).to_string(),
            what: format!("this is not TOML: {}", error.message().replace('\n', ", ")),
        }]
    })?;

    let mut values = Values::new();
    let mut wrong = Vec::new();
    for (name, value) in table.get_ref() {
        let origin = origin(name.span().start);
        match known(name.get_ref()).and_then(|key| Ok((key, text_of(key, value)?))) {
            Ok((key, text)) => {
                values.insert(key.name, Given { text, origin });
            }
            Err(what) => wrong.push((name.span().start, Problem { place: origin.to_string(), what })),
        }
    }
    if wrong.is_empty() {
        return Ok(values);
    }
    // The table is ordered by name; a person reads a file from its top.
    wrong.sort_by_key(|(start, _)| *start);
    Err(wrong.into_iter().map(|(_, problem)| problem).collect())
}

/// The key of this name, or the nearest one.
fn known(name: &str) -> Result<&'static Key, String> {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return Ok(key);
    }
    let names = KEYS.iter().map(|key| key.name);
    let shown = super::cut_for_people(name);
    Err(match nearest(name, names.clone()) {
        Some(meant) => format!("there is no key `{shown}`; did you mean `{meant}`?"),
        None => format!(
            "there is no key `{shown}`; the keys, all at the top level, are {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    })
}

/// The value as a text, if it has the type that the key's values have in a file.
fn text_of(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    let found = match (key.form.toml(), value.get_ref()) {
        (TomlType::String, DeValue::String(text)) => return Ok(text.clone().into_owned()),
        (TomlType::Integer, DeValue::Integer(number)) => return Ok(decimal(number)),
        (TomlType::Boolean, DeValue::Boolean(truth)) => return Ok(truth.to_string()),
        (_, DeValue::String(_)) => "a text in quotes",
        (_, DeValue::Integer(_)) => "a number without a unit",
        (_, DeValue::Float(_)) => "a number with a fraction",
        (_, DeValue::Boolean(_)) => "true or false",
        (_, DeValue::Datetime(_)) => "a date",
        (_, DeValue::Array(_)) => "a list",
        (_, DeValue::Table(_)) => "a table",
    };
    Err(format!("{} is {found}, which is no {}", key.name, key.form.advice()))
}

/// A TOML integer in the one form that a count has elsewhere; too large a one as it stands, to be refused as such.
fn decimal(number: &DeInteger<'_>) -> String {
    match u128::from_str_radix(number.as_str(), number.radix()) {
        Ok(value) => value.to_string(),
        Err(_negative_or_huge) => number.to_string(),
    }
}

/// The line that a byte is in, from 1.
fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes()[..byte].iter().filter(|b| **b == b'\n').count()
}
