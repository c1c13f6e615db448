//! What came of it: for people a matrix, for programs one object.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::harness::coordinator::Ran;

/// The verdict on a command that did what it was asked for.
pub const DONE: &str = "done";
/// The verdict on one that was asked whether something is unresolved, or not ready, and says so.
pub const UNRESOLVED: &str = "exit 6";

/// What a command came to: [`DONE`], the code of its refusal, or the number with which it ended.
#[must_use]
pub fn verdict(ran: &Ran) -> String {
    const REFUSED: i32 = 4;
    let code = ran.stderr.split_once("error[").and_then(|(_, rest)| rest.split_once(']'));
    match (ran.code, code) {
        (0, _) => DONE.to_owned(),
        (REFUSED, Some((code, _))) => code.to_owned(),
        (exit, Some((code, _))) => format!("exit {exit} {code}"),
        (exit, None) => format!("exit {exit}"),
    }
}

/// One action in one situation.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Which situation.
    pub situation: &'static str,
    /// Which action.
    pub action: &'static str,
    /// What the runbook promises: `done`, or the code of the refusal.
    pub expected: &'static str,
    /// What was found.
    pub found: String,
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which they were tried.
    pub cells: Vec<Cell>,
    /// What else was looked at, and whether it was as promised.
    pub claims: BTreeMap<&'static str, bool>,
    /// Codes of refusals whose pages were followed.
    pub codes: BTreeSet<String>,
    /// The pages of the runbook whose commands were run.
    pub followed: BTreeSet<&'static str>,
}

impl Report {
    /// Whether everything is as promised, and everything was tried.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.cells.is_empty()
            && self.cells.iter().all(|cell| cell.found == cell.expected)
            && self.claims.values().all(|held| *held)
            && super::expected::REFUSALS.iter().all(|code| self.codes.contains(*code))
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["SITUATION", "ACTION", "EXPECTED", "FOUND", ""]);
        for cell in &self.cells {
            let verdict = if cell.found == cell.expected { "ok" } else { "WRONG" };
            table.add_row([cell.situation, cell.action, cell.expected, &cell.found, verdict]);
        }
        let claims = self
            .claims
            .iter()
            .map(|(claim, held)| format!("{}  {claim}\n", if *held { "ok   " } else { "WRONG" }));
        let codes = self.codes.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let followed = self.followed.iter().copied().collect::<Vec<_>>().join(" ");
        format!("{table}\n\n{}pages followed: {codes} {followed}\n", claims.collect::<String>())
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        let object = serde_json::json!({
            "clean": self.is_clean(), "cells": self.cells, "claims": self.claims, "codes": self.codes,
            "followed": self.followed,
        });
        object.to_string()
    }
}
