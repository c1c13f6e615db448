//! Begin: the limits of a new transaction.

use std::time::Duration;

use lockstep_proto::{TRACE_PARENT_HEADER, TraceParent, limits, v1};
use tonic::metadata::MetadataMap;

use super::Services;
use super::status::RequestError;
use crate::protocol::record::About;

pub(super) async fn begin(
    services: &Services,
    metadata: &MetadataMap,
    request: v1::BeginRequest,
) -> Result<v1::BeginResponse, RequestError> {
    let timeout = timeout(request.timeout_ms, services.default_timeout)?;
    let about = about(request)?;
    let engine = &services.shared.engine;
    let (gtrid, trace) = engine.begin(about, timeout, caller(metadata)).await?;
    Ok(v1::BeginResponse {
        gtrid: gtrid.to_string(),
        cluster: engine.log().cluster().to_string(),
        timeout_ms: u64::try_from(timeout.as_millis()).expect("at most a day"),
        traceparent: trace.map_or(String::new(), |trace| trace.to_string()),
    })
}

/// The span that the caller is in, if it says so: one that means nothing, or comes twice, is none.
fn caller(metadata: &MetadataMap) -> Option<TraceParent> {
    let mut values = metadata.get_all(TRACE_PARENT_HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    value.to_str().ok()?.parse().ok()
}

fn timeout(asked_ms: u64, default: Duration) -> Result<Duration, RequestError> {
    if asked_ms == 0 {
        return Ok(default);
    }
    let asked = Duration::from_millis(asked_ms);
    if (limits::MIN_TIMEOUT..=limits::MAX_TIMEOUT).contains(&asked) {
        return Ok(asked);
    }
    Err(RequestError::Timeout(asked_ms))
}

fn about(request: v1::BeginRequest) -> Result<About, RequestError> {
    if request.name.len() > limits::MAX_NAME_BYTES {
        return Err(RequestError::Name(request.name.len()));
    }
    if request.labels.len() > limits::MAX_LABELS {
        return Err(RequestError::Labels(request.labels.len()));
    }
    let too_long = |(key, value): &(&String, &String)| {
        key.is_empty() || key.len() > limits::MAX_LABEL_BYTES || value.len() > limits::MAX_LABEL_BYTES
    };
    if let Some((key, _)) = request.labels.iter().find(too_long) {
        return Err(RequestError::Label(limits::cut(key, limits::MAX_NAME_BYTES).to_owned()));
    }
    Ok(About { name: request.name, labels: request.labels.into_iter().collect(), trace: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: String, labels: Vec<(String, String)>) -> v1::BeginRequest {
        v1::BeginRequest { timeout_ms: 0, name, labels: labels.into_iter().collect() }
    }

    fn labels(count: usize, bytes: usize) -> Vec<(String, String)> {
        (0..count).map(|n| (format!("{n:0bytes$}"), "v".repeat(bytes))).collect()
    }

    #[test]
    fn a_timeout_is_within_100_ms_and_24_h() {
        let default = Duration::from_secs(30);
        assert_eq!(timeout(0, default).unwrap(), default);
        for good in [100, 86_400_000] {
            assert_eq!(timeout(good, default).unwrap(), Duration::from_millis(good));
        }
        for bad in [1, 99, 86_400_001, u64::MAX] {
            assert!(matches!(timeout(bad, default), Err(RequestError::Timeout(_))), "{bad}");
        }
    }

    #[test]
    fn names_and_labels_have_exact_limits() {
        assert!(about(request("n".repeat(64), labels(16, 256))).is_ok());
        assert!(matches!(about(request("n".repeat(65), vec![])), Err(RequestError::Name(65))));
        assert!(matches!(about(request(String::new(), labels(17, 2))), Err(RequestError::Labels(17))));
        assert!(matches!(about(request(String::new(), labels(1, 257))), Err(RequestError::Label(_))));
        let no_key = vec![(String::new(), "v".to_owned())];
        assert!(matches!(about(request(String::new(), no_key)), Err(RequestError::Label(_))));
    }
}
