//! What the commands share by which an operator does something: dry run, reason, confirmation, and what is said afterwards.

use clap::Args;
use lockstep_proto::v1::{ActRequest, OperatorAction};

use super::exit::{Exit, Failure};
use super::output;
use super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use crate::operator::view::acts::ActView;

/// Who asks, why, and whether it is meant.
#[derive(Debug, Clone, Args)]
pub(super) struct ActArgs {
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Why: it is put on record
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
    /// For what cannot be taken back: what the dry run prints, whole
    #[arg(long, value_name = "ID")]
    confirm: Option<String>,
    /// Who asks: it is put on record as a claim
    #[arg(long = "as", value_name = "NAME", env = "USER", hide_env_values = true, default_value = "")]
    who: String,
    #[command(flatten)]
    server: ServerArgs,
    /// How long to wait for the answer
    #[command(flatten)]
    answer: AnswerTimeout,
}

/// An action without anything to name but its target.
#[derive(Debug, Clone, Args)]
pub(super) struct TransactionArgs {
    /// The transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    pub gtrid: String,
    #[command(flatten)]
    pub act: ActArgs,
}

/// Does it, or says what it would do.
pub(super) async fn act(
    args: ActArgs,
    action: OperatorAction,
    target: String,
    resource_manager: String,
) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let request = ActRequest {
        action: action.into(),
        target,
        resource_manager,
        dry_run: args.dry_run,
        reason: args.reason.unwrap_or_default(),
        who: args.who,
        confirm: args.confirm.unwrap_or_default(),
    };
    let answer = within(&remote, args.answer, remote.admin().act(request)).await?;
    let view = ActView::try_from(answer).map_err(|error| remote.strange(&error))?;
    if args.server.json {
        output::print_json(&view)?;
    } else {
        output::print(&text(&view))?;
    }
    Ok(Exit::Ok)
}

/// As a shell takes it for one word: a place may have a space in it.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "._-:/#@".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn text(view: &ActView) -> String {
    let printable = output::printable;
    let situation = view.situation.map_or(String::new(), |situation| format!("  ({})", situation.as_str()));
    let mut text = format!("{}{situation}\nbefore: {}\n", printable(&view.target), printable(&view.before));
    let verb = if view.audit_id.is_some() { "done" } else { "would" };
    for step in &view.plan {
        text += &format!("{verb}: {}\n", printable(step));
    }
    match view.audit_id {
        Some(id) => text += &format!("audit: {id}\n"),
        None if view.confirm.is_empty() => text += "to do it: --reason TEXT in place of --dry-run\n",
        None => {
            text += &format!(
                "to do it: --reason TEXT --confirm {} in place of --dry-run\n",
                printable(&word(&view.confirm))
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn what_is_to_be_confirmed_can_be_pasted() {
        assert_eq!(word("host:/var/lib/bank.db#8:12"), "host:/var/lib/bank.db#8:12");
        assert_eq!(word("host:/my bank's.db#8:12"), r"'host:/my bank'\''s.db#8:12'");
    }
}
