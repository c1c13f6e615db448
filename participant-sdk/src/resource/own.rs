//! Connections of a resource's own: for whatever must never wait for a branch, such as the decisions that free the branches' connections.
//!
//! A pool of its own kind, and not sqlx's as that of the service is: sqlx's asks a connection whether it lives each time that it comes back,
//! a round trip for every branch that is committed. Here it is asked before it is lent, and only if it has rested a while.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleResult, WeakPool};
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
/// Then another one takes the place: a server that was demoted without ending its sessions is left behind some time.
const LONGEST_USE: Duration = Duration::from_mins(30);
/// How long that may take. Whoever is to have it waits.
const REPLACED_WITHIN: Duration = Duration::from_secs(1);
/// How much longer the old one is used where no other can be opened.
const LONGER_USE: Duration = Duration::from_mins(1);
/// One that was lent a moment ago is not tried before it is lent again: a round trip less for every commit.
const TRUSTED: Duration = Duration::from_secs(1);
/// How long an orderly goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sets up a connection that was opened, before anything else is done with it.
pub(super) type SetUp<C> = for<'c> fn(&'c mut C) -> BoxFuture<'c, sqlx::Result<()>>;

/// Whether what kept a connection from being opened may be over in a moment. Most is for a person to mend, such as a password.
pub(super) type IsPassing = fn(&sqlx::Error) -> bool;

/// The pool. Cheap to clone.
pub(super) struct OwnPool<C: Connection + 'static>(Pool<Opener<C>>);

/// One of its connections. Dropping it gives it back.
pub(super) type OwnConnection<C> = Object<Opener<C>>;

/// A connection, and how long it is used.
pub(super) struct Opened<C> {
    connection: C,
    until: Instant,
}

/// How its connections are opened, and tried.
pub(super) struct Opener<C: Connection> {
    /// They may change: a password.
    options: Mutex<C::Options>,
    set_up: SetUp<C>,
    is_passing: IsPassing,
    /// Hears of each connection before it is used.
    newest: Arc<Newest>,
}

impl<C: Connection + 'static> OwnPool<C> {
    /// Nothing is opened yet. Call it where tokio runs.
    pub(super) fn new(
        options: C::Options,
        set_up: SetUp<C>,
        is_passing: IsPassing,
        newest: Arc<Newest>,
    ) -> Self {
        let opener = Opener { options: Mutex::new(options), set_up, is_passing, newest };
        let pool =
            Pool::builder(opener).max_size(MOST).build().expect("a pool without timeouts needs nothing");
        tokio::spawn(close_what_is_idle(pool.weak()));
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
            if !(self.0.manager().is_passing)(&error) || Instant::now() + wait >= deadline {
                return Err(error.to_string());
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }
}

impl<C: Connection + 'static> Clone for OwnPool<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Connection + 'static> fmt::Debug for OwnPool<C> {
    /// Without the options, which have a password in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnPool").field(&self.0.status()).finish()
    }
}

impl<C: Connection + 'static> Manager for Opener<C> {
    type Type = Opened<C>;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<Opened<C>> {
        let options = self.options.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut connection = C::connect_with(&options).await?;
        (self.set_up)(&mut connection).await?;
        self.newest.connected();
        Ok(Opened { connection, until: Instant::now() + LONGEST_USE })
    }

    async fn recycle(&self, opened: &mut Opened<C>, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if Instant::now() >= opened.until && self.replace(opened).await {
            return Ok(());
        }
        if metrics.last_used() > TRUSTED {
            opened.connection.ping().await.inspect_err(|error| {
                tracing::debug!("a connection that rested is dead, and another one is taken: {error}");
            })?;
        }
        Ok(())
    }
}

impl<C: Connection + 'static> Opener<C> {
    /// Whether another one has taken the place of this one. It is not given up before that: a server that is full would let somebody else in.
    async fn replace(&self, old: &mut Opened<C>) -> bool {
        let why = match tokio::time::timeout(REPLACED_WITHIN, self.create()).await {
            Ok(Ok(new)) => {
                let old = std::mem::replace(old, new);
                tokio::spawn(close(old.connection));
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("none was opened within {REPLACED_WITHIN:?}"),
        };
        tracing::debug!("a connection of the resource's own is used for longer than {LONGEST_USE:?}: {why}");
        old.until += LONGER_USE;
        false
    }
}

/// Until the pool is gone.
async fn close_what_is_idle<C: Connection + 'static>(pool: WeakPool<Opener<C>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        close_idle(pool, IDLE).await;
    }
}

/// Of those that nobody has now.
async fn close_idle<C: Connection + 'static>(pool: Pool<Opener<C>>, longest: Duration) {
    let idle = pool.retain(|_, metrics| metrics.last_used() < longest).removed;
    // Nobody has to keep the pool for the goodbyes.
    drop(pool);
    for opened in idle {
        close(opened.connection).await;
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
            Self::Own(opened) => Object::take(opened).connection,
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
            Self::Own(opened) => &opened.connection,
        }
    }
}

impl<DB: Database> DerefMut for Held<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match self {
            Self::Service(connection) => connection,
            Self::Own(opened) => &mut opened.connection,
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
        OwnPool::new(in_memory(), |_| async { Ok(()) }.boxed(), |_| false, Arc::clone(newest))
    }

    #[tokio::test]
    async fn what_was_given_back_is_lent_again_until_it_has_been_idle_for_long() {
        let pool = own_pool(&Arc::default());
        drop(pool.get().await.unwrap());
        drop(pool.get().await.unwrap());
        assert_eq!(pool.0.status().size, 1);
        close_idle(pool.0.clone(), IDLE).await;
        assert_eq!(pool.0.status().size, 1, "it was used just now");
        close_idle(pool.0.clone(), Duration::ZERO).await;
        assert_eq!(pool.0.status().size, 0);
        let _again = pool.get().await.unwrap();
    }

    /// Whether what was written over its connections counts as lost with them: one was opened since.
    async fn has_opened(newest: &Newest) -> bool {
        let position = LogPosition {
            epoch: Epoch::new(1).expect("1 is an epoch"),
            incarnation: Incarnation::from_bytes([7; 16]),
            sequence: 3,
        };
        newest.told(&position);
        let turn = newest.turn(&position).await;
        let has = turn.is_some();
        if let Some(turn) = turn {
            turn.written();
        }
        has
    }

    #[tokio::test]
    async fn after_long_use_another_one_takes_the_place() {
        let newest = Arc::new(Newest::default());
        let pool = own_pool(&newest);
        let mut first = pool.get().await.unwrap();
        assert!(has_opened(&newest).await);
        first.until = Instant::now();
        drop(first);
        let second = pool.get().await.unwrap();
        assert!(has_opened(&newest).await && second.until > Instant::now());
        assert_eq!(pool.0.status().size, 1);
        drop(second);
        let _third = pool.get().await.unwrap();
        assert!(!has_opened(&newest).await, "it is the second one");
    }

    #[tokio::test]
    async fn after_long_use_it_goes_on_where_no_other_can_be_opened() {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let pool: OwnPool<SqliteConnection> =
            OwnPool::new(in_memory(), |_| only_the_first(&OPENED), |_| false, Arc::default());
        let mut only = pool.get().await.unwrap();
        only.until = Instant::now();
        drop(only);
        for _ in 0..2 {
            assert!(pool.get().await.unwrap().until > Instant::now());
        }
        assert_eq!(OPENED.load(Ordering::Relaxed), 2, "it is not tried again at once");
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
            |_| false,
            Arc::default(),
        );
        let started = Instant::now();
        for _ in 0..2 * MOST {
            assert!(pool.get().await.err().is_some_and(|why| why.contains("refused")));
        }
        assert!(started.elapsed() < PATIENCE);
    }

    /// A server that has room for one.
    fn only_the_first(opened: &AtomicUsize) -> BoxFuture<'static, sqlx::Result<()>> {
        let is_first = opened.fetch_add(1, Ordering::Relaxed) == 0;
        let refused = || sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        async move { if is_first { Ok(()) } else { Err(refused()) } }.boxed()
    }

    /// A server that is full: one that is lent comes back before it has room again.
    #[tokio::test]
    async fn one_that_comes_back_is_lent_where_no_other_can_be_opened() {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let pool: OwnPool<SqliteConnection> =
            OwnPool::new(in_memory(), |_| only_the_first(&OPENED), |_| true, Arc::default());
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
        let pool = own_pool(&newest);
        let first = pool.get().await.unwrap();
        assert!(has_opened(&newest).await && !has_opened(&newest).await);
        let _second = pool.get().await.unwrap();
        assert!(has_opened(&newest).await);
        drop(first);
        let _first_again = pool.get().await.unwrap();
        assert!(!has_opened(&newest).await, "it is no new one");
    }
}
