//! What came of trying.

use std::any::Any;
use std::fmt;

use super::Rule;

/// How a rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What should have been.
    pub expected: String,
    /// What was.
    pub happened: String,
}

impl Broken {
    pub(super) fn new(expected: impl Into<String>, happened: impl Into<String>) -> Self {
        Self { expected: expected.into(), happened: happened.into() }
    }
}

/// What came of trying one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// `None` if it was kept.
    pub broken: Option<Broken>,
}

/// What came of trying them, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a report says whether the contract was kept"]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        Self { findings }
    }

    /// All of it.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The rules that were broken.
    pub fn broken(&self) -> impl Iterator<Item = Rule> {
        self.findings.iter().filter(|finding| finding.broken.is_some()).map(|finding| finding.rule)
    }

    /// Goes on only if all rules were kept.
    ///
    /// # Panics
    /// With the report, if one was broken.
    pub fn assert_kept(&self) {
        assert!(self.broken().next().is_none(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = self.broken().count();
        writeln!(f, "{} rules tried, {broken} broken", self.findings.len())?;
        for Finding { rule, broken } in &self.findings {
            if let Some(Broken { expected, happened }) = broken {
                writeln!(f, "\nbroken: {rule}\n  {}", rule.text())?;
                writeln!(f, "  expected: {expected}\n  happened: {happened}")?;
            }
        }
        Ok(())
    }
}

/// What a panic said.
pub(super) fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("(without words)"))
}
