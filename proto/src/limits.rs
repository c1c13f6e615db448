//! The limits of everything that comes from outside, in one place. Reaching one is an error that the caller can act on.

use std::time::Duration;

/// Branches of one transaction.
pub const MAX_BRANCHES: usize = 256;
/// Labels of one transaction.
pub const MAX_LABELS: usize = 16;
/// Bytes of a label's key, and of its value.
pub const MAX_LABEL_BYTES: usize = 256;
/// Bytes of a transaction's name.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes of a reason or detail that is kept; longer ones are cut at a character boundary.
pub const MAX_DETAIL_BYTES: usize = 1024;
/// The shortest timeout of a transaction.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest timeout of a transaction.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// The timeout of a transaction that asks for none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages in one frame of an attached stream.
pub const MAX_FRAME_MESSAGES: usize = 1024;
/// Bytes of one gRPC message, in both directions: a full frame of the largest messages fits.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Calls that one connection to a coordinator may have open at the same time. No error: an HTTP/2 client keeps further ones back until others
/// have ended. Many, because a commit waits a while for its branches, and a database that is away must not keep others from beginning.
pub const MAX_OPEN_CALLS: u32 = 65_536;
/// Bytes that may be unread on one connection, each way: HTTP/2's window, which a sender does not exceed. Throughput needs a hundredth of it, but h2
/// (since 0.4.19) closes a connection, with every call on it, when more than half of the window is taken by small frames that nobody has read
/// yet, or that came for a call that is gone: 256 bytes for each, less what is in it. A coordinator that was stopped for a moment finds
/// one for each open call. What came for a call that is gone counts as long as the connection lasts, which is some 150,000 of them.
pub const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
const _: () = assert!(CONNECTION_WINDOW / 2 >= 2 * MAX_OPEN_CALLS * 256, "a call's, and as many on streams");
/// Branches in one report, and rows in one reconciliation.
pub const MAX_REPORT_ENTRIES: usize = 1024;
/// Epochs of which a participant reports the newest log position when it attaches: the newest ones. Far more than there are nodes.
pub const MAX_SEEN_EPOCHS: usize = 1024;
/// Coordinators on one decision log that are told of.
pub const MAX_NODES: usize = 64;
/// Bytes of a coordinator's address.
pub const MAX_ADDRESS_BYTES: usize = 255;
/// The version of the participant protocol that this code speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Cuts `text` to at most `max` bytes, at a character boundary.
///
/// ```
/// assert_eq!(lockstep_proto::limits::cut("größer", 3), "gr");
/// ```
#[must_use]
pub fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
