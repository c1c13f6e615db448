//! The configuration of the real program: four layers, and what is said when one of them is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Ran, lockstep, run};
use lockstep_coordinator::config::{Form, KEYS, Key};
use serde_json::Value;
use tempfile::TempDir;

/// Three values of a key that are not its default, the same in the file, in a variable and as a flag.
fn samples(key: &Key) -> [&'static str; 3] {
    match key.form {
        Form::Address => ["127.0.0.1:1001", "127.0.0.1:1002", "[::1]:1003"],
        Form::Path => ["in-file", "in-variable", "in-flag"],
        Form::Duration => ["11s", "12s", "13s"],
        Form::Count => ["11", "12", "13"],
        // The default is false: a layer that does not win must say something else than the one below it.
        Form::Switch => ["true", "false", "true"],
        Form::LogPlace => ["postgres://a/log", "postgres://b/log", "postgres://c/log"],
        Form::Settings => ["fsync", "full_page_writes", "fsync,synchronous_commit"],
        Form::NodeName => ["node-a", "node-b", "node-c"],
        Form::Advertised => ["http://a:1", "none", "http://c:3"],
        Form::LogFormat => ["json", "text", "json"],
        Form::LogFilter => ["warn", "debug", "error"],
    }
}

fn toml_value(key: &Key, text: &str) -> String {
    match key.form {
        Form::Count | Form::Switch => text.to_owned(),
        Form::Address
        | Form::Path
        | Form::Duration
        | Form::LogPlace
        | Form::Settings
        | Form::NodeName
        | Form::Advertised
        | Form::LogFormat
        | Form::LogFilter => format!("\"{text}\""),
    }
}

fn write_file(dir: &Path) {
    let line = |key: &Key| format!("{} = {}\n", key.name, toml_value(key, samples(key)[0]));
    let text: String = KEYS.iter().map(line).collect();
    fs::write(dir.join("lockstep.toml"), text).unwrap();
}

/// What `config show --json` says: each key's value and origin.
async fn shown(dir: &Path, variables: bool, flags: bool) -> BTreeMap<String, (String, Value)> {
    let mut command = lockstep(dir, &["config", "show", "--json"]);
    for key in KEYS.iter().filter(|_| variables) {
        command.env(key.variable, samples(key)[1]);
    }
    for key in KEYS.iter().filter(|_| flags) {
        command.arg(format!("--{}={}", key.name, samples(key)[2]));
    }
    let ran = run(command).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    let settings = json["settings"].as_array().unwrap();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    settings
        .iter()
        .map(|setting| (text(&setting["key"]), (text(&setting["value"]), setting["origin"].clone())))
        .collect()
}

#[tokio::test]
async fn each_key_comes_from_flag_over_variable_over_file_over_default() {
    let dir = TempDir::new().unwrap();
    let default = shown(dir.path(), false, false).await;
    write_file(dir.path());
    let file = shown(dir.path(), false, false).await;
    let variable = shown(dir.path(), true, false).await;
    let flag = shown(dir.path(), true, true).await;
    assert_eq!(flag.len(), KEYS.len());

    for (index, key) in KEYS.iter().enumerate() {
        let [in_file, in_variable, in_flag] = samples(key).map(str::to_owned);
        let origin = |layer| serde_json::json!({ "layer": layer });
        assert_eq!(default[key.name], (key.default.to_owned(), origin("default")));

        let mut expected = origin("file");
        expected["path"] = "./lockstep.toml".into();
        expected["line"] = (index + 1).into();
        assert_eq!(file[key.name], (in_file, expected));

        let mut expected = origin("variable");
        expected["variable"] = key.variable.into();
        assert_eq!(variable[key.name], (in_variable, expected));

        let mut expected = origin("flag");
        expected["flag"] = key.flag().into();
        assert_eq!(flag[key.name], (in_flag, expected));
    }
}

#[tokio::test]
async fn a_file_is_found_by_flag_by_variable_and_where_it_is() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, retention: &str| {
        fs::write(dir.path().join(name), format!("retention = \"{retention}\"")).unwrap();
    };
    file("lockstep.toml", "1m");
    file("by-variable.toml", "2m");
    file("by-flag.toml", "3m");
    let retention = async |command| {
        let ran: Ran = run(command).await;
        let line = ran.stdout.lines().find(|line| line.starts_with("retention")).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };

    let mut command = lockstep(dir.path(), &["config", "show", "--origin"]);
    assert_eq!(retention(command).await, "retention = \"1m\" # ./lockstep.toml:1");
    command = lockstep(dir.path(), &["config", "show", "--origin"]);
    command.env("LOCKSTEP_CONFIG", "by-variable.toml");
    assert_eq!(retention(command).await, "retention = \"2m\" # by-variable.toml:1");
    command = lockstep(dir.path(), &["config", "show", "--origin", "--config", "by-flag.toml"]);
    command.env("LOCKSTEP_CONFIG", "by-variable.toml");
    assert_eq!(retention(command).await, "retention = \"3m\" # by-flag.toml:1");
}

#[tokio::test]
async fn what_is_shown_is_a_file_with_the_same_effect() {
    let dir = TempDir::new().unwrap();
    let mut command = lockstep(dir.path(), &["config", "show", "--origin"]);
    for key in &KEYS {
        command.env(key.variable, samples(key)[0]);
    }
    // What would break a careless quotation.
    command.env("LOCKSTEP_DATA_DIR", "a \"quoted\" \\ path # no comment");
    let first = run(command).await;
    assert!(first.stdout.lines().all(|line| line.len() <= 80), "{}", first.stdout);
    fs::write(dir.path().join("lockstep.toml"), &first.stdout).unwrap();
    let again = run(lockstep(dir.path(), &["config", "show"])).await;
    let values = |text: &str| text.parse::<toml::Table>().unwrap();
    assert_eq!(values(&again.stdout), values(&first.stdout));
    assert_eq!(values(&again.stdout)["data-dir"].as_str(), Some("a \"quoted\" \\ path # no comment"));
}

#[tokio::test]
async fn a_wrong_configuration_ends_serve_and_show_alike_with_all_that_is_wrong() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("lockstep.toml"), "\nretentoin = \"1h\"\n").unwrap();
    for args in [&["serve"][..], &["config", "show"]] {
        let mut command = lockstep(dir.path(), args);
        command.env("LOCKSTEP_APPLY_WAIT", "5").arg("--log-format=xml");
        let ran = run(command).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
        assert_eq!(
            ran.stderr,
            "error[LS0202]: the configuration has 3 problems\n  \
             ./lockstep.toml:2: there is no key `retentoin`; did you mean `retention`?\n  \
             LOCKSTEP_APPLY_WAIT: apply-wait = `5` is no duration: write a number with its unit, such as \"500ms\", \
             \"30s\" or \"1h\"\n  \
             --log-format: log-format = `xml` is no log format: write \"text\" or \"json\"\n  \
             `lockstep serve --help` and docs/configuration.md list every key\n  \
             docs/errors/LS0202.md\n"
        );
    }
}

#[tokio::test]
async fn a_wrong_value_of_a_variable_is_named_with_the_variable() {
    let dir = TempDir::new().unwrap();
    for (variable, value, expected) in [
        (
            "LOCKSTEP_MAX_IN_FLIGHT",
            "lots",
            "LOCKSTEP_MAX_IN_FLIGHT: max-in-flight = `lots` is no whole number",
        ),
        ("LOCKSTEP_RETENTION", "", "LOCKSTEP_RETENTION: retention = `` is no duration"),
        ("LOCKSTEP_LISTEN", "0.0.0.0:7420", "LOCKSTEP_LISTEN: 0.0.0.0:7420 is not a loopback address"),
        ("LOCKSTEP_CONFIG", "none.toml", "none.toml: the configuration file cannot be read"),
    ] {
        let mut command = lockstep(dir.path(), &["config", "show"]);
        command.env(variable, value);
        let ran = run(command).await;
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.starts_with(&format!("error[LS0202]: {expected}")), "{ran:?}");
    }
}

#[tokio::test]
async fn a_variable_that_means_nothing_is_a_warning_and_no_more() {
    let dir = TempDir::new().unwrap();
    let mut command = lockstep(dir.path(), &["config", "show"]);
    command.env("LOCKSTEP_RETENTON", "5m").env("LOCKSTEP_TEST_ANYTHING", "1");
    let ran = run(command).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.stderr,
        "warning: the variable LOCKSTEP_RETENTON means nothing; did you mean LOCKSTEP_RETENTION?\n"
    );
    assert!(ran.stdout.contains("retention = \"1h\""), "{ran:?}");
}

#[tokio::test]
async fn a_wrong_flag_is_wrong_usage_with_the_nearest_right_one() {
    let dir = TempDir::new().unwrap();
    let ran = run(lockstep(dir.path(), &["serve", "--retentoin", "1h"])).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
    assert!(ran.stderr.contains("'--retention'"), "{ran:?}");
}
