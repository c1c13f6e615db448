//! How far a run is, on stderr: a bar on a terminal, a line for each quarter elsewhere.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Options;

const BAR: &str = "{bar:40} {pos} of {len} transfers, {msg}";

pub(crate) struct Progress {
    bar: ProgressBar,
    lines: bool,
    transfers: u32,
}

impl Progress {
    pub(crate) fn start(options: &Options) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let target = if lines { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(options.transfers.into()), target);
        bar.set_style(ProgressStyle::with_template(BAR).expect("the template is well-formed"));
        let progress = Self { bar, lines, transfers: options.transfers };
        progress.show(0);
        progress
    }

    /// One transfer more has ended, and so many kills were made.
    pub(crate) fn transfer(&self, kills: u32) {
        self.bar.inc(1);
        // More than was asked for, if kills are left to make.
        self.bar.set_length(self.bar.position().max(self.transfers.into()));
        self.show(kills);
        let quarter = u64::from(self.transfers.div_ceil(4));
        if self.lines && self.bar.position().is_multiple_of(quarter) {
            eprintln!("{} of {} transfers, {kills} kills", self.bar.position(), self.transfers);
        }
    }

    fn show(&self, kills: u32) {
        self.bar.set_message(format!("{kills} kills"));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
