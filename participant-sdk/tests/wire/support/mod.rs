//! What the tests of this crate share: a store of files that can really prepare, and a coordinator that says what a test has
//! it say, over real sockets.

pub(crate) mod coordinator;
pub(crate) mod store;

use std::time::Duration;

/// Longer than anything here takes, shorter than anyone's patience.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("{what} did not happen within {SOON:?}"),
    }
}

/// Waits until something holds that nothing tells.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
