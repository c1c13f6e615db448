//! The machines are pure: what a simulator replays and a model checker explores must not hide a clock, a task or a random bit.

use std::path::{Path, PathBuf};

/// What would let the world in.
const WORLD: [&str; 11] = [
    "tokio",
    "sqlx",
    "tonic",
    "futures",
    "tracing",
    "Instant",
    "SystemTime",
    "clock::",
    "rand::",
    "std::env",
    "HashMap",
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.read_dir().unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn the_branch_and_the_session_know_nothing_of_the_world() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for path in ["branch", "session"].iter().flat_map(|machine| sources(&root.join(machine))) {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        checked += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let found = WORLD.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{} lets {:?} in: {line}", path.display(), found.unwrap());
        }
    }
    assert!(checked >= 8, "only {checked} files were found");
}
