//! gRPC's health service: the answer of `/readyz`, for those who ask over gRPC, such as load balancers.
//!
//! Asked when somebody asks, never remembered. A watcher hears of the drain at once, and of anything else within a second.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::readiness::Readiness;
use crate::sessions::session::Shared;

/// How often it is looked for a watcher. Each look reads the log's state.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What can be asked about: everything, and the services one by one. They stand and fall together.
const NAMES: [&str; 4] =
    ["", "lockstep.v1.CoordinatorService", "lockstep.v1.ParticipantService", "lockstep.v1.AdminService"];

pub(super) fn service(shared: Shared) -> HealthServer<Healthy> {
    HealthServer::new(Healthy(shared))
}

/// Answers for this coordinator.
pub(super) struct Healthy(Shared);

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !NAMES.contains(&name.as_str()) {
            return Err(Status::not_found("there is no service of that name here"));
        }
        Ok(answer(status(&self.0).await))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Ends when the process does: a stream that stays open would hold its end up.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        let known = NAMES.contains(&name.as_str());
        let changes = futures::stream::unfold((self.0.clone(), None), move |(shared, told)| async move {
            let now = next(&shared, known, told).await?;
            Some((Ok(answer(now).into_inner()), (shared, Some(now))))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// The next thing to tell a watcher who was told this; `None` when there is nothing more to tell.
async fn next(shared: &Shared, known: bool, told: Option<ServingStatus>) -> Option<ServingStatus> {
    let mut draining = shared.draining.is_cancelled();
    loop {
        let now = if known { status(shared).await } else { ServingStatus::ServiceUnknown };
        if told != Some(now) {
            return Some(now);
        }
        tokio::select! {
            // First: who drains may be gone a moment later.
            biased;
            () = shared.draining.cancelled(), if !draining => draining = true,
            () = shared.shutdown.cancelled() => return None,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn status(shared: &Shared) -> ServingStatus {
    if Readiness::of(shared).await.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn answer(status: ServingStatus) -> Response<HealthCheckResponse> {
    Response::new(HealthCheckResponse { status: status.into() })
}
