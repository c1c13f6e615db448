//! What a coordinator says on stdout once everything is bound and recovered.
//!
//! Every line of the text begins with `lockstep`, so that it can be found among the lines of other processes, and
//! `lockstep listening on http://…` is there for programs too: it comes once for each address that was really bound,
//! port 0 resolved. With `log-format = json` it is one object on one line.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_proto::{ClusterId, Epoch};
use serde::Serialize;

use crate::config::LogFormat;
use crate::protocol::record::{DecisionKind, DecisionRecord};

/// What a coordinator is when it begins to answer.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Every address that was bound, with its real port.
    pub listening: Vec<SocketAddr>,
    /// What a decision is forced to before anyone hears of it, such as `sqlite, WAL, synchronous=FULL`.
    pub durability: String,
    /// The decision log.
    pub log: Where,
    /// The cluster of the decision log.
    pub cluster: ClusterId,
    /// This life of the node.
    pub epoch: Epoch,
    /// What earlier lives left.
    pub recovered: Recovered,
}

/// Where a decision log is.
#[derive(Debug, Clone)]
pub enum Where {
    /// In this directory, absolute.
    DataDirectory(PathBuf),
    /// On this server.
    Server(String),
}

/// What was found in the decision log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Commit decisions that some branch has not acknowledged: they are delivered again.
    pub undelivered: u64,
    /// One-phase intents without an end: their evidence is asked for.
    pub one_phase: u64,
    /// Earlier epochs that were still open: 1 after a crash or a stop, 0 in a new log.
    pub sealed_epochs: usize,
}

impl Recovered {
    /// Counts a decision that has no end.
    pub fn count(&mut self, unfinished: &DecisionRecord) {
        match unfinished.kind {
            DecisionKind::Commit => self.undelivered += 1,
            DecisionKind::OnePhaseIntent => self.one_phase += 1,
        }
    }
}

const PRODUCT: &str = "lockstep";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The banner, with the line break at its end.
pub(super) fn banner(ready: &Ready, format: LogFormat) -> String {
    match format {
        LogFormat::Text => text(ready),
        LogFormat::Json => json(ready),
    }
}

fn text(ready: &Ready) -> String {
    let mut lines = String::new();
    let mut line = |line: std::fmt::Arguments<'_>| {
        writeln!(lines, "{PRODUCT} {line}").expect("a String takes everything");
    };
    line(format_args!("{VERSION}"));
    for address in &ready.listening {
        line(format_args!("listening on http://{address}"));
    }
    for address in insecure(ready) {
        line(format_args!(
            "WARNING: whoever reaches {address} can decide every transaction (no TLS, no authentication)"
        ));
    }
    line(format_args!("durability: {}", ready.durability));
    match &ready.log {
        Where::DataDirectory(path) => line(format_args!("data directory: {}", path.display())),
        Where::Server(place) => line(format_args!("decision log: {place}")),
    }
    line(format_args!("cluster {} epoch {}", ready.cluster, ready.epoch));
    let Recovered { undelivered, one_phase, sealed_epochs } = ready.recovered;
    line(format_args!(
        "recovered: {undelivered} decisions to deliver, {one_phase} one-phase commits to ask for, \
         {sealed_epochs} epochs sealed"
    ));
    lines
}

fn insecure(ready: &Ready) -> impl Iterator<Item = &SocketAddr> {
    ready.listening.iter().filter(|address| !address.ip().to_canonical().is_loopback())
}

/// The same as an object: what is documented in docs/cli.md.
#[derive(Serialize)]
struct Json<'a> {
    product: &'static str,
    version: &'static str,
    listening: Vec<String>,
    insecure: bool,
    durability: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_log: Option<&'a str>,
    cluster: String,
    epoch: u32,
    recovered: Recovered,
}

fn json(ready: &Ready) -> String {
    let url = |address: &SocketAddr| format!("http://{address}");
    let (data_dir, decision_log) = match &ready.log {
        Where::DataDirectory(path) => (Some(path.display().to_string()), None),
        Where::Server(place) => (None, Some(place.as_str())),
    };
    let object = Json {
        product: PRODUCT,
        version: VERSION,
        listening: ready.listening.iter().map(url).collect(),
        insecure: insecure(ready).next().is_some(),
        durability: ready.durability.clone(),
        data_dir,
        decision_log,
        cluster: ready.cluster.to_string(),
        epoch: ready.epoch.get(),
        recovered: ready.recovered,
    };
    let mut line = serde_json::to_string(&object).expect("texts and numbers make JSON");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Bqual;

    use super::*;
    use crate::protocol::record::About;

    fn ready(listening: &[&str]) -> Ready {
        Ready {
            listening: listening.iter().map(|address| address.parse().unwrap()).collect(),
            durability: "SQLite, WAL, synchronous=FULL".into(),
            log: Where::DataDirectory("/var/lib/lockstep".into()),
            cluster: "7c1f09ae".parse().unwrap(),
            epoch: Epoch::new(12).unwrap(),
            recovered: Recovered { undelivered: 2, one_phase: 1, sealed_epochs: 1 },
        }
    }

    #[test]
    fn each_line_begins_with_the_product_and_each_address_has_one() {
        let banner = banner(&ready(&["127.0.0.1:7420", "[::1]:7421"]), LogFormat::Text);
        let expected = format!(
            "lockstep {VERSION}\n\
             lockstep listening on http://127.0.0.1:7420\n\
             lockstep listening on http://[::1]:7421\n\
             lockstep durability: SQLite, WAL, synchronous=FULL\n\
             lockstep data directory: /var/lib/lockstep\n\
             lockstep cluster 7c1f09ae epoch 12\n\
             lockstep recovered: 2 decisions to deliver, 1 one-phase commits to ask for, 1 epochs sealed\n"
        );
        assert_eq!(banner, expected);
    }

    #[test]
    fn a_log_on_a_server_is_told_in_place_of_the_directory() {
        let log = Where::Server("postgres://db:5432/log".to_owned());
        let ready = Ready { log, ..ready(&["127.0.0.1:7420"]) };
        let text = banner(&ready, LogFormat::Text);
        assert!(text.contains("\nlockstep decision log: postgres://db:5432/log\n"), "{text}");
        assert!(!text.contains("data directory"), "{text}");
        let object: serde_json::Value = serde_json::from_str(&banner(&ready, LogFormat::Json)).unwrap();
        assert_eq!(object["decision_log"], "postgres://db:5432/log");
        assert_eq!(object.get("data_dir"), None);
    }

    #[test]
    fn an_address_that_is_open_to_others_is_warned_of() {
        let open = banner(&ready(&["0.0.0.0:7420"]), LogFormat::Text);
        assert!(open.contains("\nlockstep WARNING: whoever reaches 0.0.0.0:7420 "), "{open}");
        let object: serde_json::Value =
            serde_json::from_str(&banner(&ready(&["[::]:7420"]), LogFormat::Json)).unwrap();
        assert_eq!(object["insecure"], true);
    }

    #[test]
    fn as_json_it_is_one_line_with_the_same_in_it() {
        let line = banner(&ready(&["127.0.0.1:7420"]), LogFormat::Json);
        assert_eq!(line.lines().count(), 1);
        // The version is the only thing that changes without anybody's doing.
        let line = line.replace(&format!("\"{VERSION}\""), "\"0.0.0\"");
        assert_eq!(line, include_str!("cli/golden/banner.json"));
    }

    #[test]
    fn decisions_without_an_end_are_counted_by_what_they_need() {
        let decision = |kind| DecisionRecord {
            gtrid: "1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f".parse().unwrap(),
            kind,
            branches: vec![Bqual::new(&"db".parse().unwrap(), 1)],
            decided_ms: 1,
            about: About::default(),
        };
        let mut recovered = Recovered::default();
        recovered.count(&decision(DecisionKind::Commit));
        recovered.count(&decision(DecisionKind::Commit));
        recovered.count(&decision(DecisionKind::OnePhaseIntent));
        assert_eq!((recovered.undelivered, recovered.one_phase), (2, 1));
    }
}
