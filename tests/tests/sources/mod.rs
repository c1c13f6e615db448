//! The sources of what users get, for tests that hold a list against them.
//!
//! A module of each test that needs it, and not of the harness: the program of one of them must not have in it what the harness lists.

use std::fs;
use std::path::{Path, PathBuf};

/// Of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The Rust files of a crate of the workspace, each with its text.
pub(crate) fn sources(of: &str) -> Vec<(PathBuf, String)> {
    let files = files(&root().join(of).join("src"));
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
