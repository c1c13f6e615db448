//! The right name that a wrong one was probably meant to be.

/// How much of two names must be the same, of 1, to mention them together. With a half, `cluster` is meant to be `listen`.
const LIKENESS: f64 = 0.6;

/// The one of `right` that is most like `wrong`, if any is like it at all.
pub(super) fn nearest<'a>(wrong: &str, right: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    right
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}
