//! Runs the golden scripts of a folder. `UPDATE_GOLDENFILES=1` writes their output anew, to be read before it is kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use goldenscript::Runner;

/// Runs each script with a runner of its own, and names all that fail.
///
/// # Panics
/// If one fails, or the folder is empty: then nothing was tested.
pub(crate) fn run_all<R: Runner>(folder: &str, runner: impl Fn() -> R) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut scripts: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    let mut failed = Vec::new();
    for script in scripts {
        let run = AssertUnwindSafe(|| goldenscript::run(&mut runner(), &script));
        match catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(format!("{}: {error}", script.display())),
            Err(_difference) => failed.push(script.display().to_string()),
        }
    }
    assert!(failed.is_empty(), "scripts that failed:\n{}", failed.join("\n"));
}
