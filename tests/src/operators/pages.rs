//! The commands that an error's page in docs/errors names, to be run in the situation that the page is about.

use std::path::Path;

/// What stands for the names that a page uses.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// A transaction's id, for `ID`.
    pub id: &'a str,
    /// A resource manager, for `NAME`.
    pub name: &'a str,
    /// A directory that does not exist, for `DIRECTORY`.
    pub directory: &'a str,
    /// A log in PostgreSQL, for `URL`.
    pub log: &'a str,
    /// The coordinator.
    pub server: &'a str,
    /// Its data directory.
    pub data_dir: &'a str,
}

impl Default for Names<'_> {
    fn default() -> Self {
        Self {
            id: "1.0192f0c19f447a018e4f5a6b7c8d9e0f",
            name: "orders-db",
            directory: "/proc/nowhere/backup",
            log: "postgres://nobody@127.0.0.1:9/none",
            server: "http://127.0.0.1:9",
            data_dir: "/proc/nowhere/data",
        }
    }
}

/// The arguments of each command on the page of this code. What would change something is tried as a dry run: its page is read by somebody
/// who looks first. `lockstep serve` and `lockstep doctor` are named as programs, and are run by what made the situation.
///
/// # Panics
/// If the page is not there.
#[must_use]
pub fn commands(code: &str, names: &Names<'_>) -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/errors/{code}.md"));
    let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let quoted = page.split('`').filter(|quoted| quoted.starts_with("lockstep "));
    quoted.filter_map(|quoted| arguments(quoted, names)).collect()
}

fn arguments(quoted: &str, names: &Names<'_>) -> Option<Vec<String>> {
    let words = quoted.split_whitespace().skip(1).map(|word| match word {
        "ID" => names.id,
        "NAME" => names.name,
        "DIRECTORY" => names.directory,
        "URL" => names.log,
        "TEXT" => "as its page says",
        other => other,
    });
    let mut words: Vec<String> = words.map(str::to_owned).collect();
    let first = words.first().map(String::as_str);
    match (first, words.get(1).map(String::as_str)) {
        (Some("serve" | "doctor"), None) => return None,
        (Some("restore" | "drain"), _)
        | (Some("tx"), Some("retry" | "pause" | "resume" | "rollback" | "commit" | "abandon" | "ack"))
        | (Some("orphans"), Some("resolve"))
        | (Some("participants"), Some("rebind" | "retire")) => add(&mut words, "--dry-run"),
        _looks_only => {}
    }
    if words.iter().any(|word| word == "resolve")
        && !words.iter().any(|word| word.starts_with("--commit") || word.starts_with("--rollback"))
    {
        add(&mut words, "--rollback");
    }
    if matches!(words[0].as_str(), "restore" | "backup" | "migrate" | "cluster") {
        words.push(format!("--data-dir={}", names.data_dir));
    }
    Some(words)
}

fn add(words: &mut Vec<String>, flag: &str) {
    if !words.iter().any(|word| word == flag) {
        words.push(flag.to_owned());
    }
}
