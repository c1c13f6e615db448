//! The environment's layer is tested in `tests/config.rs`, over real processes: a process cannot safely change its own.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use lockstep_proto::limits;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::fuzz;

/// What these flags say, read as `lockstep serve` would.
fn flags(flags: &[&str]) -> Overrides {
    let command = Overrides::augment_args(Command::new("test"));
    let args = std::iter::once(&"test").chain(flags);
    let matches = command.try_get_matches_from(args).expect("these are flags");
    Overrides::from_arg_matches(&matches).expect("they were given")
}

/// A directory with this configuration file in it, and flags that name it.
fn with_file(text: &str, more: &[&str]) -> (TempDir, PathBuf, Overrides) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lockstep.toml");
    fs::write(&path, text).unwrap();
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend_from_slice(more);
    let overrides = flags(&all);
    (dir, path, overrides)
}

/// What is wrong with a file, without its path.
fn wrong(text: &str) -> Vec<String> {
    let (_dir, path, overrides) = with_file(text, &[]);
    let error = load(&overrides).expect_err("this is wrong");
    let path = format!("{}:", path.display());
    let short = |problem: &Problem| problem.to_string().replacen(&path, "", 1);
    error.0.iter().map(short).collect()
}

fn wrong_flag(flag: &str) -> String {
    load(&flags(&[flag])).expect_err("this is wrong").to_string()
}

#[test]
fn the_defaults_are_what_they_are_documented_to_be() {
    let loaded = load(&Overrides::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.listen.to_string(), "127.0.0.1:7420");
    assert_eq!(loaded.config.retention, Duration::from_secs(3600));
    assert_eq!(loaded.config.default_timeout, limits::DEFAULT_TIMEOUT);
    assert_eq!(loaded.config.max_in_flight, 100_000);
    assert_eq!(loaded.config.log_filter.to_string(), "info");
    assert!(loaded.settings.iter().all(|s| s.given.origin == Origin::Default));
}

#[test]
fn every_key_has_its_flag_its_variable_and_a_default_within_its_limits() {
    for key in &KEYS {
        let variable = format!("LOCKSTEP_{}", key.name.to_uppercase().replace('-', "_"));
        assert_eq!(key.variable, variable);
        assert!(!key.help.ends_with('.'), "clap's help lines have no full stop: {}", key.name);
    }
    // `Config::default` panics where a default is out of its limits.
    let _ = Config::default();
    let names: std::collections::BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), KEYS.len());
}

#[test]
fn a_default_timeout_has_the_limits_of_a_timeout() {
    let (least, greatest) = keys::DEFAULT_TIMEOUT.limits.unwrap();
    assert_eq!(humantime::parse_duration(least), Ok(limits::MIN_TIMEOUT));
    assert_eq!(humantime::parse_duration(greatest), Ok(limits::MAX_TIMEOUT));
}

#[test]
fn a_flag_goes_over_the_file_and_the_file_over_the_default() {
    let text = "# Comment\nretention = \"2h\"\n\napply-wait = \"1s\"\n";
    let (_dir, path, overrides) = with_file(text, &["--retention", "3h"]);
    let loaded = load(&overrides).unwrap();
    let origin = |key| find(&loaded.settings, key).given.origin.clone();

    assert_eq!(loaded.config.retention, Duration::from_secs(3 * 3600));
    let flag = "--retention".to_owned();
    assert_eq!(origin(&keys::RETENTION), Origin::Flag { flag });
    assert_eq!(loaded.config.apply_wait, Duration::from_secs(1));
    assert_eq!(origin(&keys::APPLY_WAIT), Origin::File { path: path.clone(), line: 4 });
    assert_eq!(origin(&keys::DRAIN_TIMEOUT), Origin::Default);
    assert_eq!(loaded.file, Some(path));
}

#[test]
fn a_switch_is_on_by_its_flag_alone_and_a_flag_takes_back_what_the_file_says() {
    assert!(load(&flags(&["--insecure-listen"])).unwrap().config.insecure_listen);
    let (_dir, _path, overrides) = with_file("insecure-listen = true", &["--insecure-listen=false"]);
    assert!(!load(&overrides).unwrap().config.insecure_listen);
}

#[test]
fn a_wrong_key_is_named_with_its_line_and_the_nearest_right_one() {
    assert_eq!(
        wrong("listen = \"127.0.0.1:1\"\nretentoin = \"1h\"\n"),
        ["2: there is no key `retentoin`; did you mean `retention`?"]
    );
    assert_eq!(wrong("data_dir = \"x\""), ["1: there is no key `data_dir`; did you mean `data-dir`?"]);
    let all = wrong("[cluster]\nnodes = 3");
    assert!(
        all[0].starts_with("1: there is no key `cluster`; the keys, all at the top level, are listen, "),
        "{all:?}"
    );
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_file() {
    let problems = wrong("zzz = 1\nretention = 3600\naaa = 1\napply-wait = \"soon\"");
    let lines: Vec<_> = problems.iter().map(|problem| &problem[..2]).collect();
    // What is no key or has the wrong type is found in the file; what is no value, afterwards.
    assert_eq!(lines, ["1:", "2:", "3:"]);
    let problems = wrong("retention = \"x\"\napply-wait = \"y\"");
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_line() {
    let cases = [
        ("retention = 3600", "a number without a unit, which is no duration"),
        ("max-in-flight = \"many\"", "a text in quotes, which is no whole number"),
        ("max-in-flight = 1.5", "a number with a fraction, which is no whole number"),
        ("insecure-listen = \"yes\"", "a text in quotes, which is no switch"),
        ("log-format = true", "true or false, which is no log format"),
        ("listen = [\"127.0.0.1:1\"]", "a list, which is no IP address with a port"),
        ("data-dir = { path = \"x\" }", "a table, which is no path"),
        ("retention = 2026-01-01", "a date, which is no duration"),
    ];
    for (text, expected) in cases {
        let problems = wrong(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("1: ") && problems[0].contains(expected), "{problems:?}");
    }
}

#[test]
fn a_value_that_is_none_or_out_of_its_limits_is_named_with_its_origin() {
    assert_eq!(wrong("\nretention = \"0s\""), ["2: retention = `0s` is out of its limits: 1s to 365d"]);
    let cases = [
        ("--retention=366d", "--retention: retention = `366d` is out of its limits: 1s to 365d"),
        ("--retention=5", "is no duration: write a number with its unit"),
        ("--default-timeout=99ms", "is out of its limits: 100ms to 24h"),
        ("--max-in-flight=0", "is out of its limits: 1 to 10000000"),
        ("--max-in-flight=-1", "is no whole number"),
        ("--max-in-flight=99999999999999999999999", "is no whole number"),
        ("--listen=localhost:7420", "a host name will not do"),
        ("--listen=127.0.0.1", "is no IP address with a port"),
        ("--data-dir=", "data-dir = `` is no path"),
        ("--log-format=xml", "is no log format: write \"text\" or \"json\""),
        ("--insecure-listen=maybe", "is no switch: write true or false"),
        ("--log-filter=a=b=c", "is no log filter"),
        ("--log-filter=info,", "is no log filter"),
        ("--log-filter=inof", "has the word `inof`, which is no level; write `info`, or `inof=trace`"),
    ];
    for (flag, expected) in cases {
        let told = wrong_flag(flag);
        assert!(told.contains(expected), "{flag}: {told}");
    }
}

#[test]
fn the_least_and_the_greatest_value_are_allowed() {
    for key in &KEYS {
        let Some((least, greatest)) = key.limits else { continue };
        for value in [least, greatest] {
            load(&flags(&[&format!("--{}={value}", key.name)])).expect(key.name);
        }
    }
}

#[test]
fn log_filters_with_levels_and_modules_are_taken() {
    for filter in ["debug", "INFO", "warn,lockstep_coordinator=trace", "info, sqlx=off", "[commit]=debug"] {
        load(&flags(&["--log-filter", filter])).expect(filter);
    }
}

#[test]
fn a_number_in_the_file_may_have_any_form_that_toml_gives_it() {
    for number in ["5000", "5_000", "0x1388", "+5000"] {
        let (_dir, _path, overrides) = with_file(&format!("max-in-flight = {number}"), &[]);
        assert_eq!(load(&overrides).unwrap().config.max_in_flight, 5000, "{number}");
    }
    let problems = wrong("max-in-flight = -1");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("`-1` is no whole number"), "{problems:?}");
}

#[test]
fn nothing_but_loopback_is_listened_on_unless_someone_says_that_it_is_insecure() {
    for address in ["0.0.0.0:7420", "[::]:7420", "192.168.1.7:7420", "[::ffff:10.0.0.1]:7420"] {
        let listen = format!("--listen={address}");
        let told = wrong_flag(&listen);
        assert!(told.starts_with("--listen: "), "{told}");
        assert!(told.contains("is not a loopback address") && told.contains("--insecure-listen"), "{told}");
        load(&flags(&[&listen, "--insecure-listen"])).expect(address);
    }
    for address in ["127.0.0.1:0", "127.8.9.10:7420", "[::1]:7420", "[::ffff:127.0.0.1]:7420"] {
        load(&flags(&["--listen", address])).expect(address);
    }
}

#[test]
fn a_file_that_is_no_toml_is_named_with_the_line() {
    let problems = wrong("listen = \"127.0.0.1:1\"\nretention 1h\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("2: this is not TOML: "), "{problems:?}");
    assert!(!problems[0].contains('\n'), "{problems:?}");
    // A key twice is a fault of the same kind.
    let problems = wrong("retention = \"1h\"\nretention = \"2h\"\n");
    assert!(problems[0].starts_with("2: this is not TOML: "), "{problems:?}");
}

#[test]
fn a_file_that_was_named_must_be_there_and_be_readable() {
    let told = wrong_flag("--config=/no/such/file.toml");
    assert!(told.starts_with("/no/such/file.toml: the configuration file cannot be read: "), "{told}");
    let dir = TempDir::new().unwrap();
    let told = wrong_flag(&format!("--config={}", dir.path().display()));
    assert!(told.contains("cannot be read"), "{told}");
}

#[test]
fn a_file_without_end_is_given_up() {
    let told = wrong_flag("--config=/dev/zero");
    assert!(told.contains("it has more than 1048576 bytes"), "{told}");
}

#[test]
fn a_file_that_is_no_utf_8_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("latin-1.toml");
    fs::write(&path, b"data-dir = \"gr\xf6\xdfer\"").unwrap();
    let told = wrong_flag(&format!("--config={}", path.display()));
    assert!(told.contains("cannot be read") && told.contains("UTF-8"), "{told}");
}

#[test]
fn a_flag_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStringExt as _;
    let command = Overrides::augment_args(Command::new("test"));
    let flag = OsString::from_vec(b"--data-dir=\xff".to_vec());
    let matches = command.try_get_matches_from([OsString::from("test"), flag]).unwrap();
    let error = load(&Overrides::from_arg_matches(&matches).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "--data-dir: data-dir is no UTF-8 text");
}

#[test]
fn what_a_person_wrote_cannot_write_on_the_terminal_that_it_is_told_on() {
    let told = wrong_flag("--retention=\u{1b}[2Jgone\u{202e}");
    assert!(told.contains("`\\u{1b}[2Jgone\\u{202e}`"), "{told}");
    assert!(!told.contains('\u{1b}'));
    let told = wrong_flag(&format!("--retention={}", "x".repeat(1000)));
    assert!(told.len() < 300, "{told}");
}

#[test]
fn several_problems_stand_one_on_a_line() {
    let problem = |place: &str| Problem { place: place.to_owned(), what: "wrong".to_owned() };
    assert_eq!(ConfigError(vec![problem("a")]).to_string(), "a: wrong");
    assert_eq!(
        ConfigError(vec![problem("a"), problem("b")]).to_string(),
        "the configuration has 2 problems\n  a: wrong\n  b: wrong"
    );
}

#[test]
fn a_variable_that_means_nothing_is_warned_of_with_the_nearest_that_does() {
    let environment = [
        "LOCKSTEP_RETENTOIN",
        "LOCKSTEP_DATADIR",
        "LOCKSTEP_SERVRE",
        "LOCKSTEP_QQQQ",
        "LOCKSTEP_RETENTION",
        "LOCKSTEP_CONFIG",
        "LOCKSTEP_SERVER",
        "LOCKSTEP_TEST_SEED",
        "LOCKSTEPS",
        "PATH",
    ];
    let environment = environment.map(|name| (OsString::from(name), OsString::new()));
    assert_eq!(
        environment::warnings(environment),
        [
            "the variable LOCKSTEP_DATADIR means nothing; did you mean LOCKSTEP_DATA_DIR?",
            "the variable LOCKSTEP_QQQQ means nothing; docs/configuration.md lists those that do",
            "the variable LOCKSTEP_RETENTOIN means nothing; did you mean LOCKSTEP_RETENTION?",
            "the variable LOCKSTEP_SERVRE means nothing; did you mean LOCKSTEP_SERVER?",
        ]
    );
}

proptest! {
    #![proptest_config(fuzz::config())]

    /// Whatever a file holds: it is refused, each fault with its place, or every value is within its limits.
    #[test]
    fn fuzz_configurations(bytes in fuzz::near("configurations")) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("lockstep.toml");
        fs::write(&path, &bytes).unwrap();
        match load(&flags(&["--config", path.to_str().unwrap()])) {
            Ok(loaded) => prop_assert!(loaded.config.report_interval <= Duration::from_secs(3600)),
            Err(error) => prop_assert!(error.to_string().contains("lockstep.toml"), "{error}"),
        }
    }
}

/// A file that is read from `text`, for the documentation's test.
pub(crate) fn read_file(text: &str, name: &Path) -> Result<Loaded, ConfigError> {
    fs::write(name, text).unwrap();
    load(&flags(&["--config", name.to_str().unwrap()]))
}
