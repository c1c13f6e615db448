//! Variables that look like ours and are not: whoever set one believes that it holds.

use std::ffi::OsString;

use super::KEYS;
use super::keys::VARIABLE_PREFIX;
use super::nearest::nearest;

/// Names the configuration file.
pub const CONFIG_VARIABLE: &str = "LOCKSTEP_CONFIG";
/// Names the coordinator that the operator's commands ask.
pub const SERVER_VARIABLE: &str = "LOCKSTEP_SERVER";
/// Variables that tests set for themselves begin so. The coordinator reads none of them and warns of none.
pub const TEST_PREFIX: &str = "LOCKSTEP_TEST_";

/// Every variable that means something.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.variable).chain([CONFIG_VARIABLE, SERVER_VARIABLE])
}

/// One sentence for each variable that begins like ours and means nothing, in the order of their names.
///
/// A warning and not an error: the environment is shared, and what another version reads must not stop this one.
#[must_use]
pub fn warnings(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let mut wrong: Vec<String> = environment
        .into_iter()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with(VARIABLE_PREFIX) && !name.starts_with(TEST_PREFIX))
        .filter(|name| !variables().any(|variable| variable == name))
        .collect();
    wrong.sort_unstable();
    wrong.iter().map(|name| warning(name)).collect()
}

fn warning(name: &str) -> String {
    // What all of them have in common would make any two alike.
    let rest = |name: &'static str| name.trim_start_matches(VARIABLE_PREFIX);
    let wrong = name.trim_start_matches(VARIABLE_PREFIX);
    let shown = super::cut_for_people(name);
    match nearest(wrong, variables().map(rest)) {
        Some(meant) => {
            format!("the variable {shown} means nothing; did you mean {VARIABLE_PREFIX}{meant}?")
        }
        None => format!("the variable {shown} means nothing; docs/configuration.md lists those that do"),
    }
}
