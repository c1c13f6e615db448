//! The ways to move money from one PostgreSQL server to another that are compared: each makes the same two updates.

use std::sync::Arc;

use lockstep::{Client, Context};
use lockstep_tests::harness::{Failed, Result};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPool;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::generated::teller::teller_client::TellerClient;
use crate::generated::teller::{Change, Name};
use crate::peer;
use crate::teller::{UPDATE, end, pool};

/// Who takes part. The order is that of the tables.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Two plain local commits: no atomicity at all.
    Floor,
    /// Two-phase commit from the client, without a coordinator and without a log: a client that dies leaves its branches for ever.
    Hand,
    /// The same through two services.
    HandServices,
    /// Lockstep, the branches prepared when commit is requested.
    Lockstep,
    /// Lockstep, the branches voting with their last call.
    EarlyVote,
    /// Lockstep as the first, answered when the decision is durable.
    AtDecision,
    /// dtmrs in XA mode, where it is installed.
    Dtmrs,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Floor,
        Self::Hand,
        Self::HandServices,
        Self::Lockstep,
        Self::EarlyVote,
        Self::AtDecision,
        Self::Dtmrs,
    ];

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Floor => "(a) two local commits",
            Self::Hand => "(b) by hand",
            Self::HandServices => "(b2) by hand, two services",
            Self::Lockstep => "(c) Lockstep",
            Self::EarlyVote => "(d) Lockstep, early vote",
            Self::AtDecision => "(e) Lockstep, reply at decision",
            Self::Dtmrs => "(f) dtmrs, XA",
        }
    }

    /// As the command line names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Hand => "hand",
            Self::HandServices => "hand-services",
            Self::Lockstep => "lockstep",
            Self::EarlyVote => "early-vote",
            Self::AtDecision => "at-decision",
            Self::Dtmrs => "dtmrs",
        }
    }
}

/// Where everything is.
#[derive(Debug, Clone, clap::Args)]
pub struct Places {
    /// The two databases
    #[arg(long, num_args = 2)]
    pub databases: Vec<String>,
    /// The two tellers
    #[arg(long, num_args = 2)]
    pub tellers: Vec<String>,
    /// The coordinator
    #[arg(long)]
    pub coordinator: String,
    /// dtmrs, if it takes part
    #[arg(long)]
    pub dtmrs: Option<String>,
}

/// What a client needs to move money in its contender's way. Cheap to clone.
#[derive(Clone)]
pub struct Mover {
    contender: Contender,
    databases: Arc<[PgPool]>,
    tellers: [TellerClient<Channel>; 2],
    lockstep: Client,
    dtmrs: Option<peer::Client>,
    /// Makes the names of this run's transactions differ from those of others.
    run: u32,
}

impl Mover {
    /// Connected to what it needs, for so many clients.
    ///
    /// # Errors
    /// If something can't be reached.
    pub async fn new(contender: Contender, places: &Places, clients: usize) -> Result<Self> {
        let clients = u32::try_from(clients).unwrap_or(u32::MAX);
        let mut databases = Vec::new();
        if matches!(contender, Contender::Floor | Contender::Hand) {
            for url in &places.databases {
                let all = pool(clients).min_connections(clients);
                databases.push(all.connect(url).await.map_err(Failed::because(url.as_str()))?);
            }
        }
        let tellers = [teller(&places.tellers[0]).await?, teller(&places.tellers[1]).await?];
        let lockstep = Client::connect(&places.coordinator).await.map_err(Failed::because("no client"))?;
        let dtmrs = match places.dtmrs.as_ref().filter(|_| contender == Contender::Dtmrs) {
            Some(url) => Some(peer::Client::connect(url, &places.tellers).await?),
            None => None,
        };
        let run = std::process::id();
        Ok(Self { contender, databases: databases.into(), tellers, lockstep, dtmrs, run })
    }

    /// One transfer: takes 1 from the account in the first database, and gives it to that in the second. Both sides of every step at
    /// once. `false`: a database had no room for it, and it was rolled back.
    ///
    /// # Errors
    /// If it did not commit, or may not have.
    pub async fn transfer(&self, client: usize, number: u64, account: i64) -> Result<bool> {
        let done = match self.contender {
            Contender::Floor => self.by_local_commits(account).await,
            Contender::Hand => self.by_hand(&self.name(client, number), account).await,
            Contender::HandServices => {
                self.by_hand_through_services(&self.name(client, number), account).await
            }
            Contender::Lockstep | Contender::EarlyVote | Contender::AtDecision => {
                return self.by_lockstep(account).await;
            }
            Contender::Dtmrs => self.by_dtmrs(client, number, account).await,
        };
        done.map(|()| true)
    }

    fn name(&self, client: usize, number: u64) -> String {
        format!("by-hand-{}-{client}-{number}", self.run)
    }

    async fn by_local_commits(&self, account: i64) -> Result<()> {
        both(|side| async move {
            sqlx::query(UPDATE)
                .bind(account)
                .bind(amount(side))
                .execute(&self.databases[side])
                .await
                .map(drop)
        })
        .await
    }

    async fn by_hand(&self, name: &str, account: i64) -> Result<()> {
        let (mut first, mut second) =
            tokio::try_join!(self.databases[0].acquire(), self.databases[1].acquire())
                .map_err(Failed::because("no connection"))?;
        let prepared = async |connection: &mut sqlx::PgConnection, side: usize| {
            sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
            let update = sqlx::query(UPDATE).bind(account).bind(amount(side));
            update.execute(&mut *connection).await?;
            end(connection, "PREPARE TRANSACTION", name).await
        };
        tokio::try_join!(prepared(&mut first, 0), prepared(&mut second, 1))
            .map_err(Failed::because("not prepared"))?;
        tokio::try_join!(end(&mut first, "COMMIT PREPARED", name), end(&mut second, "COMMIT PREPARED", name))
            .map_err(Failed::because("prepared and not committed"))?;
        Ok(())
    }

    async fn by_hand_through_services(&self, name: &str, account: i64) -> Result<()> {
        let named = || Name { name: name.to_owned() };
        both(|side| self.work(side, name, account)).await?;
        both(|side| async move { self.tellers[side].clone().prepare(named()).await.map(drop) }).await?;
        both(|side| async move { self.tellers[side].clone().commit(named()).await.map(drop) }).await
    }

    async fn work(&self, side: usize, name: &str, account: i64) -> Result<(), tonic::Status> {
        let change = Change { account, amount: amount(side), name: name.to_owned() };
        self.tellers[side].clone().work(change).await.map(drop)
    }

    /// Both branches registered at once, both through phase one at once: dtmrs wants each registered before it is prepared, and the rest of
    /// the order is free.
    async fn by_dtmrs(&self, client: usize, number: u64, account: i64) -> Result<()> {
        let dtmrs = self.dtmrs.as_ref().ok_or_else(|| Failed::new("dtmrs does not take part"))?;
        let gid = dtmrs.begin(client, number).await?;
        both(|side| dtmrs.register(&gid, side)).await?;
        both(|side| {
            let change =
                Change { account, amount: amount(side), name: peer::name(&gid, peer::BRANCHES[side]) };
            let mut teller = self.tellers[side].clone();
            async move { teller.phase_one(change).await.map(drop) }
        })
        .await?;
        dtmrs.commit(&gid).await
    }

    async fn by_lockstep(&self, account: i64) -> Result<bool> {
        let transaction =
            self.lockstep.begin("transfer").start().await.map_err(Failed::because("not begun"))?;
        let context = match self.contender {
            Contender::EarlyVote => transaction.vote(),
            Contender::AtDecision
            | Contender::Lockstep
            | Contender::Floor
            | Contender::Hand
            | Contender::HandServices
            | Contender::Dtmrs => transaction.context(),
        };
        let (first, second) = tokio::join!(self.apply(0, context, account), self.apply(1, context, account));
        if let Err(status) = first.and(second) {
            if status.code() != Code::ResourceExhausted {
                return Err(Failed::new(format!("a step failed: {status}")));
            }
            transaction.rollback("no room").await.map_err(Failed::because("not rolled back"))?;
            return Ok(false);
        }
        let committed = match self.contender {
            Contender::AtDecision => transaction.commit_when_decided().await,
            Contender::EarlyVote
            | Contender::Lockstep
            | Contender::Floor
            | Contender::Hand
            | Contender::HandServices
            | Contender::Dtmrs => transaction.commit().await,
        };
        let committed = committed.map_err(Failed::because("not committed"))?;
        if committed.branches == 2 { Ok(true) } else { Err(Failed::new(format!("{committed:?}"))) }
    }

    async fn apply(&self, side: usize, context: Context, account: i64) -> Result<(), tonic::Status> {
        let mut request = Request::new(Change { account, amount: amount(side), name: String::new() });
        context.inject_metadata(request.metadata_mut());
        self.tellers[side].clone().apply(request).await.map(drop)
    }
}

/// The first side gives, the second takes.
const fn amount(side: usize) -> i64 {
    if side == 0 { -1 } else { 1 }
}

/// The same at both sides, at the same time.
async fn both<E: std::fmt::Display, F: Future<Output = Result<(), E>>>(
    step: impl Fn(usize) -> F,
) -> Result<()> {
    let (first, second) = tokio::join!(step(0), step(1));
    first.and(second).map_err(Failed::because("a step failed"))
}

async fn teller(url: &str) -> Result<TellerClient<Channel>> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(Failed::because(url))?;
    let channel = endpoint.tcp_nodelay(true).connect().await.map_err(Failed::because(url))?;
    Ok(TellerClient::new(channel))
}
