//! `lockstep restore`: the decision log is one that was restored from a backup, or has failed over with a loss (P8).
//!
//! It works on the log itself, while no coordinator runs.

use serde::Serialize;

use super::config_show;
use super::exit::{Exit, Failure};
use super::output;
use crate::config::{LogPlace, Overrides};
use crate::decision_log::restore::{Order, Restoration, RestoreError, Step};
use crate::decision_log::{postgres, sqlite};
use crate::engine::clock::unix_ms;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    overrides: Overrides,
    /// Which cluster's log this has to be; `--dry-run` tells the id
    #[arg(long, value_name = "CLUSTER", required_unless_present = "dry_run")]
    confirm: Option<String>,
    /// Why: kept in the log
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
    /// Who asks: it is put on record as a claim
    #[arg(long = "as", value_name = "NAME", env = "USER", hide_env_values = true, default_value = "")]
    who: String,
    /// The second step: nothing from before the restore is in doubt any more, and evidence of it may go
    #[arg(long)]
    settled: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints, as it is documented in docs/cli.md.
#[derive(Debug, Serialize)]
struct View {
    cluster: String,
    presumed_nothing_below: u32,
    unfinished: u64,
    was_behind: bool,
    dry_run: bool,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let config = config_show::load(&args.overrides)?.config;
    let step = if args.settled { Step::Settle } else { Step::Restore };
    let order = Order {
        step,
        confirm: if args.dry_run { None } else { args.confirm },
        reason: args.reason.unwrap_or_default(),
        who: args.who,
        now_ms: unix_ms(),
    };
    let restored = match &config.log {
        LogPlace::Embedded => sqlite::restore(&config.data_dir, &order).await,
        LogPlace::Postgres(url) => postgres::restore(url, config.insecure_log_settings, &order).await,
    };
    let restored = restored.map_err(|error| failure(&error))?;
    if args.json {
        output::print_json(&View {
            cluster: restored.cluster.to_string(),
            presumed_nothing_below: restored.below.get(),
            unfinished: restored.unfinished,
            was_behind: restored.was_behind,
            dry_run: restored.dry_run,
        })?;
    } else {
        output::print(&text(step, &restored))?;
    }
    Ok(Exit::Ok)
}

fn failure(error: &RestoreError) -> Failure {
    let (exit, remedy) = match error {
        RestoreError::OtherCluster { .. }
        | RestoreError::NodesRunning(_)
        | RestoreError::NotRestored
        | RestoreError::EpochsUsedUp
        | RestoreError::NoLog(_) => (Exit::Refused, ""),
        RestoreError::Embedded(_) => (Exit::Failed, ""),
        RestoreError::Shared(error) => (Exit::Failed, error.remedy()),
    };
    Failure::coded(error.code(), exit, error.to_string()).remedy(remedy)
}

fn text(step: Step, restored: &Restoration) -> String {
    let Restoration { cluster, below, unfinished, was_behind, dry_run } = restored;
    let would = if *dry_run { "would be " } else { "" };
    let behind = if *was_behind {
        "it is a\n  backup, or participants have seen decisions that it does not have"
    } else {
        "no\n  participant has told yet that it had seen more"
    };
    let confirm = if *dry_run {
        format!("next: the same with --confirm {cluster} --reason TEXT\n")
    } else {
        String::new()
    };
    match step {
        Step::Restore => format!(
            "the decision log of cluster {cluster}: {behind}\n\
             {would}done: nothing is presumed of transactions of epochs below {below};\n  new ones begin above\n\
             {unfinished} recorded decisions without an end are delivered by the next start\n\
             {confirm}\
             then: start the coordinators; what is prepared and has no record stays as it\n  is: docs/restore.md\n"
        ),
        Step::Settle => format!(
            "the decision log of cluster {cluster}, restored below epoch {below}\n\
             {would}done: evidence of transactions from before the restore may go\n{confirm}"
        ),
    }
}
