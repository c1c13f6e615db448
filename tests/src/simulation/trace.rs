//! What happened, as a number that is always kept and as a text that is kept only when somebody wants to read it.

use std::fmt::Write as _;

use super::queue::Time;

/// One line of a told trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    at: Time,
    /// Which transaction it is about; `None`: all of them.
    about: Option<u32>,
    text: String,
}

/// The trace of one world.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    told: Option<Vec<Line>>,
}

impl Trace {
    /// With the text, or without.
    #[must_use]
    pub fn new(told: bool) -> Self {
        Self { hash: 0, told: told.then(Vec::new) }
    }

    /// Mixes a number into the hash.
    pub const fn mix(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// Two runs with the same hash were the same.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether the text is kept.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Keeps a line.
    pub fn tell(&mut self, at: Time, about: Option<u32>, text: String) {
        if let Some(told) = &mut self.told {
            told.push(Line { at, about, text });
        }
    }

    /// The text: all of it, or what concerns one transaction, its own lines and those that concern everyone.
    #[must_use]
    pub fn text(&self, only: Option<u32>) -> String {
        let lines = self.told.iter().flatten();
        let own = |line: &&Line| only.is_none() || line.about == only;
        let span = lines.clone().filter(own).map(|line| line.at);
        let (first, last) = (span.clone().min().unwrap_or(0), span.max().unwrap_or(Time::MAX));
        let wanted = |line: &&Line| own(line) || (line.about.is_none() && (first..=last).contains(&line.at));
        lines.filter(wanted).fold(String::new(), |mut text, line| {
            writeln!(text, "{:>13.6} s  {}", seconds(line.at), line.text).expect("a text takes all");
            text
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people; a world lasts hours, not centuries")]
fn seconds(at: Time) -> f64 {
    at as f64 / 1e6
}

/// Tells a line of the trace, and formats it only if somebody reads it.
macro_rules! say {
    ($world:expr, $about:expr, $($text:tt)*) => {
        if $world.trace.is_told() {
            let line = format!($($text)*);
            $world.trace.tell($world.now, $about, line);
        }
    };
}
pub(super) use say;
