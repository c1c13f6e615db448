//! The edge: what arrives over gRPC is checked here, once, and what leaves is put into wire types here.
//!
//! One file per call, and one table from errors to statuses ([`status`]). Behind this module there are only checked types.

pub(crate) mod admin;
mod attach;
mod begin;
mod commit;
mod health;
mod http;
mod inquire;
mod readiness;
mod rollback;
pub mod status;

use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use lockstep_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use lockstep_proto::v1::participant_service_server::{ParticipantService, ParticipantServiceServer};
use lockstep_proto::{Gtrid, limits};
use tonic::{Request, Response, Status, Streaming};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::protocol::outcome::{Heuristic, Outcome};
use crate::sessions::session::Shared;
use status::RequestError;

/// Serves all three services. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    shared: Shared,
    default_timeout: std::time::Duration,
    started_ms: u64,
}

impl Services {
    /// Over this engine and these sessions.
    #[must_use]
    pub fn new(shared: Shared, default_timeout: std::time::Duration) -> Self {
        Self { shared, default_timeout, started_ms: crate::engine::clock::unix_ms() }
    }

    /// The three services, with their limits, gRPC's own about them (health, reflection), and what is asked for over HTTP/1.1 on
    /// the same address, to be served.
    #[must_use]
    pub fn router(self) -> tonic::service::Routes {
        let max = limits::MAX_FRAME_BYTES;
        let shared = self.shared.clone();
        tonic::service::Routes::from(http::router(shared.clone()))
            .add_service(health::service(shared))
            .add_service(reflection())
            .add_service(CoordinatorServiceServer::new(self.clone()).max_decoding_message_size(max))
            .add_service(ParticipantServiceServer::new(self.clone()).max_decoding_message_size(max))
            .add_service(AdminServiceServer::new(self).max_decoding_message_size(max))
    }

    /// The transaction that a request names, if it can be one of this cluster's.
    fn gtrid(&self, gtrid: &str, cluster: &str) -> Result<Gtrid, RequestError> {
        let gtrid: Gtrid = gtrid.parse()?;
        let ours = self.shared.engine.log().cluster();
        // A caller that has only the gtrid, such as a person, may leave the cluster out.
        if !cluster.is_empty() && cluster.parse::<lockstep_proto::ClusterId>()? != ours {
            return Err(RequestError::ForeignCluster { theirs: cluster.to_owned(), ours });
        }
        Ok(gtrid)
    }
}

#[tonic::async_trait]
impl CoordinatorService for Services {
    async fn begin(&self, request: Request<v1::BeginRequest>) -> Result<Response<v1::BeginResponse>, Status> {
        let (metadata, _extensions, request) = request.into_parts();
        Ok(Response::new(begin::begin(self, &metadata, request).await?))
    }

    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        Ok(Response::new(commit::commit(self, request.into_inner()).await?))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        Ok(Response::new(rollback::rollback(self, request.into_inner()).await?))
    }

    async fn inquire(
        &self,
        request: Request<v1::InquireRequest>,
    ) -> Result<Response<v1::InquireResponse>, Status> {
        Ok(Response::new(inquire::inquire(self, request.into_inner()).await?))
    }

    async fn list_nodes(
        &self,
        _request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let epoch = self.shared.engine.log().position().epoch.get();
        Ok(Response::new(v1::ListNodesResponse { epoch, nodes: self.shared.registry.nodes() }))
    }
}

#[tonic::async_trait]
impl ParticipantService for Services {
    type AttachStream = attach::Frames;

    async fn attach(
        &self,
        request: Request<Streaming<v1::ParticipantFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Ok(Response::new(attach::attach(&self.shared, request.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl AdminService for Services {
    type ExportStream = admin::export::Records;

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        Ok(Response::new(admin::list::list(self, request.into_inner()).await?))
    }

    async fn show_transaction(
        &self,
        request: Request<v1::ShowTransactionRequest>,
    ) -> Result<Response<v1::ShowTransactionResponse>, Status> {
        Ok(Response::new(admin::show::show(self, request.into_inner()).await?))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(admin::status::status(self).await?))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let services = self.clone();
        // In a task of its own: a caller that goes away must not leave half of it behind.
        let acting = tokio::spawn(async move { admin::act::act(&services, request.into_inner()).await });
        let acted = acting.await.map_err(|panic| Status::internal(panic.to_string()))?;
        Ok(Response::new(acted?))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        Ok(Response::new(admin::audit::list(self, request.into_inner()).await?))
    }

    async fn list_participants(
        &self,
        request: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        Ok(Response::new(admin::participants::list(self, request.into_inner()).await?))
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectResponse>, Status> {
        Ok(Response::new(admin::inspect::inspect(self, request.into_inner()).await?))
    }

    async fn export(
        &self,
        _request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Ok(Response::new(admin::export::export(self).await?))
    }
}

/// Tells what can be called here, for tools such as grpcurl.
fn reflection() -> ServerReflectionServer<impl ServerReflection> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(lockstep_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    builder.build_v1().expect("the descriptors were made by the compiler of the services")
}

/// The wire's word for an outcome; `None`: undecided.
fn wire_outcome(outcome: Option<Outcome>) -> v1::Outcome {
    match outcome {
        None => v1::Outcome::Undecided,
        Some(Outcome::Committed) => v1::Outcome::Committed,
        Some(Outcome::RolledBack) => v1::Outcome::RolledBack,
        Some(Outcome::NothingToCommit) => v1::Outcome::NothingToCommit,
        Some(Outcome::Heuristic(
            Heuristic::Commit | Heuristic::Rollback | Heuristic::Mixed | Heuristic::Hazard,
        )) => v1::Outcome::Heuristic,
        Some(Outcome::Unknown) => v1::Outcome::Unknown,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
