//! Questions to the databases of attached participants, asked through them for a person who looks.
//!
//! Nothing is concluded from an answer here: it is shown, and where an operator acts on it, `rpc::admin` says what it proves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_proto::{ClusterId, Gtrid, ResourceManagerName, v1};
use tokio::sync::oneshot;

use super::outbox::Outbox;
use crate::engine::clock::Clock;

/// How long an answer is waited for: a database that is up answers in milliseconds, and a person waits.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    questions: BTreeMap<u64, (ResourceManagerName, oneshot::Sender<v1::Inspection>)>,
}

/// Questions that wait for an answer. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Inspections(Arc<Mutex<Waiting>>);

/// What one resource manager answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who.
    pub resource_manager: ResourceManagerName,
    /// What, or why there is no answer.
    pub inspection: Result<v1::Inspection, String>,
    /// How long it took.
    pub took: Duration,
}

impl Inspections {
    /// Nothing in here can be half done: each use is one plain change of a map.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one participant what its database holds of this transaction, or, with `None`, which branches it holds prepared.
    pub async fn ask(
        &self,
        cluster: ClusterId,
        name: ResourceManagerName,
        outbox: &Outbox,
        gtrid: Option<Gtrid>,
    ) -> Answer {
        let clock = Clock::start();
        let (sender, receiver) = oneshot::channel();
        let question = {
            let mut waiting = self.waiting();
            waiting.last += 1;
            let question = waiting.last;
            waiting.questions.insert(question, (name.clone(), sender));
            question
        };
        let gtrid = gtrid.map_or(String::new(), |gtrid| gtrid.to_string());
        outbox.answer(v1::coordinator_message::Kind::Inspect(v1::Inspect {
            question,
            gtrid,
            cluster: cluster.to_string(),
        }));
        let answered = tokio::time::timeout(PATIENCE, receiver).await;
        self.waiting().questions.remove(&question);
        let inspection = match answered {
            Ok(Ok(inspection)) if inspection.error.is_empty() => Ok(inspection),
            Ok(Ok(inspection)) => Err(inspection.error),
            Ok(Err(_)) | Err(_) => Err(format!("it did not answer within {PATIENCE:?}")),
        };
        Answer { resource_manager: name, inspection, took: clock.now().monotonic }
    }

    /// A participant's answer. One that nobody waits for, or that was asked of another one, is left alone.
    pub fn answered(&self, name: &ResourceManagerName, inspection: v1::Inspection) {
        let mut waiting = self.waiting();
        let asked = waiting.questions.get(&inspection.question).is_some_and(|(of, _)| of == name);
        if asked && let Some((_, sender)) = waiting.questions.remove(&inspection.question) {
            // Whoever asked has given up.
            let _gone = sender.send(inspection);
        }
    }
}
