//! Takes the code out of README.md and docs/services.md that `tests/readme.rs` and `tests/services.rs` compile and run: what a reader
//! copies is what is tested.

use std::path::Path;
use std::{env, fs};

/// What a test has to be able to set: where the README names the address at which a coordinator listens by default.
const ADDRESS: &str = "\"http://127.0.0.1:7420\"";

fn main() {
    let join = block_behind(&page("README.md"), "<!-- join -->");
    assert_eq!(join.matches(ADDRESS).count(), 1, "the lines to join name the coordinator's address once");
    write("join.rs", &join.replace(ADDRESS, "super::coordinator()"));
    write("explain.rs", &block_behind(&page("docs/services.md"), "<!-- explain -->"));
}

/// A page of the workspace.
fn page(name: &str) -> String {
    let path = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..").join(name);
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(name: &str, code: &str) {
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join(name);
    fs::write(out, code).expect("OUT_DIR can be written");
}

/// The Rust code in the first block behind a marker.
fn block_behind(text: &str, marker: &str) -> String {
    let (_, behind) = text.split_once(marker).unwrap_or_else(|| panic!("the page has no {marker}"));
    let (between, block) = behind.split_once("```rust\n").expect("a block of Rust stands behind the marker");
    assert!(between.trim().is_empty(), "the block stands right behind {marker}");
    block.split_once("```").expect("the block ends").0.to_owned()
}
