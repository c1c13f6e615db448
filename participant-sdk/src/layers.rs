//! Where the context enters and leaves a service: a tower layer for each side, an axum extractor, and what tonic needs.
//!
//! On a server, [`ContextLayer`] reads the header once and refuses a malformed one before any handler runs. A request
//! without the header passes: not every call of a service belongs to a transaction. Where one has to, the handler takes
//! [`Context`] (axum) or calls [`Context::from_request`] (tonic), and a missing header is an error there. Both work
//! without the layer too.

use std::task::{Context as Poller, Poll};

use futures::future::{Either, MapOk, Ready, ready};
use futures::{FutureExt as _, TryFutureExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tower::{Layer, Service};

use crate::context::Context;
use crate::error::ContextError;

/// For servers: puts the [`Context`] of a request that has one into its extensions.
///
/// A malformed header is answered at once, with 400, or with `INVALID_ARGUMENT` where the request is gRPC.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContextLayer;

impl<S> Layer<S> for ContextLayer {
    type Service = ContextService<S>;

    fn layer(&self, inner: S) -> ContextService<S> {
        ContextService { inner }
    }
}

/// What [`ContextLayer`] wraps a service in.
#[derive(Debug, Clone)]
pub struct ContextService<S> {
    inner: S,
}

type Wrap<B> = fn(Response<B>) -> Response<Body>;

impl<S, B, R> Service<Request<B>> for ContextService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<MapOk<S::Future, Wrap<R>>, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, poller: &mut Poller<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(poller)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match Context::from_headers(request.headers()) {
            Ok(None) => {}
            Ok(Some(context)) => drop(request.extensions_mut().insert(context)),
            Err(error) => return ready(Ok(refusal(&request, error))).right_future(),
        }
        let wrap: Wrap<R> = |response| response.map(Body::new);
        self.inner.call(request).map_ok(wrap).left_future()
    }
}

/// So that the layer can stand around a single gRPC service too.
impl<S: NamedService> NamedService for ContextService<S> {
    const NAME: &'static str = S::NAME;
}

fn refusal<B>(request: &Request<B>, error: ContextError) -> Response<Body> {
    let content = request.headers().get(header::CONTENT_TYPE);
    if content.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return Status::from(error).into_http();
    }
    let mut response = Response::new(Body::new(error.to_string()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

impl From<ContextError> for Status {
    fn from(error: ContextError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl Context {
    /// For callers: a layer that sends this context along with every request of a client.
    #[must_use]
    pub const fn layer(&self) -> InjectContextLayer {
        InjectContextLayer { context: *self }
    }

    /// Puts the context into the metadata of a gRPC request, in place of one that is there.
    pub fn inject_metadata(&self, metadata: &mut MetadataMap) {
        let mut headers = std::mem::take(metadata).into_headers();
        self.inject(&mut headers);
        *metadata = MetadataMap::from_headers(headers);
    }

    /// The context of a gRPC request: what [`ContextLayer`] has read, else the metadata.
    ///
    /// # Errors
    /// If there is none, or it is malformed. Becomes an `INVALID_ARGUMENT` status by `?`.
    pub fn from_request<T>(request: &tonic::Request<T>) -> Result<Self, ContextError> {
        if let Some(context) = request.extensions().get::<Self>() {
            return Ok(*context);
        }
        Self::from_headers(request.metadata().as_ref())?.ok_or(ContextError::Missing)
    }
}

/// See [`Context::layer`].
#[derive(Debug, Clone, Copy)]
pub struct InjectContextLayer {
    context: Context,
}

impl<S> Layer<S> for InjectContextLayer {
    type Service = InjectContext<S>;

    fn layer(&self, inner: S) -> InjectContext<S> {
        InjectContext { inner, context: self.context }
    }
}

/// What [`InjectContextLayer`] wraps a client's service in.
#[derive(Debug, Clone)]
pub struct InjectContext<S> {
    inner: S,
    context: Context,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for InjectContext<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, poller: &mut Poller<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(poller)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        self.context.inject(request.headers_mut());
        self.inner.call(request)
    }
}

#[cfg(feature = "axum")]
mod extract {
    use axum::extract::{FromRequestParts, OptionalFromRequestParts};
    use axum::response::{IntoResponse, Response};
    use http::StatusCode;
    use http::request::Parts;

    use super::{Context, ContextError};

    impl IntoResponse for ContextError {
        fn into_response(self) -> Response {
            (StatusCode::BAD_REQUEST, self.to_string()).into_response()
        }
    }

    /// 400 if the header is missing or malformed. `Option<Context>` takes a request without the header too.
    impl<S: Sync> FromRequestParts<S> for Context {
        type Rejection = ContextError;

        async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ContextError> {
            let found = <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
            found.ok_or(ContextError::Missing)
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for Context {
        type Rejection = ContextError;

        async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, ContextError> {
            match parts.extensions.get::<Self>() {
                Some(context) => Ok(Some(*context)),
                None => Self::from_headers(&parts.headers),
            }
        }
    }
}
