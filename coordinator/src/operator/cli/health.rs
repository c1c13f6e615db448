//! `lockstep health`: whether a coordinator is to be called. The same checks as those of `/readyz`.

use lockstep_proto::v1::StatusRequest;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output::{self, printable};
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
    why: String,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.limit.timeout);
    let status = within(&remote, args.limit, remote.admin().status(StatusRequest {})).await?;
    let check = |check, why: String| Check { check, ok: why.is_empty(), why };
    let checks = vec![check("begins", status.begins_refused), check("log", status.log_unavailable)];
    let health = Health { ready: checks.iter().all(|check| check.ok), checks };
    if args.server.json {
        output::print_json(&health)?;
    } else {
        output::print(if health.ready { "ready\n" } else { "not ready\n" })?;
        for check in &health.checks {
            let mark = if check.ok { "ok   " } else { "fails" };
            output::print(format!("{mark} {} {}", check.check, printable(&check.why)).trim_end())?;
            output::print("\n")?;
        }
    }
    Ok(if health.ready { Exit::Ok } else { Exit::Unresolved })
}
