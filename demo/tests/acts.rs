//! docs/demo.md against the acts that it walks through, without a Docker engine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::BTreeSet;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Whether this names a transaction: an epoch, a dot and 32 hex digits; or, in a script, a variable.
fn is_id(word: &str) -> bool {
    let named = word.split_once('.').is_some_and(|(epoch, rest)| {
        epoch.parse::<u32>().is_ok() && rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    named || word.starts_with('$')
}

/// The command without what differs between a script and what it prints: quotes, and which transaction it is about.
fn command(line: &str) -> String {
    let unquoted = line.replace(['"', '\''], "");
    let words = unquoted.split_whitespace().map(|word| if is_id(word) { "ID" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// What the acts run and print.
fn run_by_the_acts() -> BTreeSet<String> {
    let acts = std::fs::read_dir(root().join("demo/acts.d")).unwrap();
    let texts = acts.map(|act| std::fs::read_to_string(act.unwrap().path()).unwrap());
    let mut run = BTreeSet::new();
    for line in texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
        let line = line.trim();
        let expected = line.strip_prefix("expect ").and_then(|line| Some(line.split_once(' ')?.1));
        if let Some(shown) = line.strip_prefix("show ").or(expected) {
            let shown = shown.split(" | ").next().unwrap();
            run.insert(command(&shown.replacen("offline ", "lockstep ", 1)));
        }
    }
    run
}

#[test]
fn every_command_of_the_page_is_one_that_an_act_runs() {
    let run = run_by_the_acts();
    let page = std::fs::read_to_string(root().join("docs/demo.md")).unwrap();
    let typed = page.lines().filter_map(|line| line.trim_start().strip_prefix("$ "));
    let mut compared = 0;
    for line in typed {
        let line = line.strip_prefix("docker-compose exec coordinator ").unwrap_or(line);
        if line.starts_with("lockstep ") {
            assert!(run.contains(&command(line)), "no act runs {line:?}, but {run:#?}");
            compared += 1;
        }
    }
    assert!(compared >= 10, "only {compared} commands were found");
}
