//! Connections of a resource's own: for whatever must never wait for a branch, such as the decisions that free the branches' connections.
//!
//! A pool of its own kind, and not sqlx's as that of the service is: sqlx's asks a connection whether it lives each time that it comes back,
//! a round trip for every branch that is committed. Here it is asked before it is lent, and only if it has rested a while.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, WeakPool};
use futures::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Database};
use tokio::time::Instant;

use super::newest::Newest;

/// Each commit waits for the disk, and the disk serves several at once.
const MOST: usize = 8;
/// How long to wait until one of them comes back or can be opened.
const PATIENCE: Duration = Duration::from_secs(3);
/// The first wait before it is tried again, if the server takes no more connections now; then twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// They go when nothing happens.
const IDLE: Duration = Duration::from_secs(60);
/// None is used for longer: a server that was demoted without ending its sessions is left behind some time.
const LONGEST_USE: Duration = Duration::from_mins(30);
/// One that was lent a moment ago is not tried before it is lent again: a round trip less for every commit.
const TRUSTED: Duration = Duration::from_secs(1);
/// How long an orderly goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sets up a connection that was opened, before anything else is done with it.
pub(super) type SetUp<C> = for<'c> fn(&'c mut C) -> BoxFuture<'c, sqlx::Result<()>>;

/// The pool. Cheap to clone.
pub(super) struct OwnPool<C: Connection>(Pool<Opener<C>>);

/// One of its connections. Dropping it gives it back.
pub(super) type OwnConnection<C> = Object<Opener<C>>;

/// How its connections are opened, and tried.
pub(super) struct Opener<C: Connection> {
    /// They may change: a password.
    options: Mutex<C::Options>,
    set_up: SetUp<C>,
    /// Hears of each connection before it is used.
    newest: Arc<Newest>,
}

impl<C: Connection + 'static> OwnPool<C> {
    /// Nothing is opened yet. Call it where tokio runs.
    pub(super) fn new(options: C::Options, set_up: SetUp<C>, newest: Arc<Newest>) -> Self {
        let opener = Opener { options: Mutex::new(options), set_up, newest };
        let pool =
            Pool::builder(opener).max_size(MOST).build().expect("a pool without timeouts needs nothing");
        tokio::spawn(close_what_is_over(pool.weak()));
        Self(pool)
    }

    pub(super) fn set_options(&self, options: C::Options) {
        *self.0.manager().options.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Waits for one; why there is none.
    pub(super) async fn get(&self) -> Result<OwnConnection<C>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut wait = FIRST_WAIT;
        loop {
            let error = match tokio::time::timeout_at(deadline, self.0.get()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(PoolError::Backend(error))) => error,
                Ok(Err(other)) => {
                    unreachable!("the pool has no timeouts, no hooks, and is never closed: {other}")
                }
                Err(_elapsed) => {
                    return Err(format!(
                        "within {PATIENCE:?} none of the {MOST} for its own use came back, and none could be opened"
                    ));
                }
            };
            // A server that is full, or starts, may take one a moment later; and one that is lent comes back sooner.
            if !is_passing(&error) || Instant::now() + wait >= deadline {
                return Err(error.to_string());
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }
}

/// Whether it may be over in a moment. Most are for a person to mend, such as a password.
fn is_passing(error: &sqlx::Error) -> bool {
    let refused = error.as_database_error();
    refused.map_or(matches!(error, sqlx::Error::Io(_)), |error| error.is_transient_in_connect_phase())
}

impl<C: Connection> Clone for OwnPool<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Connection> fmt::Debug for OwnPool<C> {
    /// Without the options, which have a password in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnPool").field(&self.0.status()).finish()
    }
}

impl<C: Connection> Manager for Opener<C> {
    type Type = C;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<C> {
        let options = self.options.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut connection = C::connect_with(&options).await?;
        (self.set_up)(&mut connection).await?;
        self.newest.connected();
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut C, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() >= LONGEST_USE {
            // Here too: one that is lent all the time is never seen lying about.
            return Err(RecycleError::message("it was used for as long as any is"));
        }
        if metrics.last_used() > TRUSTED {
            connection.ping().await.inspect_err(|error| {
                tracing::debug!("a connection that rested is dead, and another one is taken: {error}");
            })?;
        }
        Ok(())
    }
}

/// Until the pool is gone.
async fn close_what_is_over<C: Connection + 'static>(pool: WeakPool<Opener<C>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        close_if(|metrics| metrics.last_used() >= IDLE || metrics.age() >= LONGEST_USE, pool).await;
    }
}

/// Of those that nobody has now.
async fn close_if<C: Connection>(is_over: impl Fn(Metrics) -> bool, pool: Pool<Opener<C>>) {
    let idle = pool.retain(|_, metrics| !is_over(metrics)).removed;
    // Nobody has to keep the pool for the goodbyes.
    drop(pool);
    for connection in idle {
        close(connection).await;
    }
}

/// Says goodbye, so that the server ends the session at once.
async fn close(connection: impl Connection) {
    drop(tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await);
}

/// A connection that somebody has: of the service's pool, or of the resource's own.
pub(super) enum Held<DB: Database> {
    Service(PoolConnection<DB>),
    Own(OwnConnection<DB::Connection>),
}

impl<DB: Database> Held<DB> {
    /// Takes it out of its pool.
    fn take(self) -> DB::Connection {
        match self {
            Self::Service(connection) => connection.detach(),
            Self::Own(connection) => Object::take(connection),
        }
    }

    /// Closes it without a word: the server rolls back what is not prepared.
    pub(super) fn cut(self) {
        drop(self.take());
    }

    /// Says goodbye, so that the server ends the session at once.
    pub(super) async fn close(self) {
        close(self.take()).await;
    }
}

impl<DB: Database> fmt::Debug for Held<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service(_) => "Service",
            Self::Own(_) => "Own",
        })
    }
}

impl<DB: Database> Deref for Held<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match self {
            Self::Service(connection) => connection,
            Self::Own(connection) => connection,
        }
    }
}

impl<DB: Database> DerefMut for Held<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match self {
            Self::Service(connection) => connection,
            Self::Own(connection) => connection,
        }
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use lockstep_proto::{Epoch, Incarnation, LogPosition};
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{Sqlite, SqliteConnection};

    use super::*;

    fn in_memory() -> SqliteConnectOptions {
        SqliteConnectOptions::new().in_memory(true)
    }

    fn own_pool(newest: &Arc<Newest>) -> OwnPool<SqliteConnection> {
        OwnPool::new(in_memory(), |_| async { Ok(()) }.boxed(), Arc::clone(newest))
    }

    #[tokio::test]
    async fn what_was_given_back_is_lent_again_until_it_has_been_idle_for_long() {
        let pool = own_pool(&Arc::default());
        drop(pool.get().await.unwrap());
        drop(pool.get().await.unwrap());
        assert_eq!(pool.0.status().size, 1);
        let idle_for = |time| move |metrics: Metrics| metrics.last_used() >= time;
        close_if(idle_for(IDLE), pool.0.clone()).await;
        assert_eq!(pool.0.status().size, 1, "it was used just now");
        close_if(idle_for(Duration::ZERO), pool.0.clone()).await;
        assert_eq!(pool.0.status().size, 0);
        let _again = pool.get().await.unwrap();
    }

    #[tokio::test]
    async fn one_that_was_used_for_long_is_not_lent_again() {
        let pool = own_pool(&Arc::default());
        let mut connection = pool.get().await.unwrap();
        let mut metrics = Metrics::default();
        assert!(pool.0.manager().recycle(&mut connection, &metrics).await.is_ok());
        metrics.recycled = Some(metrics.created);
        metrics.created = metrics.created.checked_sub(LONGEST_USE).unwrap();
        assert!(pool.0.manager().recycle(&mut connection, &metrics).await.is_err());
    }

    #[tokio::test]
    async fn one_that_is_cut_leaves_its_place_to_another() {
        let pool = own_pool(&Arc::default());
        for _ in 0..2 {
            let mut held = Vec::new();
            for _ in 0..MOST {
                held.push(Held::<Sqlite>::Own(pool.get().await.unwrap()));
            }
            assert!(futures::poll!(std::pin::pin!(pool.get())).is_pending(), "no more than may be");
            held.into_iter().for_each(Held::cut);
        }
        assert_eq!(pool.0.status().size, 0);
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_reached_is_told_at_once_and_why() {
        let pool: OwnPool<SqliteConnection> = OwnPool::new(
            in_memory(),
            |_| async { Err(sqlx::Error::Protocol("refused".to_owned())) }.boxed(),
            Arc::default(),
        );
        for _ in 0..2 * MOST {
            assert!(pool.get().await.err().is_some_and(|why| why.contains("refused")));
        }
    }

    fn refuse_all_but_one(_: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let is_first = OPENED.fetch_add(1, Ordering::Relaxed) == 0;
        let refused = || sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        async move { if is_first { Ok(()) } else { Err(refused()) } }.boxed()
    }

    /// A server that is full: one that is lent comes back before it has room again.
    #[tokio::test]
    async fn one_that_comes_back_is_lent_where_no_other_can_be_opened() {
        let pool: OwnPool<SqliteConnection> = OwnPool::new(in_memory(), refuse_all_but_one, Arc::default());
        let only = pool.get().await.unwrap();
        let comes_back = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(only);
        };
        let (lent, ()) = tokio::join!(pool.get(), comes_back);
        assert!(lent.is_ok());
        let begun = Instant::now();
        let refused = pool.get().await.err();
        assert!(refused.is_some_and(|why| why.contains("refused")) && begun.elapsed() <= 2 * PATIENCE);
    }

    /// Before it is lent: what was written over the others may be lost with the server that they were to.
    #[tokio::test]
    async fn each_that_is_opened_is_heard_of() {
        let newest = Arc::new(Newest::default());
        let position = LogPosition {
            epoch: Epoch::new(1).unwrap(),
            incarnation: Incarnation::from_bytes([7; 16]),
            sequence: 3,
        };
        let pool = own_pool(&newest);
        let first = pool.get().await.unwrap();
        newest.told(&position);
        newest.turn(&position).await.unwrap().written();
        assert!(newest.turn(&position).await.is_none());
        let _second = pool.get().await.unwrap();
        assert!(newest.turn(&position).await.is_some());
        newest.turn(&position).await.unwrap().written();
        drop(first);
        let _first_again = pool.get().await.unwrap();
        assert!(newest.turn(&position).await.is_none(), "it is no new one");
    }
}
