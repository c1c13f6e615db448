//! Sessions that wait for a prepared branch.

use sqlx::{MySqlPool, PgPool};

use super::{CHANGE, PATIENCE, World, failed};
use crate::harness::Result;

impl World<'_> {
    /// Whether `tx show` names a session that waits for the row of the prepared branch in the first database.
    ///
    /// # Errors
    /// If nobody could be made to wait.
    pub fn blocked_in_orders(&self, id: &str) -> Result<bool> {
        let url = self.orders_url();
        let (told, waiter) = std::sync::mpsc::channel();
        let waiting = self.runtime.spawn(async move {
            let pool = PgPool::connect(&url).await?;
            let mut connection = pool.acquire().await?;
            let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await?;
            let _gone = told.send(i64::from(pid));
            sqlx::raw_sql(CHANGE).execute(&mut *connection).await.map(drop)
        });
        self.is_named(id, waiter, &waiting)
    }

    /// The same in the second.
    ///
    /// # Errors
    /// If nobody could be made to wait.
    pub fn blocked_in_ledger(&self, id: &str) -> Result<bool> {
        let url = self.ledger_url();
        let (told, waiter) = std::sync::mpsc::channel();
        let waiting = self.runtime.spawn(async move {
            let pool = MySqlPool::connect(&url).await?;
            let mut connection = pool.acquire().await?;
            let id: i64 = sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS SIGNED)")
                .fetch_one(&mut *connection)
                .await?;
            let _gone = told.send(id);
            sqlx::raw_sql(CHANGE).execute(&mut *connection).await.map(drop)
        });
        self.is_named(id, waiter, &waiting)
    }

    fn is_named(
        &self,
        id: &str,
        waiter: std::sync::mpsc::Receiver<i64>,
        waiting: &tokio::task::JoinHandle<sqlx::Result<()>>,
    ) -> Result<bool> {
        let session = waiter.recv_timeout(PATIENCE).map_err(failed("the session that waits"))?;
        let named = |shown: &serde_json::Value| {
            let databases = shown["databases"].as_array().cloned().unwrap_or_default();
            let mut blocked =
                databases.iter().flat_map(|one| one["blocked"].as_array().cloned().unwrap_or_default());
            blocked.any(|blocked| blocked["session"] == session && !blocked["statement_ms"].is_null())
        };
        let found = self.until("the blocked session", &["tx", "show", id], named).is_ok();
        waiting.abort();
        Ok(found)
    }
}
