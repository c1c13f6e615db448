//! Who is attached now, and what is known of each resource manager.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_proto::v1::coordinator_message::Kind;
use lockstep_proto::{Gtrid, InstanceId, ResourceManagerId, ResourceManagerName, Xid, v1};
use tokio_util::sync::CancellationToken;

use crate::decision_log::KnownResourceManager;
use crate::engine::clock::unix_ms;
use crate::engine::delivery::SessionId;

use super::outbox::Outbox;

/// One attached session.
#[derive(Debug)]
pub struct Attached {
    /// Which process it is.
    pub instance: InstanceId,
    /// What it serves.
    pub resource_manager: ResourceManagerName,
    /// What it is written to.
    pub outbox: Outbox,
    /// Ends it.
    pub stop: CancellationToken,
}

/// What is known of a resource manager, and why nothing may be presumed of it, if so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the log knows it.
    pub known: KnownResourceManager,
    /// The log does not have `known` in this form yet.
    pub changed: bool,
    /// Why its branches are not presumed rolled back; empty if they are.
    pub problem: String,
    /// Since when it has no session, in milliseconds since 1970; 0 while it has one. At the start: since then.
    pub down_since_ms: u64,
    /// The newest attach that was refused, if none has succeeded since.
    pub refused: Option<Refused>,
    /// Prepared branches that its last listing had, and that the log can say nothing about.
    pub orphans: BTreeMap<Xid, Orphan>,
    /// Parts of the listing that is not complete yet.
    listing: BTreeMap<Xid, Orphan>,
}

/// An attach that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: String,
    /// Where the database is now, if that is why.
    pub location: Option<String>,
}

/// A prepared branch that this coordinator cannot answer for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Why not.
    pub why: &'static str,
    /// When it was first listed, in milliseconds since 1970.
    pub since_ms: u64,
}

impl Entry {
    fn new(known: KnownResourceManager, changed: bool) -> Self {
        Self {
            known,
            changed,
            problem: String::new(),
            down_since_ms: unix_ms(),
            refused: None,
            orphans: BTreeMap::new(),
            listing: BTreeMap::new(),
        }
    }
}

/// An attached session, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The session's number.
    pub session: SessionId,
    /// Which process it is.
    pub instance: InstanceId,
}

#[derive(Debug, Default)]
struct State {
    last_session: u64,
    sessions: BTreeMap<SessionId, Attached>,
    resource_managers: BTreeMap<ResourceManagerName, Entry>,
    /// Who shares the decision log; empty if it is not shared.
    nodes: Vec<v1::Node>,
}

/// Cheap to clone. Its lock is held only for a look or a change, never over a wait.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<State>>);

impl Registry {
    /// With what the log knows.
    #[must_use]
    pub fn new(known: Vec<KnownResourceManager>) -> Self {
        let registry = Self::default();
        let entry = |known: KnownResourceManager| (known.name.clone(), Entry::new(known, false));
        registry.state().resource_managers = known.into_iter().map(entry).collect();
        registry
    }

    /// A panic while it was locked would have ended a task between two plain assignments at worst.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session under a number of its own, and tells it who shares the decision log. Earlier sessions of the same instance are
    /// superseded: told to stop.
    pub fn enter(&self, attached: Attached) -> SessionId {
        let mut state = self.state();
        for earlier in state.sessions.values() {
            if earlier.instance == attached.instance && earlier.resource_manager == attached.resource_manager
            {
                earlier.stop.cancel();
            }
        }
        state.last_session += 1;
        let session = SessionId(state.last_session);
        if let Some(entry) = state.resource_managers.get_mut(&attached.resource_manager) {
            entry.down_since_ms = 0;
            entry.refused = None;
        }
        if !state.nodes.is_empty() {
            attached.outbox.answer(Kind::Nodes(v1::Nodes { nodes: state.nodes.clone() }));
        }
        state.sessions.insert(session, attached);
        session
    }

    /// Who shares the decision log: every session is told where that has changed.
    pub fn set_nodes(&self, nodes: Vec<v1::Node>) {
        let mut state = self.state();
        if state.nodes == nodes {
            return;
        }
        for attached in state.sessions.values() {
            attached.outbox.answer(Kind::Nodes(v1::Nodes { nodes: nodes.clone() }));
        }
        state.nodes = nodes;
    }

    /// Who shares the decision log, as every session was told.
    #[must_use]
    pub fn nodes(&self) -> Vec<v1::Node> {
        self.state().nodes.clone()
    }

    /// Takes a session out.
    pub fn leave(&self, session: SessionId) {
        let mut state = self.state();
        let Some(left) = state.sessions.remove(&session) else { return };
        let others = state.sessions.values().any(|other| other.resource_manager == left.resource_manager);
        if let Some(entry) = state.resource_managers.get_mut(&left.resource_manager).filter(|_| !others) {
            entry.down_since_ms = unix_ms();
        }
    }

    /// The sessions of this resource manager.
    #[must_use]
    pub fn instances(&self, name: &ResourceManagerName) -> Vec<Instance> {
        let state = self.state();
        let theirs = state.sessions.iter().filter(|(_, attached)| attached.resource_manager == *name);
        theirs
            .map(|(session, attached)| Instance { session: *session, instance: attached.instance })
            .collect()
    }

    /// One outbox of each attached resource manager, or of this one.
    #[must_use]
    pub fn outboxes(&self, only: Option<&ResourceManagerName>) -> BTreeMap<ResourceManagerName, Outbox> {
        let state = self.state();
        let wanted = |attached: &&Attached| only.is_none_or(|only| attached.resource_manager == *only);
        let attached = state.sessions.values().filter(wanted);
        attached.map(|attached| (attached.resource_manager.clone(), attached.outbox.clone())).collect()
    }

    /// Ends every session of this resource manager.
    pub fn disconnect(&self, name: &ResourceManagerName) {
        let state = self.state();
        let theirs = state.sessions.values().filter(|attached| attached.resource_manager == *name);
        theirs.for_each(|attached| attached.stop.cancel());
    }

    /// Notes that an attach was refused.
    pub fn set_refused(&self, name: &ResourceManagerName, refused: Refused) {
        if let Some(entry) = self.state().resource_managers.get_mut(name) {
            entry.refused = Some(refused);
        }
    }

    /// Whether a retired resource manager has this identity.
    #[must_use]
    pub fn is_retired(&self, identity: ResourceManagerId) -> bool {
        let state = self.state();
        state.resource_managers.values().any(|entry| entry.known.retired && entry.known.identity == identity)
    }

    /// Notes which branches of a part of a listing this coordinator could not answer for; with the last part they replace those of the
    /// listing before.
    pub fn note_orphans(
        &self,
        name: &ResourceManagerName,
        found: impl IntoIterator<Item = (Xid, &'static str)>,
        complete: bool,
    ) {
        let mut state = self.state();
        let Some(entry) = state.resource_managers.get_mut(name) else { return };
        for (xid, why) in found {
            let since_ms = entry.orphans.get(&xid).map_or_else(unix_ms, |before| before.since_ms);
            entry.listing.insert(xid, Orphan { why, since_ms });
        }
        if complete {
            entry.orphans = std::mem::take(&mut entry.listing);
        }
    }

    /// The orphans of this resource manager, by branch.
    #[must_use]
    pub fn orphans(&self, name: &ResourceManagerName) -> BTreeMap<String, Orphan> {
        let state = self.state();
        let orphans = state.resource_managers.get(name).into_iter().flat_map(|entry| &entry.orphans);
        orphans.map(|(xid, orphan)| (xid.bqual.to_string(), orphan.clone())).collect()
    }

    /// The transactions of orphans whose text, or hex digits, begin so.
    #[must_use]
    pub fn orphans_beginning(&self, prefix: &str) -> Vec<Gtrid> {
        let state = self.state();
        let all = state.resource_managers.values().flat_map(|entry| entry.orphans.keys());
        let begins = |gtrid: &Gtrid| {
            let text = gtrid.to_string();
            text.starts_with(prefix) || text.split_once('.').is_some_and(|(_, hex)| hex.starts_with(prefix))
        };
        all.map(|xid| xid.gtrid).filter(begins).collect()
    }

    /// Whether an orphan's transaction begins so.
    #[must_use]
    pub fn has_orphan_of(&self, prefix: &str) -> bool {
        !prefix.is_empty() && !self.orphans_beginning(prefix).is_empty()
    }

    /// Where this resource manager's database is now, if it was refused for that.
    #[must_use]
    pub fn refused_location(&self, name: &ResourceManagerName) -> Option<String> {
        self.state().resource_managers.get(name)?.refused.as_ref()?.location.clone()
    }

    /// An orphan has ended.
    pub fn forget_orphan(&self, xid: &Xid) {
        if let Some(entry) = self.state().resource_managers.get_mut(&xid.bqual.resource_manager()) {
            entry.orphans.remove(xid);
        }
    }

    /// Does something with every attached session's outbox.
    pub fn each_outbox(&self, mut f: impl FnMut(&Outbox)) {
        self.state().sessions.values().for_each(|attached| f(&attached.outbox));
    }

    /// How many sessions each known resource manager has, and what is known of it.
    #[must_use]
    pub fn overview(&self) -> Vec<(Entry, usize)> {
        let state = self.state();
        let count = |name: &ResourceManagerName| {
            state.sessions.values().filter(|attached| attached.resource_manager == *name).count()
        };
        state.resource_managers.values().map(|entry| (entry.clone(), count(&entry.known.name))).collect()
    }

    /// What is known of this resource manager.
    #[must_use]
    pub fn known(&self, name: &ResourceManagerName) -> Option<KnownResourceManager> {
        self.state().resource_managers.get(name).map(|entry| entry.known.clone())
    }

    /// Takes over what the log has been told, or, with `changed`, has to be told at the next occasion.
    pub fn remember(&self, known: KnownResourceManager, changed: bool) {
        let mut state = self.state();
        match state.resource_managers.get_mut(&known.name) {
            Some(entry) => (entry.known, entry.changed) = (known, changed),
            None => {
                state.resource_managers.insert(known.name.clone(), Entry::new(known, changed));
            }
        }
    }

    /// Takes over that this one is gone for good, which another node on the log was told.
    pub fn learn_retired(&self, retired: &KnownResourceManager) {
        let mut state = self.state();
        match state.resource_managers.get_mut(&retired.name) {
            Some(entry) => entry.known.retired = true,
            None => {
                state.resource_managers.insert(retired.name.clone(), Entry::new(retired.clone(), false));
            }
        }
    }

    /// Takes over where this one's database is, which another node on the log was told. Whether it was somewhere else before.
    pub fn learn_location(&self, known: &KnownResourceManager) -> bool {
        let mut state = self.state();
        let Some(entry) = state.resource_managers.get_mut(&known.name) else { return false };
        let moved = !entry.known.location.is_empty() && entry.known.location != known.location;
        if moved {
            entry.known.location.clone_from(&known.location);
        }
        moved
    }

    /// Takes over what the log knows, as far as it is not about to be told something newer.
    pub fn learn(&self, known: Vec<KnownResourceManager>) {
        let mut state = self.state();
        for known in known {
            match state.resource_managers.get_mut(&known.name) {
                Some(entry) if entry.changed => {}
                Some(entry) => entry.known = known,
                None => {
                    let entry = Entry::new(known, false);
                    state.resource_managers.insert(entry.known.name.clone(), entry);
                }
            }
        }
    }

    /// Notes why nothing may be presumed of this resource manager's branches.
    pub fn set_problem(&self, name: &ResourceManagerName, problem: String) {
        if let Some(entry) = self.state().resource_managers.get_mut(name) {
            entry.problem = problem;
        }
    }

    /// Notes that nothing of this resource manager is older than `floor` (P7).
    pub fn set_floor(&self, name: &ResourceManagerName, floor: Gtrid) {
        if let Some(entry) = self.state().resource_managers.get_mut(name)
            && entry.known.floor != Some(floor)
        {
            entry.known.floor = Some(floor);
            entry.changed = true;
        }
    }

    /// What the log has still to be told.
    #[must_use]
    pub fn changed(&self) -> Vec<KnownResourceManager> {
        let state = self.state();
        state
            .resource_managers
            .values()
            .filter(|entry| entry.changed)
            .map(|entry| entry.known.clone())
            .collect()
    }
}
