//! Where spans go: to a collector, over OTLP, if the environment names one.
//!
//! The variables are OpenTelemetry's own, and docs/tracing.md lists those that count. Without one of them there is no tracer, and no
//! span is ever made. Spans wait for the collector in a bounded queue that nobody waits for: a collector that is slow, or gone,
//! loses spans and slows nothing down.

use std::time::Duration;

use opentelemetry::Key;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL_GRPC,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, SpanExporter,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::traces::Traces;

/// How long the last spans may take to leave when the process ends. A collector that does not answer must not keep it.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// What the process is called in traces, unless the environment says otherwise.
const SERVICE: &str = "lockstep";
/// What OpenTelemetry calls a process that nobody gave a name.
const UNNAMED: &str = "unknown_service";

/// What the environment asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// No traces.
    Nothing,
    /// Traces, over gRPC.
    Otlp,
    /// Something that is not there: why.
    Impossible(String),
}

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// As the environment says; `None` if it asks for none. What is set wrongly costs the traces and nothing else: it is told in
    /// the log. Needs a runtime.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let exporter = match asked(|name| std::env::var(name).ok()) {
            Asked::Nothing => return None,
            Asked::Otlp => SpanExporter::builder().with_tonic().build().map_err(|error| error.to_string()),
            Asked::Impossible(why) => Err(why),
        };
        match exporter {
            Ok(exporter) => {
                tracing::info!("traces go to the collector that the environment names");
                let provider = SdkTracerProvider::builder();
                Some(Self(provider.with_batch_exporter(exporter).with_resource(resource()).build()))
            }
            Err(why) => {
                tracing::error!("no traces are recorded: {why}; docs/tracing.md lists what can be set");
                None
            }
        }
    }

    /// Makes the spans that it sends.
    #[must_use]
    pub fn traces(&self) -> Traces {
        Traces::new(self.0.tracer("lockstep-coordinator"))
    }

    /// Sends nothing more, and waits for nothing: after a failure the process has to end.
    pub fn abandon(self) {
        // Dropped, it would send what is left first.
        std::mem::forget(self);
    }

    /// Sends what is left, for at most two seconds.
    pub async fn end(self) {
        // It blocks, and its own limit counts only once the export under way is over.
        let ending = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST_SPANS));
        match tokio::time::timeout(LAST_SPANS, ending).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not sent"),
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not sent"),
            Err(_elapsed) => tracing::warn!("the last spans were not sent: the collector does not answer"),
        }
    }
}

/// Who sends the spans: as the environment says, else [`SERVICE`].
fn resource() -> Resource {
    let given = Resource::builder().build();
    let name = given.get(&Key::from_static_str("service.name")).map(|name| name.to_string());
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    if name.is_none_or(|name| name.starts_with(UNNAMED)) {
        return builder.with_service_name(SERVICE).build();
    }
    builder.build()
}

/// What is set to nothing counts as not set.
fn asked(variable: impl Fn(&str) -> Option<String>) -> Asked {
    let set =
        |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Asked::Nothing;
    }
    let named = [OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT]
        .into_iter()
        .any(|name| set(name).is_some());
    match set("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Asked::Nothing,
        Some("otlp") => {}
        Some(other) => {
            return Asked::Impossible(format!(
                "OTEL_TRACES_EXPORTER is {other}, and otlp and none are possible"
            ));
        }
        None if !named => return Asked::Nothing,
        None => {}
    }
    let protocol = set(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL).or_else(|| set(OTEL_EXPORTER_OTLP_PROTOCOL));
    match protocol.filter(|protocol| protocol != OTEL_EXPORTER_OTLP_PROTOCOL_GRPC) {
        Some(other) => Asked::Impossible(format!("the OTLP protocol is {other}, and grpc is possible")),
        None => Asked::Otlp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_by(variables: &[(&str, &str)]) -> Asked {
        asked(|name| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn nothing_is_traced_unless_the_environment_asks_for_it() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4317");
        assert_eq!(asked_by(&[]), Asked::Nothing);
        assert_eq!(asked_by(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Asked::Nothing);
        assert_eq!(
            asked_by(&[("OTEL_SERVICE_NAME", "pay"), ("OTEL_TRACES_SAMPLER", "always_on")]),
            Asked::Nothing
        );
        for on in [endpoint, traces, ("OTEL_TRACES_EXPORTER", "otlp")] {
            assert_eq!(asked_by(&[on]), Asked::Otlp);
            assert_eq!(asked_by(&[on, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Asked::Otlp);
            assert_eq!(asked_by(&[on, ("OTEL_SDK_DISABLED", "True")]), Asked::Nothing);
        }
        assert_eq!(asked_by(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Asked::Nothing);
        for wrong in [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")] {
            assert!(matches!(asked_by(&[endpoint, wrong]), Asked::Impossible(_)), "{wrong:?}");
        }
        // What is about traces alone counts more.
        let both =
            [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")];
        assert_eq!(asked_by(&[endpoint, both[0], both[1]]), Asked::Otlp);
    }
}
