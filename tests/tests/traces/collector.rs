//! A collector of traces: takes what processes export over OTLP, and gives it back as a tree.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What this process is called in traces: the application and the services are both in it.
pub(crate) const SERVICE: &str = "shop";

/// A span, and the service that it came from.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) service: String,
    pub(crate) span: Span,
}

impl Exported {
    /// An attribute, as text.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        let found = self.span.attributes.iter().find(|attribute| attribute.key == name)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text.clone()),
            Value::IntValue(number) => Some(number.to_string()),
            Value::DoubleValue(number) => Some(number.to_string()),
            Value::BoolValue(set) => Some(set.to_string()),
            other @ (Value::ArrayValue(_)
            | Value::KvlistValue(_)
            | Value::BytesValue(_)
            | Value::StringValueStrindex(_)) => panic!("{name} is {other:?}"),
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }
}

/// What was exported so far. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<Exported>>>);

/// The collector of this process, where it is, and what gives this process' own spans to it. OpenTelemetry has one tracer provider
/// per process, so the tests share it and tell their traces apart.
pub(crate) struct Shared {
    pub(crate) collector: Collector,
    pub(crate) address: SocketAddr,
    provider: SdkTracerProvider,
}

/// Starts it when first asked for; it serves until the process ends.
pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| std::thread::spawn(start).join().expect("the collector starts"))
}

fn start() -> Shared {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let collector = Collector::default();
    let serving = TraceServiceServer::new(collector.clone());
    let (address, provider) = runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(serving).serve_with_incoming(incoming));
        let exporter =
            SpanExporter::builder().with_tonic().with_endpoint(format!("http://{address}")).build().unwrap();
        let resource = Resource::builder().with_attribute(KeyValue::new("service.name", SERVICE)).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        (address, provider)
    });
    opentelemetry::global::set_tracer_provider(provider.clone());
    std::mem::forget(runtime);
    Shared { collector, address, provider }
}

impl Shared {
    /// The application's own tracer.
    pub(crate) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("the application")
    }

    /// Everything of this trace, with what this process still had.
    pub(crate) fn spans(&self, trace: &[u8]) -> Vec<Exported> {
        self.provider.force_flush().unwrap();
        self.collector.spans().into_iter().filter(|exported| exported.span.trace_id == trace).collect()
    }
}

impl Collector {
    pub(crate) fn spans(&self) -> Vec<Exported> {
        self.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let of = Exported { service: String::new(), span: Span { attributes, ..Span::default() } };
            let service = of.attribute("service.name").unwrap_or_default();
            let scopes = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(scopes.map(|span| Exported { service: service.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The spans as one tree, a line each, children behind their parent and indented, in the order of their lines.
///
/// # Errors
/// Which span has a parent that is not there, or that there is not exactly one root.
pub(crate) fn tree(spans: &[Exported]) -> Result<String, String> {
    let mut children: BTreeMap<&[u8], Vec<&Exported>> = BTreeMap::new();
    for exported in spans {
        let parent = exported.span.parent_span_id.as_slice();
        let known = parent.is_empty() || spans.iter().any(|other| other.span.span_id == parent);
        if !known {
            return Err(format!("the parent of {} of {} is not there", exported.span.name, exported.service));
        }
        children.entry(parent).or_default().push(exported);
    }
    let roots = children.get(&[][..]).map_or(0, Vec::len);
    if roots != 1 {
        return Err(format!("there are {roots} roots"));
    }
    Ok(below(&[], &children, 0).join("\n"))
}

fn below(parent: &[u8], children: &BTreeMap<&[u8], Vec<&Exported>>, depth: usize) -> Vec<String> {
    let mut blocks: Vec<Vec<String>> = children
        .get(parent)
        .into_iter()
        .flatten()
        .map(|exported| {
            let resource = exported.attribute("lockstep.resource").map(|name| format!(" [{name}]"));
            let failed = if exported.failed() { " failed" } else { "" };
            let resource = resource.unwrap_or_default();
            let line = format!(
                "{}{}: {}{resource}{failed}",
                "  ".repeat(depth),
                exported.service,
                exported.span.name
            );
            [vec![line], below(&exported.span.span_id, children, depth + 1)].concat()
        })
        .collect();
    blocks.sort();
    blocks.concat()
}
