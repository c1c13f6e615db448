//! `lockstep health`: whether a coordinator is to be called.

use lockstep_proto::v1::StatusRequest;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output;
use super::remote::{AnswerTimeout, Remote, ServerArgs, within};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    limit: AnswerTimeout,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Health {
    ready: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    ok: bool,
    /// Why not; empty if it is.
    why: &'static str,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.limit.timeout);
    // The answer has numbers of the log's in it: a log that does not answer is an error here.
    let status = within(&remote, args.limit, remote.admin().status(StatusRequest {})).await?;
    let check = |check, fails: bool, why| Check { check, ok: !fails, why: if fails { why } else { "" } };
    let checks = vec![
        check("the decision log answers", false, ""),
        check("begins transactions", status.draining, "it is draining, until it is started again"),
        check(
            "the log is not behind",
            status.log_behind,
            "participants have seen decisions that it does not have",
        ),
    ];
    let health = Health { ready: checks.iter().all(|check| check.ok), checks };
    if args.server.json {
        output::print_json(&health)?;
    } else {
        output::print(if health.ready { "ready\n" } else { "not ready\n" })?;
        for check in &health.checks {
            let (mark, why) = if check.ok { ("ok", "") } else { ("NO", check.why) };
            output::print(format!("{mark}  {}  {why}", check.check).trim_end())?;
            output::print("\n")?;
        }
    }
    Ok(if health.ready { Exit::Ok } else { Exit::Unresolved })
}
