//! A branch's local transaction while it is open, and what is looked at before it may end.

use lockstep_proto::museum::mutated;
use sqlx::{AssertSqlSafe, SqliteConnection};
use tokio::time::Instant;

use super::capture;
use super::connection;
use super::entry::POSITION_BYTES;
use super::evidence::{self, Kind, NewEvidence};
use super::turn::Turn;
use super::writer::Writer;
use crate::resource::{BranchId, ResourceError};

/// An open branch: the file's only writer, with its transaction begun.
///
/// Dropping it interrupts what runs on the connection and closes it; SQLite then rolls back. The next branch gets a new
/// connection, which waits for SQLite's lock until the old one is closed.
#[derive(Debug)]
pub struct OpenBranch {
    /// `None` once it was taken out to be used again.
    writer: Option<Writer>,
    branch: BranchId,
    deadline: Instant,
    deadline_ms: i64,
    header: Header,
    // After the writer: the turn is passed on when the connection is being closed.
    turn: Option<Turn>,
}

/// The parts of the database's header that are not captured, and so must not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
struct Header {
    schema_version: i64,
    user_version: i64,
    application_id: i64,
}

/// What a handler may have done to its connection.
#[derive(Debug, sqlx::FromRow)]
struct Condition {
    #[sqlx(flatten)]
    header: Header,
    recursive_triggers: bool,
    attached: Option<String>,
    triggers: i64,
}

const HEADER: &str = "SELECT schema_version, user_version, application_id \
     FROM pragma_schema_version, pragma_user_version, pragma_application_id";

const CONDITION: &str = "SELECT schema_version, user_version, application_id, recursive_triggers, \
     (SELECT group_concat(name, ', ') FROM pragma_database_list WHERE name NOT IN ('main', 'temp')) AS attached, \
     (SELECT count(*) FROM temp.sqlite_schema WHERE type = 'trigger' AND name GLOB 'lockstep_[0-9]*') AS triggers \
     FROM pragma_schema_version, pragma_user_version, pragma_application_id, pragma_recursive_triggers";

/// Why an open branch does not end as it was asked to.
#[derive(Debug)]
pub(super) enum Refused {
    /// For good: it is to be rolled back.
    No(String),
    /// Its service may have committed a part of it.
    Hazard(String),
    /// There is evidence of its end already, from elsewhere.
    Ended(Kind),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::No(format!("the database refused: {error}"))
    }
}

impl OpenBranch {
    /// Makes the branch's savepoint in the transaction that `writer` has begun.
    pub(super) async fn new(
        mut writer: Writer,
        turn: Turn,
        branch: &BranchId,
        deadline: Instant,
        deadline_ms: i64,
    ) -> Result<Self, ResourceError> {
        let header = begin(&mut writer.connection, branch)
            .await
            .map_err(connection::unavailable("beginning the branch"))?;
        writer.gate.lend(deadline);
        Ok(Self {
            writer: Some(writer),
            branch: branch.clone(),
            deadline,
            deadline_ms,
            header,
            turn: Some(turn),
        })
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().expect("the writer is taken out by what consumes the branch")
    }

    /// What the handler works with.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.writer().connection
    }

    /// The same, shared.
    pub(super) fn connection_ref(&self) -> &SqliteConnection {
        &self.writer.as_ref().expect("the writer is taken out by what consumes the branch").connection
    }

    /// Which branch it is.
    pub(super) fn branch(&self) -> &BranchId {
        &self.branch
    }

    /// The branch's deadline, in milliseconds since 1970.
    pub(super) fn deadline_ms(&self) -> i64 {
        self.deadline_ms
    }

    /// Ends what the handler could do, and makes sure that the transaction is the one that was begun, and holds nothing that
    /// cannot be captured (P16, P26). After the deadline it is too late (P19).
    pub(super) async fn take_back(&mut self) -> Result<(), Refused> {
        let in_time = Instant::now() < self.deadline;
        let savepoint = savepoint(&self.branch);
        let header = self.header;
        let writer = self.writer();
        let commit_was_refused = writer.gate.take_back();
        let is_guarded = writer.is_guarded();
        if commit_was_refused {
            return Err(no("the service tried to commit by itself, which a branch's connection does not do"));
        }
        if !in_time && !mutated("P19-prepares-after-the-deadline") {
            return Err(no("its deadline has passed"));
        }
        let released = sqlx::raw_sql(AssertSqlSafe(format!("RELEASE {savepoint}")));
        match (released.execute(&mut writer.connection).await, is_guarded) {
            (Ok(_), true) => {}
            (Ok(_), false) => return Err(no("the service replaced the connection's commit hook")),
            (Err(error), true) => {
                return Err(no(&format!(
                    "the branch's local transaction was ended, by an error or by the service itself ({error})"
                )));
            }
            (Err(_), false) => {
                return Err(Refused::Hazard(
                    "the service replaced the connection's commit hook and ended the branch's local transaction: what it \
                     committed is not known"
                        .to_owned(),
                ));
            }
        }
        let condition: Condition = sqlx::query_as(CONDITION).fetch_one(&mut writer.connection).await?;
        condition.check(header, capture::trigger_count(&writer.schema)).map_err(Refused::No)
    }

    /// What the branch changed, as `reader` tells it from the committed state.
    pub(super) async fn changes(
        &mut self,
        reader: &mut SqliteConnection,
    ) -> Result<capture::Changes, capture::CaptureError> {
        let writer = self.writer();
        let changes = capture::changes(&mut writer.connection, reader, &writer.schema).await?;
        self.clear().await?;
        Ok(changes)
    }

    /// Whether a row was touched, or the capture cannot tell.
    pub(super) async fn has_written(&mut self) -> bool {
        let writer = self.writer();
        !matches!(capture::has_touched(&mut writer.connection, &writer.schema).await, Ok(false))
    }

    /// Forgets which rows were touched.
    pub(super) async fn clear(&mut self) -> Result<(), sqlx::Error> {
        let writer = self.writer();
        capture::clear(&mut writer.connection, &writer.schema).await
    }

    /// Whether foreign keys may be checked as late as at COMMIT.
    pub(super) fn defers_keys(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.schema.defers_keys)
    }

    /// Writes the branch's evidence into its transaction.
    pub(super) async fn insert_evidence(&mut self, position: [u8; POSITION_BYTES]) -> Result<(), Refused> {
        let (branch, deadline_ms) = (self.branch.clone(), self.deadline_ms);
        let row = NewEvidence { branch: &branch, kind: Kind::Branch, position, deadline_ms };
        match evidence::insert(self.connection(), &row).await? {
            None => Ok(()),
            Some(kind) => Err(Refused::Ended(kind)),
        }
    }

    /// The parts, for what comes after the open branch.
    pub(super) fn into_parts(mut self) -> (Writer, Turn) {
        let writer = self.writer.take().expect("the branch was consumed once");
        let turn = self.turn.take().expect("the branch was consumed once");
        (writer, turn)
    }

    /// Rolls back by closing the connection; done when this returns.
    pub(super) async fn close(self) {
        let (writer, _turn) = self.into_parts();
        writer.close().await;
    }
}

impl Drop for OpenBranch {
    fn drop(&mut self) {
        if let Some(writer) = &self.writer {
            writer.gate.stop();
        }
    }
}

fn no(why: &str) -> Refused {
    Refused::No(why.to_owned())
}

/// The savepoint's name, quoted. It is ours alone: a handler's own transaction has none of this name.
fn savepoint(branch: &BranchId) -> String {
    format!("\"lockstep:{branch}\"")
}

async fn begin(connection: &mut SqliteConnection, branch: &BranchId) -> Result<Header, sqlx::Error> {
    let header = sqlx::query_as(HEADER).fetch_one(&mut *connection).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("SAVEPOINT {}", savepoint(branch)))).execute(connection).await?;
    Ok(header)
}

impl Condition {
    fn check(&self, begun: Header, triggers: i64) -> Result<(), String> {
        if self.header != begun {
            return Err("it changes the schema, user_version or application_id, which cannot be prepared: do that outside \
                        of global transactions"
                .into());
        }
        if let Some(attached) = &self.attached {
            return Err(format!(
                "the service attached {attached}: a commit over several SQLite files is not atomic in WAL mode"
            ));
        }
        if !self.recursive_triggers {
            return Err("the service switched recursive_triggers off, without which rows that REPLACE displaces are not seen".into());
        }
        if self.triggers != triggers {
            return Err(
                "the service dropped triggers of the SDK, without which its changes are not seen".into()
            );
        }
        Ok(())
    }
}
