//! Processes that work on a store and are killed: this program, started again, with its orders in the environment.
//!
//! A child does one step of the protocol, and kills itself with SIGKILL: at one of the step's waits, after a time, or
//! when it has said what the answer was. Nothing is flushed, unlocked or dropped then. Every child ends that way; one that does not has failed.

use std::fmt::{Debug, Write as _};
use std::future::{Future, poll_fn};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::Stdio;
use std::task::Poll;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::process::Command;
use tokio::time::Instant;

use super::site::{LONG, position};
use super::{Broken, Subject};
use crate::resource::{BranchId, Prepared, Resource as _};

const STEP: &str = "LOCKSTEP_CONTRACT_STEP";
const CUT: &str = "LOCKSTEP_CONTRACT_CUT";
const ADDRESS: &str = "LOCKSTEP_CONTRACT_ADDRESS";
const BRANCH: &str = "LOCKSTEP_CONTRACT_BRANCH";
const KEY: &str = "LOCKSTEP_CONTRACT_KEY";

/// What a child says begins with this.
const MARK: &str = "lockstep contract child: ";
const BEGINS: &str = "begins";
const ANSWERED: &str = "answered ";
/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a child is killed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Attach,
    Prepare,
    OnePhase,
    Commit,
    Rollback,
    Forget,
}

const STEPS: [(Step, &str); 6] = [
    (Step::Attach, "attach"),
    (Step::Prepare, "prepare"),
    (Step::OnePhase, "one-phase"),
    (Step::Commit, "commit"),
    (Step::Rollback, "rollback"),
    (Step::Forget, "forget"),
];

/// When a child kills itself: at the latest when it has said what the answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Odd numbers: when the step waits for the first, second, … time: what it asked for is on its way. Even ones: when that
    /// wait is over, and before anything follows from it.
    Wait(usize),
    /// So long after the step began.
    Time(Duration),
    /// Only then.
    Answer,
}

/// How this program is started again so that it comes to the call that it is in now.
#[derive(Debug)]
pub(super) struct Launcher {
    arguments: Vec<std::ffi::OsString>,
}

impl Launcher {
    pub(super) fn of_this_program() -> Self {
        let thread = std::thread::current();
        let arguments = match thread.name() {
            // Rust's test runner names the thread of a test after the test.
            Some(test) if test != "main" => {
                ["--exact", test, "--include-ignored", "--nocapture"].map(Into::into).to_vec()
            }
            Some(_) | None => std::env::args_os().skip(1).collect(),
        };
        Self { arguments }
    }

    pub(super) fn child(&self, address: &str) -> Child<'_> {
        Child { launcher: self, address: address.to_owned() }
    }
}

/// A process that will work on a store.
#[derive(Debug)]
pub(super) struct Child<'a> {
    launcher: &'a Launcher,
    address: String,
}

/// What was heard of a step before its process died.
#[derive(Debug)]
pub(super) struct Heard {
    /// The answer, and how long the step took; `None` if the process died before.
    pub(super) answer: Option<(String, Duration)>,
}

impl Heard {
    /// Whether this was the answer.
    pub(super) fn is(&self, answer: impl Debug) -> bool {
        self.answer.as_ref().is_some_and(|(heard, _took)| *heard == format!("{answer:?}"))
    }
}

impl Child<'_> {
    /// Has a process do this step, and die. With a `key` it does what comes before the step by itself: it begins the branch, writes
    /// the key, prepares.
    pub(super) async fn run(
        &self,
        step: Step,
        branch: &BranchId,
        key: Option<&str>,
        cut: Cut,
    ) -> Result<Heard, Broken> {
        let program = std::env::current_exe().expect("a process knows its program");
        let output = Command::new(program)
            .args(&self.launcher.arguments)
            .env(STEP, STEPS.iter().find(|(known, _)| *known == step).expect("it is in the table").1)
            .env(CUT, cut.to_text())
            .env(ADDRESS, &self.address)
            .env(BRANCH, branch.to_string())
            .env(KEY, key.unwrap_or_default())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(PATIENCE, output).await {
            Ok(output) => output.expect("this program can be started again"),
            Err(_elapsed) => return Err(failed(step, "it hangs")),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        // The test runner writes in front of the first line.
        let said: Vec<_> = text.lines().filter_map(|line| Some(line.split_once(MARK)?.1)).collect();
        if output.status.signal() != Some(9) || said.first() != Some(&BEGINS) {
            let complaints = String::from_utf8_lossy(&output.stderr);
            return Err(failed(step, &format!("{}: {text}\n{complaints}", output.status)));
        }
        let answer = said.iter().find_map(|line| line.strip_prefix(ANSWERED)).map(|line| {
            let (micros, answer) = line.split_once(' ').expect("a number and the answer");
            (answer.to_owned(), Duration::from_micros(micros.parse().expect("a number")))
        });
        Ok(Heard { answer })
    }
}

fn failed(step: Step, why: &str) -> Broken {
    Broken::new(format!("a child process comes to its step {step:?}, and is killed in it"), why)
}

/// What a child is told.
#[derive(Debug)]
pub(super) struct Orders {
    step: Step,
    cut: Cut,
    address: String,
    branch: BranchId,
    key: Option<String>,
}

impl Orders {
    /// There are some if this process is a child.
    pub(super) fn from_environment() -> Option<Self> {
        let step = std::env::var(STEP).ok()?;
        let variable = |name| std::env::var(name).expect("a child gets all of its orders");
        Some(Self {
            step: STEPS.iter().find(|(_, text)| *text == step).expect("a known step").0,
            cut: Cut::from_text(&variable(CUT)),
            address: variable(ADDRESS),
            branch: variable(BRANCH).parse().expect("a branch"),
            key: Some(variable(KEY)).filter(|key| !key.is_empty()),
        })
    }
}

impl Cut {
    fn to_text(self) -> String {
        match self {
            Self::Wait(number) => format!("wait:{number}"),
            Self::Time(time) => format!("time:{}", time.as_micros()),
            Self::Answer => "answer:0".to_owned(),
        }
    }

    fn from_text(text: &str) -> Self {
        let (kind, number) = text.split_once(':').expect("a kind and a number");
        match kind {
            "wait" => Self::Wait(number.parse().expect("a number")),
            "time" => Self::Time(Duration::from_micros(number.parse().expect("a number"))),
            _ => Self::Answer,
        }
    }
}

/// In a child: does as it is told, and dies.
pub(super) async fn play<S: Subject>(subject: &S, orders: Orders) -> ! {
    let why = match play_step(subject, &orders).await {
        Ok(()) => "the step ended".to_owned(),
        Err(why) => why,
    };
    say(&format!("failed: {why}"));
    std::process::exit(1);
}

async fn play_step<S: Subject>(subject: &S, orders: &Orders) -> Result<(), String> {
    let Orders { step, cut, address, branch, key } = orders;
    let resource = subject.open(address).await;
    let name = branch.xid.bqual.resource_manager();
    if *step == Step::Attach {
        let identity = async { resource.attach(&name).await.map(|attachment| attachment.identity) };
        return dies_in(*cut, identity).await;
    }
    resource.attach(&name).await.map_err(|error| error.to_string())?;
    let mut open = None;
    if let Some(key) = key {
        let mut begun = resource.begin(branch, LONG).await.map_err(|error| error.to_string())?;
        subject.write(S::Resource::connection(&mut begun), key).await?;
        open = Some(begun);
    }
    let position = &position(1);
    match step {
        Step::Attach => Ok(()),
        Step::Prepare => dies_in(*cut, resource.prepare(branch, opened(open)?, position)).await,
        Step::OnePhase => dies_in(*cut, resource.commit_one_phase(branch, opened(open)?, position)).await,
        Step::Forget => dies_in(*cut, resource.forget(std::slice::from_ref(branch))).await,
        Step::Commit | Step::Rollback => {
            if let Some(open) = open {
                let vote = resource.prepare(branch, open, position).await;
                if vote != Ok(Prepared::Yes) {
                    return Err(format!("a branch that has written votes {vote:?}"));
                }
            }
            if *step == Step::Commit {
                dies_in(*cut, resource.commit(branch, position)).await
            } else {
                dies_in(*cut, resource.rollback(branch, position)).await
            }
        }
    }
}

fn opened<T>(open: Option<T>) -> Result<T, String> {
    open.ok_or_else(|| "there is no key to be written".to_owned())
}

/// Does the step until this process is to die. Ends only if the step failed before that.
async fn dies_in<T: Debug, E: Debug>(
    cut: Cut,
    step: impl Future<Output = Result<T, E>>,
) -> Result<(), String> {
    say(BEGINS);
    let begun = Instant::now();
    let last = match cut {
        Cut::Wait(number) => number,
        Cut::Time(time) => {
            std::thread::spawn(move || {
                std::thread::sleep(time);
                die();
            });
            usize::MAX
        }
        Cut::Answer => usize::MAX,
    };
    let answer = up_to(last, step).await;
    let mut line = format!("{ANSWERED}{} ", begun.elapsed().as_micros());
    match answer {
        Ok(answer) => write!(line, "{answer:?}").expect("a text takes all"),
        Err(error) => return Err(format!("{error:?}")),
    }
    say(&line);
    die();
    Ok(())
}

/// Dies when it begins or ends to wait for the so-manieth time, both counted.
async fn up_to<F: Future>(last: usize, step: F) -> F::Output {
    let mut step = pin!(step);
    let mut count = 0;
    let mut waits = false;
    poll_fn(move |context| {
        let mut passed = || {
            count += 1;
            if count == last {
                die();
            }
        };
        if waits {
            passed();
        }
        let polled = step.as_mut().poll(context);
        waits = polled.is_pending();
        if waits {
            passed();
        }
        match polled {
            Poll::Ready(answer) => Poll::Ready(answer),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{text}").and_then(|()| out.flush()).expect("the parent listens");
}

/// As nothing else ends a process: nothing is flushed, unlocked or dropped.
fn die() {
    kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    loop {
        std::thread::park();
    }
}
