//! `lockstep serve` as a process: what it says when it starts, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod common;

use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use common::{lockstep, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};

/// Nothing here takes that long; a test that would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator that has said its banner.
struct Served {
    child: Child,
    /// Holds its stdout open: a closed one is a test of its own.
    stdout: Option<BufReader<ChildStdout>>,
}

impl Served {
    fn start(dir: &TempDir, args: &[&str]) -> Self {
        let mut all = vec!["serve", "--listen=127.0.0.1:0"];
        all.extend_from_slice(args);
        let mut command = lockstep(dir.path(), &all);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program was built");
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stdout.as_mut().expect("it is piped").read_line(&mut line);
        tokio::time::timeout(PATIENCE, read).await.expect("it goes on").unwrap();
        line
    }

    /// The banner's lines up to the last one.
    async fn banner(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            assert!(!line.is_empty(), "it ended after {lines:?}");
            let last = line.starts_with("lockstep recovered");
            lines.push(line.trim_end().to_owned());
            if last {
                return lines;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        kill_process(Pid::from_raw(pid.expect("it runs")).expect("it is no group"), signal).unwrap();
    }

    /// Its exit code, and what it wrote to stderr.
    async fn end(mut self) -> (i32, String) {
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().expect("it is piped");
        let end = async {
            pipe.read_to_string(&mut stderr).await.unwrap();
            self.child.wait().await.unwrap()
        };
        let status = tokio::time::timeout(PATIENCE, end).await.expect("it ends");
        (status.code().expect("it ended by itself"), stderr)
    }
}

fn address(banner: &[String]) -> SocketAddr {
    let url = |line: &String| line.strip_prefix("lockstep listening on http://").map(str::to_owned);
    let found: Vec<_> = banner.iter().filter_map(url).collect();
    assert_eq!(found.len(), 1, "{banner:?}");
    found[0].parse().unwrap()
}

#[tokio::test]
async fn the_banner_tells_the_real_address_and_every_line_begins_with_the_product() {
    let dir = TempDir::new().unwrap();
    let mut served = Served::start(&dir, &[]);
    let banner = served.banner().await;
    assert!(banner.iter().all(|line| line.starts_with("lockstep ")), "{banner:?}");
    assert_eq!(banner[0], format!("lockstep {}", env!("CARGO_PKG_VERSION")));
    let address = address(&banner);
    assert_ne!(address.port(), 0);
    TcpStream::connect(address).expect("somebody listens where the banner says so");
    let data_dir = dir.path().canonicalize().unwrap().join("lockstep-data");
    let told = banner.iter().find_map(|line| line.strip_prefix("lockstep data directory: "));
    assert_eq!(told.map(std::path::Path::new), Some(data_dir.as_path()));
}

#[tokio::test]
async fn with_json_the_banner_is_one_object_on_one_line() {
    let dir = TempDir::new().unwrap();
    let mut served = Served::start(&dir, &["--log-format=json"]);
    let banner: Value = serde_json::from_str(&served.line().await).unwrap();
    let url = banner["listening"][0].as_str().unwrap();
    TcpStream::connect(url.strip_prefix("http://").unwrap()).expect("somebody listens there");
    served.signal(Signal::TERM);
    let (code, stderr) = served.end().await;
    assert_eq!(code, 0, "{stderr}");
    assert!(!stderr.is_empty());
    for line in stderr.lines() {
        serde_json::from_str::<Value>(line).expect("every log line is an object");
    }
}

#[tokio::test]
async fn sigterm_and_sigint_end_it_in_good_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = TempDir::new().unwrap();
        let mut served = Served::start(&dir, &[]);
        let address = address(&served.banner().await);
        served.signal(signal);
        let (code, stderr) = served.end().await;
        assert_eq!(code, 0, "{stderr}");
        let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
        assert!(stderr.contains(&format!("{name}: draining")), "{stderr}");
        TcpStream::connect(address).expect_err("nobody listens any more");
    }
}

#[tokio::test]
async fn an_address_in_use_is_told_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = TempDir::new().unwrap();
    let listen = format!("--listen={address}");
    let ran = run(lockstep(dir.path(), &["serve", &listen])).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    let expected = format!("error[LS0101]: cannot listen on {address}: ");
    assert!(ran.stderr.contains(&expected) && ran.stderr.contains("--listen"), "{ran:?}");
}

#[tokio::test]
async fn a_coordinator_whose_stdout_nobody_reads_serves_all_the_same() {
    let dir = TempDir::new().unwrap();
    // An address of loopback that no other test takes a port of.
    let free = std::net::TcpListener::bind("127.42.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut command = lockstep(dir.path(), &["serve", &format!("--listen={address}")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let served = Served { child, stdout: None };
    let connected = async {
        while TcpStream::connect(address).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("it listens");
    served.signal(Signal::TERM);
    let (code, stderr) = served.end().await;
    assert_eq!(code, 0, "{stderr}");
}
