//! Hello and welcome: who attaches to whom, and when that is refused.

use std::time::Duration;

use lockstep_proto::limits::PROTOCOL_VERSION;
use lockstep_proto::museum::mutated;

use super::message::{Hello, ToCoordinator, Welcome};
use super::{Closing, Effect, Phase, Session};
use crate::resource::{Attachment, Unresolved};

impl Session {
    pub(super) fn greet(&mut self, attachment: Attachment) {
        assert!(matches!(self.phase, Phase::Away), "a stream is opened only when there is none");
        self.number += 1;
        let hello = Hello {
            name: self.name.clone(),
            identity: attachment.identity,
            instance: self.instance,
            cluster: attachment.cluster,
            seen: attachment.seen.clone(),
            location: attachment.location.clone(),
            timeline: attachment.timeline,
        };
        self.phase = Phase::Greeting(attachment);
        self.effects.push(Effect::Send(ToCoordinator::Hello(hello)));
    }

    pub(super) fn welcomed(&mut self, now: Duration, welcome: Welcome) {
        let Phase::Greeting(attachment) = std::mem::replace(&mut self.phase, Phase::Away) else {
            unreachable!("called in this phase only")
        };
        let seen = attachment.seen.newest().map_or(0, |seen| seen.epoch.get());
        if let Err(why) = check(&welcome, &attachment, self.newest_epoch.max(seen), self.sealed_below) {
            self.close(why);
            return;
        }
        self.newest_epoch = self.newest_epoch.max(welcome.newest_epoch);
        self.sealed_below = self.sealed_below.max(welcome.sealed_below);
        if attachment.cluster.is_some() {
            self.become_attached(now, attachment, welcome);
        } else {
            // Nothing is prepared for a cluster that the store does not know for good (P21).
            self.effects.push(Effect::Bind(self.number, welcome.cluster));
            self.phase = Phase::Binding(attachment, welcome);
        }
    }

    pub(super) fn bound(&mut self, now: Duration, session: u64, result: Result<(), Unresolved>) {
        if session != self.number {
            return; // For a stream that broke meanwhile.
        }
        match (std::mem::replace(&mut self.phase, Phase::Away), result) {
            (Phase::Binding(attachment, welcome), Ok(())) => {
                let attachment = Attachment { cluster: Some(welcome.cluster), ..attachment };
                self.become_attached(now, attachment, welcome);
            }
            (Phase::Binding(..), Err(unresolved)) => {
                self.close(Closing::Broken(format!("the store could not keep its cluster: {unresolved}")));
            }
            (other @ (Phase::Away | Phase::Greeting(_) | Phase::Attached { .. } | Phase::Detached), _) => {
                self.phase = other;
            }
        }
    }

    fn become_attached(&mut self, now: Duration, attachment: Attachment, welcome: Welcome) {
        self.effects.push(Effect::Attached(welcome.cluster, welcome.position.epoch));
        let earlier = welcome.settled.iter().copied().filter(|epoch| *epoch < welcome.position.epoch);
        let settled: Vec<_> = earlier.collect();
        if !settled.is_empty() {
            self.effects.push(Effect::Settle(welcome.position, settled));
        }
        self.reports.start(now, welcome.report_interval);
        self.phase = Phase::Attached { attachment, welcome };
    }

    /// Epochs of other coordinators are over. Whoever shares their log answers for them now, and is asked at once (P20).
    pub(super) fn sealed(&mut self, now: Duration, epochs: &[u32]) {
        self.reports.hasten(now);
        self.effects.push(Effect::Sealed(epochs.to_vec()));
    }

    /// Ends the session if it is with a coordinator of one of these epochs (P19): one that was stopped, and wakes, would
    /// repeat what others have finished and forgotten.
    pub(super) fn end_if_sealed(&mut self, epochs: &[u32]) {
        let of = match &self.phase {
            Phase::Binding(_, welcome) | Phase::Attached { welcome, .. } => welcome.position.epoch.get(),
            Phase::Away | Phase::Greeting(_) | Phase::Detached => return,
        };
        if epochs.contains(&of) {
            self.close(Closing::Broken(format!("epoch {of} of its coordinator was sealed by another one")));
        }
    }
}

/// Whether this participant may take commands from whoever sent the welcome. `newest_epoch`: of all that it was told, in this
/// process or in what the store has kept; `sealed_below`: of all that it was told in this process.
fn check(
    welcome: &Welcome,
    attachment: &Attachment,
    newest_epoch: u32,
    sealed_below: u32,
) -> Result<(), Closing> {
    if welcome.protocol_version != PROTOCOL_VERSION {
        return Err(Closing::Refused(format!(
            "the coordinator speaks version {} of the participant protocol and this SDK version {PROTOCOL_VERSION}: \
             bring both to releases that go together",
            welcome.protocol_version
        )));
    }
    if let Some(ours) = attachment.cluster
        && ours != welcome.cluster
        && !mutated("P21-any-cluster-decides")
    {
        return Err(Closing::Refused(format!(
            "this store belongs to cluster {ours} and the coordinator to cluster {}: \
             check the coordinator's address, and that its data directory is the one that was used before",
            welcome.cluster
        )));
    }
    let epoch = welcome.position.epoch.get();
    let newest = welcome.newest_epoch;
    if newest < newest_epoch {
        return Err(Closing::Refused(format!(
            "the coordinator's log has come to epoch {newest} and epoch {newest_epoch} was seen here: it is one that was \
             replaced, or its log was restored from a backup: start the one with the newest log"
        )));
    }
    if epoch < sealed_below && !mutated("P19-commands-of-a-sealed-epoch") {
        return Err(Closing::Broken(format!(
            "the coordinator runs under epoch {epoch}, and every epoch below {sealed_below} was sealed: another one has \
             taken over from it, and it has to begin again"
        )));
    }
    Ok(())
}
