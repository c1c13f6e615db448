//! The storefront: sells something in one transaction over all services, or not at all. The application's side of Lockstep.

use std::time::Duration;

use clap::Args;
use lockstep::{Client, CommitError, Context, Gtrid, InquireError, Outcome, Transaction, TransactionError}; // lockstep
use rand::RngExt as _;
use reqwest::StatusCode;
use tokio::time::{Instant, sleep, timeout};

use super::told::Told;
use super::{Failure, GIFT_CARD, Order};

/// A service that has not answered by then hangs.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an order may take until it is decided.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often an outcome that is not known is asked for.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// And for how long. It may never be known again: a restored log answers for nothing from before.
const ASK_FOR: Duration = Duration::from_secs(300);

/// Where everyone is.
#[derive(Debug, Clone, Args)]
pub(super) struct Addresses {
    /// The addresses of all coordinators
    #[arg(long, env = "SHOP_COORDINATORS", value_delimiter = ',', required = true)]
    pub(super) coordinators: Vec<String>,
    #[arg(long, env = "SHOP_ORDERS")]
    pub(super) orders: String,
    #[arg(long, env = "SHOP_PAYMENTS")]
    pub(super) payments: String,
    #[arg(long, env = "SHOP_INVENTORY")]
    pub(super) inventory: String,
}

/// A service's answer that is no yes.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Its own no.
    #[error("{0}")]
    Declined(String),
    /// It could not, or there was no answer.
    #[error("{0}")]
    Failed(String),
}

pub(super) struct Storefront {
    lockstep: Client, // lockstep
    http: reqwest::Client,
    addresses: Addresses,
}

impl Storefront {
    pub(super) fn open(addresses: Addresses) -> Result<Self, Failure> {
        let http = reqwest::Client::builder().no_proxy().timeout(CALL_TIMEOUT).build()?;
        let lockstep = Client::builder_of(&addresses.coordinators).connect()?; // lockstep
        Ok(Self { lockstep, http, addresses })
    }

    /// Sells: all services have it then, or none.
    pub(super) async fn sell(&self, order: &Order) -> Told {
        let transaction = self.lockstep.begin("order").label("order", &order.id).timeout(TIMEOUT); // lockstep
        let sold = transaction.run(async |tx| self.call_all(order, tx.context()).await).await; // lockstep
        match sold {
            Ok(()) => Told::Committed,
            Err(TransactionError::Work(CallError::Declined(why))) => Told::Declined(why),
            Err(TransactionError::Work(CallError::Failed(why))) => Told::RolledBack(why),
            Err(TransactionError::Begin(error)) => Told::RolledBack(error.to_string()),
            Err(TransactionError::Commit(error)) => committed(Err(error)),
        }
    }

    /// Every service that the order needs, always in this order: so no two orders wait for each other.
    async fn call_all(&self, order: &Order, context: Context) -> Result<(), CallError> {
        for url in self.needed(order) {
            self.call(url, order, Some(&context)).await?;
        }
        Ok(())
    }

    fn needed(&self, order: &Order) -> Vec<String> {
        let Addresses { orders, payments, inventory, .. } = &self.addresses;
        let mut urls = vec![format!("{orders}/orders"), format!("{payments}/payments")];
        if order.item != GIFT_CARD {
            urls.push(format!("{inventory}/reservations"));
        }
        urls
    }

    async fn call(&self, url: String, order: &Order, context: Option<&Context>) -> Result<(), CallError> {
        let failed = |error: reqwest::Error| CallError::Failed(error.without_url().to_string());
        let mut request = self.http.post(url).json(order);
        if let Some(context) = context {
            request = request.headers(context.to_headers()); // lockstep
        }
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let why = answer.text().await.map_err(failed)?;
        match status {
            StatusCode::UNPROCESSABLE_ENTITY => Err(CallError::Declined(why)),
            _ => Err(CallError::Failed(why)),
        }
    }

    /// Sells without Lockstep: each service commits for itself. What was done before one of them failed stays.
    pub(super) async fn sell_naively(&self, order: &Order) -> Told {
        let Addresses { orders, payments, inventory, .. } = &self.addresses;
        let [orders, payments, inventory] = [
            format!("{orders}/naive/orders"),
            format!("{payments}/naive/payments"),
            format!("{inventory}/naive/reservations"),
        ];
        // The goods last: nobody gives them away before they are paid for.
        for url in [orders, payments, inventory] {
            match self.call(url, order, None).await {
                Ok(()) => {}
                Err(CallError::Declined(why)) => return Told::Declined(why),
                Err(CallError::Failed(why)) => return Told::RolledBack(why),
            }
        }
        Told::Committed
    }

    /// Does everything but the last step: every service has voted, holds what it has done prepared, and waits for the decision.
    pub(super) async fn to_the_till(&self, order: &Order, within: Duration) -> Result<Transaction, Failure> {
        let begin = self.lockstep.begin("order").label("order", &order.id).timeout(within);
        let tx = begin.start().await?;
        // Marked as the last calls: the services vote as soon as they are done, and need not be asked at the commit.
        match self.call_all(order, tx.vote()).await {
            Ok(()) => Ok(tx),
            Err(error) => {
                tx.rollback("the customer did not get to the till").await?;
                Err(error.into())
            }
        }
    }

    /// The last step. Nobody at a till waits longer than `patience`; then the outcome is not known, and has to be asked for.
    pub(super) async fn pay(&self, tx: Transaction, patience: Duration) -> Told {
        let gtrid = tx.gtrid();
        match timeout(patience, tx.commit()).await {
            Ok(result) => committed(result.map(drop)),
            Err(_elapsed) => Told::Unknown(gtrid.to_string()),
        }
    }

    /// Asks how a transaction ended, until it is known.
    pub(super) async fn learn(&self, gtrid: Gtrid) -> Told {
        let until = Instant::now() + ASK_FOR;
        while Instant::now() < until {
            match self.lockstep.inquire(gtrid).await {
                Ok(Outcome::Committed | Outcome::NothingToCommit) => return Told::Committed,
                Ok(Outcome::RolledBack { detail }) => return Told::RolledBack(detail),
                Ok(Outcome::Heuristic { detail }) => return Told::Heuristic(detail),
                Ok(Outcome::Undecided | Outcome::Unknown { .. })
                | Err(InquireError::Unavailable { .. } | InquireError::Refused { .. }) => {}
            }
            sleep(ASK_EVERY).await;
        }
        Told::Unknown(gtrid.to_string())
    }
}

fn committed(result: Result<(), CommitError>) -> Told {
    match result {
        Ok(()) => Told::Committed,
        Err(CommitError::RolledBack { detail, .. }) => Told::RolledBack(detail),
        Err(CommitError::Heuristic { detail, .. }) => Told::Heuristic(detail),
        Err(CommitError::Unknown { gtrid, .. }) => Told::Unknown(gtrid.to_string()),
    }
}

impl Order {
    /// What somebody wants. One of so many wants more than the card pays; 0 for nobody.
    pub(super) fn at_random(one_in: u32) -> Self {
        let mut random = rand::rng();
        let (item, price) = [("chair", 40), ("table", 120), ("lamp", 25)][random.random_range(0..3)];
        let customer = ["ada", "grace", "edsger", "leslie", "barbara", "jim"][random.random_range(0..6)];
        let quantity =
            if one_in > 0 && random.random_ratio(1, one_in) { 100 } else { random.random_range(1..=3) };
        Self::of(customer, item, quantity, price)
    }

    pub(super) fn of(customer: &str, item: &str, quantity: i64, price: i64) -> Self {
        Self {
            id: format!("o-{:016x}", rand::random::<u64>()),
            customer: customer.to_owned(),
            item: item.to_owned(),
            quantity,
            amount: quantity * price,
        }
    }
}
