//! Takes the code out of README.md that `tests/readme.rs` compiles and runs: what a reader copies is what is tested.

use std::path::Path;
use std::{env, fs};

/// What a test has to be able to set: where the README names the address at which a coordinator listens by default.
const ADDRESS: &str = "\"http://127.0.0.1:7420\"";

fn main() {
    let readme = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../README.md");
    println!("cargo::rerun-if-changed={}", readme.display());
    let text = fs::read_to_string(&readme).expect("there is a README.md at the top of the workspace");
    let join = block_behind(&text, "<!-- join -->");
    assert_eq!(join.matches(ADDRESS).count(), 1, "the lines to join name the coordinator's address once");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("join.rs");
    fs::write(out, join.replace(ADDRESS, "super::coordinator()")).expect("OUT_DIR can be written");
}

/// The Rust code in the first block behind a marker.
fn block_behind<'a>(text: &'a str, marker: &str) -> &'a str {
    let (_, behind) = text.split_once(marker).unwrap_or_else(|| panic!("README.md has no {marker}"));
    let (between, block) = behind.split_once("```rust\n").expect("a block of Rust stands behind the marker");
    assert!(between.trim().is_empty(), "the block stands right behind {marker}");
    block.split_once("```").expect("the block ends").0
}
