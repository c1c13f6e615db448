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
            seen: attachment.seen,
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
        let seen = attachment.seen.map_or(0, |seen| seen.epoch.get());
        if let Err(why) = check(&welcome, &attachment, self.highest_epoch.max(seen)) {
            self.close(Closing::Refused(why));
            return;
        }
        self.highest_epoch = self.highest_epoch.max(welcome.position.epoch.get()).max(welcome.sealed_below);
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
        self.effects.push(Effect::Attached(welcome.cluster));
        self.reports.start(now, welcome.report_interval);
        self.phase = Phase::Attached { attachment, welcome };
    }
}

/// Whether this participant may take commands from whoever sent the welcome. `highest_epoch`: of all that it was told, in
/// this process or in what the store has kept.
fn check(welcome: &Welcome, attachment: &Attachment, highest_epoch: u32) -> Result<(), String> {
    if welcome.protocol_version != PROTOCOL_VERSION {
        return Err(format!(
            "the coordinator speaks version {} of the participant protocol and this SDK version {PROTOCOL_VERSION}: \
             bring both to releases that go together",
            welcome.protocol_version
        ));
    }
    if let Some(ours) = attachment.cluster
        && ours != welcome.cluster
        && !mutated("P21-any-cluster-decides")
    {
        return Err(format!(
            "this store belongs to cluster {ours} and the coordinator to cluster {}: \
             check the coordinator's address, and that its data directory is the one that was used before",
            welcome.cluster
        ));
    }
    let epoch = welcome.position.epoch.get();
    if epoch < highest_epoch && !mutated("P19-commands-of-a-sealed-epoch") {
        return Err(format!(
            "the coordinator runs under epoch {epoch} and epoch {highest_epoch} was seen here: it is one that was \
             replaced, or its log was restored from a backup: start the one with the newest log"
        ));
    }
    Ok(())
}
