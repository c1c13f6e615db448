//! Data on stdout, talk on stderr.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use super::exit::{Exit, Failure};
use crate::codes::Code;

/// Writes data to stdout, as it is. Where its reader has gone away, the command ends ([`Failure::reader_gone`]).
pub(super) fn print(data: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(error) => {
            let why = format!("standard output cannot be written: {error}");
            Err(Failure::coded(Code::OutputFailed, Exit::Failed, why)
                .remedy("what was asked for may have been done; is there room where the output goes?"))
        }
    }
}

/// Writes data to stdout, as JSON on one line.
pub(super) fn print_json(data: &impl Serialize) -> Result<(), Failure> {
    print(&(json(data) + "\n"))
}

/// The JSON that [`print_json`] writes.
pub(super) fn json(data: &impl Serialize) -> String {
    serde_json::to_string(data).expect("what is shown consists of texts, numbers, lists and maps of texts")
}

/// Writes a line for people to stderr. If that fails, there is nobody to tell.
pub(super) fn talk(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Text of others, safe for a terminal: control characters, and those that turn the direction of writing, are shown
/// as what they are, so that a transaction's name cannot rewrite what stands around it.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // `escape_debug` would escape these too, for a string literal.
            '\'' | '"' | '\\' => safe.push(c),
            c => safe.extend(c.escape_debug()),
        }
    }
    safe
}
