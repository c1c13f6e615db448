//! `lockstep backup`: a copy of an embedded decision log as it is now.

use std::path::PathBuf;

use serde::Serialize;

use super::config_show;
use super::exit::{Exit, Failure};
use super::output::{self, printable};
use crate::codes::Code;
use crate::config::{LogPlace, Overrides};
use crate::decision_log::sqlite::{self, BackedUp, BackupError};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the copy goes: a directory that does not exist yet, or is empty
    #[arg(value_name = "DIRECTORY")]
    into: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints, as it is documented in docs/cli.md.
#[derive(Debug, Serialize)]
struct View {
    directory: String,
    cluster: String,
    newest_epoch: u32,
    transactions: u64,
    bytes: u64,
    online: bool,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let config = config_show::load(&args.overrides)?.config;
    match &config.log {
        LogPlace::Embedded => {}
        LogPlace::Postgres(_) => return Err(shared()),
    }
    let made = sqlite::back_up(&config.data_dir, &args.into).await.map_err(|error| failure(&error))?;
    if args.json {
        output::print_json(&View {
            directory: made.dir.display().to_string(),
            cluster: made.cluster.to_string(),
            newest_epoch: made.newest_epoch,
            transactions: made.transactions,
            bytes: made.bytes,
            online: made.online,
        })?;
    } else {
        output::print(&text(&made))?;
    }
    Ok(Exit::Ok)
}

/// A log in PostgreSQL is backed up by PostgreSQL, and not every way of that is right.
fn shared() -> Failure {
    let why = "a decision log in PostgreSQL is backed up by PostgreSQL, as all of its database\n  \
         right: a base backup with continuous archiving (pg_basebackup, archive_mode): it is restored to the newest moment\n  \
         right, and better: a synchronous standby, which lacks nothing at all\n  \
         poor: pg_dump, which is one moment: every decision since then is lost with the server";
    Failure::coded(Code::EmbeddedLogOnly, Exit::Usage, why).remedy(
        "after any of them but the standby: `lockstep restore`, before the first start: docs/restore.md",
    )
}

fn failure(error: &BackupError) -> Failure {
    let exit = match error {
        BackupError::NoLog(_) => Exit::Refused,
        BackupError::Newer(_) | BackupError::Target(_) | BackupError::Failed(_) => Exit::Failed,
    };
    Failure::coded(error.code(), exit, error.to_string())
}

fn text(made: &BackedUp) -> String {
    let while_running = if made.online { ", while its coordinator runs" } else { "" };
    format!(
        "backed up: the decision log of cluster {}{while_running}\n\
         in {}: {} transactions, up to epoch {}, {} bytes\n\
         what is decided from now on is not in it, and it says so itself: a coordinator\n\
         that is started on it begins nothing before `lockstep restore` was run\n",
        made.cluster,
        printable(&made.dir.display().to_string()),
        made.transactions,
        made.newest_epoch,
        made.bytes
    )
}
