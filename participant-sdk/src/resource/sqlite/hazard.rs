//! What is left for a person of a branch that was to commit and could not be written again.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use super::entry::{Change, Entry};
use super::files::{DatabaseFile, sync_directory_of};
use super::value::Value;

/// Writes the branch's changes and the reason beside the database, durably, as text. Writing it again replaces it.
pub(super) fn set_aside(file: &DatabaseFile, entry: &Entry, reason: &str) -> io::Result<PathBuf> {
    // A branch's name has colons, which not every file system takes.
    let name = entry.branch.to_string().replace(':', "_");
    let path = file.beside(&format!("-lockstep-hazard-{name}.txt"));
    let temporary = path.with_extension("tmp");
    let mut written = std::fs::File::create(&temporary)?;
    io::Write::write_all(&mut written, report(entry, reason).as_bytes())?;
    written.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    sync_directory_of(&path)?;
    Ok(path)
}

fn report(entry: &Entry, reason: &str) -> String {
    let mut text = format!(
        "Branch {} was prepared, its coordinator decided to commit it, and none of this is in the database:\n{reason}.\n\n\
         Prepared {} ms after 1970. Its changes, each row as the branch found it and as it left it:\n",
        entry.branch, entry.prepared_ms
    );
    for table in &entry.tables {
        let columns = table.columns.join(", ");
        write!(text, "\n{} ({columns})\n", table.name).expect("a string takes everything");
        for change in &table.changes {
            text.push_str(&line(change));
        }
    }
    text
}

fn line(change: &Change) -> String {
    let image = |image: &Option<Vec<Value>>| match image {
        Some(values) => format!("({})", list(values)),
        None => "none".to_owned(),
    };
    format!("  key {}: {} -> {}\n", list(&change.key), image(&change.before), image(&change.after))
}

fn list(values: &[Value]) -> String {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
