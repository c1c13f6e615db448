//! `lockstep migrate`.

use super::config_show;
use super::exit::{Exit, Failure};
use super::output;
use crate::config::{LogPlace, Overrides};
use crate::decision_log::postgres;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let config = config_show::load(&args.overrides)?.config;
    let LogPlace::Postgres(url) = &config.log else {
        return Err(Failure::not_shared("an embedded decision log is migrated by `lockstep serve`"));
    };
    let place = postgres::migrate(url, config.insecure_log_settings).await.map_err(Failure::of_shared_log)?;
    output::talk(&format!("the decision log at {place} has the schema of this version"));
    Ok(Exit::Ok)
}
