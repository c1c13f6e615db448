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
        let failure =
            Failure::new(Exit::Usage, "an embedded decision log is migrated by `lockstep serve`".to_owned());
        return Err(failure.remedy("name a shared one with --log postgres://role@host/database"));
    };
    let place = postgres::migrate(url, config.insecure_log_settings)
        .await
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    output::talk(&format!("the decision log at {place} has the schema of this version"));
    Ok(Exit::Ok)
}
