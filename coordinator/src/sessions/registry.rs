//! Who is attached now, and what is known of each resource manager.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_proto::{Gtrid, InstanceId, ResourceManagerName};
use tokio_util::sync::CancellationToken;

use crate::decision_log::KnownResourceManager;
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
}

#[derive(Debug, Default)]
struct State {
    last_session: u64,
    sessions: BTreeMap<SessionId, Attached>,
    resource_managers: BTreeMap<ResourceManagerName, Entry>,
}

/// Cheap to clone. Its lock is held only for a look or a change, never over a wait.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<State>>);

impl Registry {
    /// With what the log knows.
    #[must_use]
    pub fn new(known: Vec<KnownResourceManager>) -> Self {
        let registry = Self::default();
        let entry = |known: KnownResourceManager| {
            (known.name.clone(), Entry { known, changed: false, problem: String::new() })
        };
        registry.state().resource_managers = known.into_iter().map(entry).collect();
        registry
    }

    /// A panic while it was locked would have ended a task between two plain assignments at worst.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session under a number of its own. Earlier sessions of the same instance are superseded: told to stop.
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
        state.sessions.insert(session, attached);
        session
    }

    /// Takes a session out.
    pub fn leave(&self, session: SessionId) {
        self.state().sessions.remove(&session);
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
        let problem =
            state.resource_managers.get(&known.name).map_or(String::new(), |entry| entry.problem.clone());
        state.resource_managers.insert(known.name.clone(), Entry { known, changed, problem });
    }

    /// Takes over what the log knows, as far as it is not about to be told something newer.
    pub fn learn(&self, known: Vec<KnownResourceManager>) {
        let mut state = self.state();
        for known in known {
            match state.resource_managers.get_mut(&known.name) {
                Some(entry) if entry.changed => {}
                Some(entry) => entry.known = known,
                None => {
                    let entry = Entry { known, changed: false, problem: String::new() };
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
