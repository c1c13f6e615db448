//! `lockstep cluster ls`: who shares a decision log, read from the log itself.

use serde::Serialize;

use super::config_show;
use super::exit::{Exit, Failure};
use super::{output, tables};
use crate::config::{LogPlace, Overrides};
use crate::decision_log::postgres::{self, Node, NodeState};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the nodes that share a decision log
    Ls(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    overrides: Overrides,
    /// Also earlier lives that are over and have left nothing
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A node, as it is documented in docs/cli.md.
#[derive(Debug, Serialize)]
pub(super) struct NodeView {
    pub(super) node: String,
    pub(super) address: String,
    pub(super) epoch: u32,
    pub(super) state: &'static str,
    pub(super) lease_ms: u64,
    pub(super) live: u64,
    pub(super) unfinished: u64,
    pub(super) adopted_by: Option<u32>,
}

#[derive(Serialize)]
struct Nodes {
    nodes: Vec<NodeView>,
}

impl From<Node> for NodeView {
    fn from(node: Node) -> Self {
        Self {
            node: node.node,
            address: node.address,
            epoch: node.epoch.get(),
            state: match node.state {
                NodeState::Live => "live",
                NodeState::Expired => "expired",
                NodeState::Sealed => "sealed",
            },
            lease_ms: node.lease_ms,
            live: node.live,
            unfinished: node.unfinished,
            adopted_by: node.adopted_by.map(lockstep_proto::Epoch::get),
        }
    }
}

pub(super) async fn run(Command::Ls(args): Command) -> Result<Exit, Failure> {
    let config = config_show::load(&args.overrides)?.config;
    let LogPlace::Postgres(url) = &config.log else {
        return Err(Failure::not_shared("an embedded decision log has one node at a time"));
    };
    let found = postgres::nodes(url, config.insecure_log_settings, args.all).await;
    let found = found.map_err(Failure::of_shared_log)?;
    let nodes: Vec<NodeView> = found.into_iter().map(NodeView::from).collect();
    if args.json {
        output::print_json(&Nodes { nodes })?;
    } else {
        output::print(&tables::nodes(&nodes, tables::Look::of_stdout()))?;
    }
    Ok(Exit::Ok)
}
