//! Who is attached now, and what is known of each resource manager.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The log does not have the floor yet.
    pub new_floor: bool,
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
    fn new(known: KnownResourceManager) -> Self {
        Self {
            known,
            new_floor: false,
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
        let entry = |known: KnownResourceManager| (known.name.clone(), Entry::new(known));
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

    /// Transactions with a branch that nobody answers for.
    #[must_use]
    pub fn orphan_transactions(&self) -> usize {
        let state = self.state();
        let orphans = state.resource_managers.values().flat_map(|entry| entry.orphans.keys());
        orphans.map(|xid| xid.gtrid).collect::<BTreeSet<_>>().len()
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

    /// Takes over what the log has been told.
    pub fn remember(&self, known: KnownResourceManager) {
        self.learn(vec![known]);
    }

    /// Takes over that this one is gone for good, which another node on the log was told.
    pub fn learn_retired(&self, retired: &KnownResourceManager) {
        let mut state = self.state();
        match state.resource_managers.get_mut(&retired.name) {
            Some(entry) => entry.known.retired = true,
            None => {
                state.resource_managers.insert(retired.name.clone(), Entry::new(retired.clone()));
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

    /// Takes over what the log knows, but for a floor that it is about to be told.
    pub fn learn(&self, known: Vec<KnownResourceManager>) {
        let mut state = self.state();
        for known in known {
            match state.resource_managers.get_mut(&known.name) {
                Some(entry) => {
                    let floor = if entry.new_floor { entry.known.floor } else { known.floor };
                    // Nobody takes a retirement back: what says otherwise was read before.
                    let retired = entry.known.retired || known.retired;
                    entry.known = KnownResourceManager { floor, retired, ..known };
                }
                None => {
                    let entry = Entry::new(known);
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
            entry.new_floor = true;
        }
    }

    /// The floors that the log has still to be told.
    #[must_use]
    pub fn new_floors(&self) -> Vec<(ResourceManagerName, Gtrid)> {
        let state = self.state();
        let new = state.resource_managers.iter().filter(|(_, entry)| entry.new_floor);
        new.filter_map(|(name, entry)| Some((name.clone(), entry.known.floor?))).collect()
    }

    /// The log has been told this floor; a newer one may have come meanwhile.
    pub fn floor_is_remembered(&self, name: &ResourceManagerName, floor: Gtrid) {
        if let Some(entry) = self.state().resource_managers.get_mut(name)
            && entry.known.floor == Some(floor)
        {
            entry.new_floor = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Gtrid, KnownResourceManager, Registry, ResourceManagerId};

    fn known(location: &str) -> KnownResourceManager {
        KnownResourceManager {
            name: "bank-a".parse().expect("a name"),
            identity: ResourceManagerId::from_bytes([1; 16]),
            location: location.to_owned(),
            timeline: 1,
            floor: None,
            retired: false,
        }
    }

    fn floor(ms: u64) -> Gtrid {
        Gtrid::new(lockstep_proto::Epoch::new(1).expect("not 0"), ms, [1; 10])
    }

    /// P21: what an operator has had noted meanwhile, here or at another node, holds.
    #[test]
    fn a_floor_that_the_log_is_about_to_be_told_takes_no_rebind_back() {
        let registry = Registry::new(vec![known("old")]);
        let name = known("old").name;
        registry.set_floor(&name, floor(5));
        let told = registry.new_floors();
        assert_eq!(told, [(name.clone(), floor(5))]);
        registry.remember(known("new"));
        registry.set_floor(&name, floor(6));
        registry.floor_is_remembered(&name, floor(5));
        let now = registry.known(&name).expect("it is known");
        assert_eq!((now.location.as_str(), now.floor), ("new", Some(floor(6))));
        assert_eq!(registry.new_floors(), [(name.clone(), floor(6))]);
        registry.floor_is_remembered(&name, floor(6));
        assert_eq!(registry.new_floors(), []);
    }

    /// P21: a session at the place that was given up is ended when another node tells of it.
    #[test]
    fn a_rebind_at_another_node_is_learned() {
        let registry = Registry::new(vec![known("old")]);
        assert!(!registry.learn_location(&known("old")));
        assert!(registry.learn_location(&known("new")));
        assert_eq!(registry.known(&known("").name).expect("it is known").location, "new");
        let first = Registry::new(vec![known("")]);
        assert!(!first.learn_location(&known("new")), "nobody has served it at any place yet");
    }
}
