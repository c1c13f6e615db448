//! What must hold in the three databases together, whatever was killed. Pure: [`super::look`] does the looking.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::told::Told;
use super::{GIFT_CARD, Order};

/// What was found in the databases, one look at each.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) orders: BTreeMap<String, Order>,
    /// By order: who has paid how much.
    pub(super) payments: BTreeMap<String, Vec<(String, i64)>>,
    /// By order: what was taken from the shelf, and how many.
    pub(super) reservations: BTreeMap<String, Vec<(String, i64)>>,
    /// By item: what was ever received, and what is left.
    pub(super) items: BTreeMap<String, (i64, i64)>,
    /// By database: branches that are prepared, and wait for their decision.
    pub(super) prepared: BTreeMap<&'static str, u64>,
}

/// Something that must not be. While orders are under way a single look may find it all the same, because nobody can look into three
/// databases at one moment; what is wrong stays wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// Some databases have it, and some do not.
    HalfDone {
        order: String,
        has: Vec<&'static str>,
        lacks: Vec<&'static str>,
    },
    PaidTwice {
        order: String,
        payments: usize,
    },
    ReservedTwice {
        order: String,
        reservations: usize,
    },
    /// It was paid, or delivered, in another way than it was ordered.
    Differs {
        order: String,
        what: String,
    },
    /// Done, and its customer was told that it was not; or the other way round.
    Told {
        order: String,
        told: Told,
    },
    Stock {
        item: String,
        received: i64,
        stock: i64,
        sold: i64,
    },
    InDoubt {
        database: &'static str,
        branches: u64,
    },
}

impl Look {
    /// How many of an item were sold, by the orders.
    pub(super) fn sold(&self, item: &str) -> i64 {
        self.orders.values().filter(|order| order.item == item).map(|order| order.quantity).sum()
    }

    /// All money that was paid.
    pub(super) fn paid(&self) -> i64 {
        self.payments.values().flatten().map(|(_, amount)| amount).sum()
    }

    /// What was taken from customers who got nothing for it: orders, and money.
    pub(super) fn paid_for_nothing(&self) -> (usize, i64) {
        let lost = self.payments.iter().filter(|(id, _)| match self.orders.get(*id) {
            None => true,
            Some(order) => order.item != GIFT_CARD && !self.reservations.contains_key(*id),
        });
        lost.fold((0, 0), |(orders, money), (_, payments)| {
            (orders + 1, money + payments.iter().map(|(_, amount)| amount).sum::<i64>())
        })
    }

    /// Orders that nobody has paid for: how many, and how much is owed.
    pub(super) fn unpaid(&self) -> (usize, i64) {
        let unpaid = self.orders.values().filter(|order| !self.payments.contains_key(&order.id));
        unpaid.fold((0, 0), |(orders, money), order| (orders + 1, money + order.amount))
    }

    /// Every order that any database knows.
    fn known(&self) -> BTreeSet<&String> {
        self.orders.keys().chain(self.payments.keys()).chain(self.reservations.keys()).collect()
    }
}

/// Everything that is wrong.
pub(super) fn check(look: &Look, told: &BTreeMap<String, Told>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let known = look.known();
    for order in &known {
        violations.extend(check_order(look, order));
    }
    for (order, told) in told {
        let right = match told {
            Told::Committed => known.contains(order),
            Told::Declined(_) | Told::RolledBack(_) => !known.contains(order),
            // Either will do, as long as it is not half done.
            Told::Unknown(_) | Told::Heuristic(_) => true,
        };
        if !right {
            violations.push(Violation::Told { order: order.clone(), told: told.clone() });
        }
    }
    for (item, &(received, stock)) in &look.items {
        let sold = look.sold(item);
        if stock + sold != received {
            violations.push(Violation::Stock { item: item.clone(), received, stock, sold });
        }
    }
    let in_doubt = look.prepared.iter().filter(|(_, branches)| **branches > 0);
    violations.extend(in_doubt.map(|(&database, &branches)| Violation::InDoubt { database, branches }));
    violations
}

fn check_order(look: &Look, id: &str) -> Vec<Violation> {
    let order = look.orders.get(id);
    let payments = look.payments.get(id).map_or(&[][..], Vec::as_slice);
    let reservations = look.reservations.get(id).map_or(&[][..], Vec::as_slice);
    let needs_stock = order.is_none_or(|order| order.item != GIFT_CARD);
    let mut parts = vec![("orders", order.is_some()), ("payments", !payments.is_empty())];
    if needs_stock || !reservations.is_empty() {
        parts.push(("inventory", !reservations.is_empty()));
    }
    let named =
        |wanted: bool| parts.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect();
    let id = id.to_owned();
    let (has, lacks): (Vec<_>, Vec<_>) = (named(true), named(false));
    // A gift card that is paid and not ordered yet looks as if it lacked its stock too: half done it is either way.
    if !lacks.is_empty() {
        return vec![Violation::HalfDone { order: id, has, lacks }];
    }
    let mut violations = Vec::new();
    if payments.len() > 1 {
        violations.push(Violation::PaidTwice { order: id.clone(), payments: payments.len() });
    }
    if reservations.len() > 1 {
        violations.push(Violation::ReservedTwice { order: id.clone(), reservations: reservations.len() });
    }
    let Some(order) = order else { return violations };
    if payments.iter().any(|(customer, amount)| (customer, amount) != (&order.customer, &order.amount)) {
        let what = format!("paid is {payments:?}, and {} by {} was due", order.amount, order.customer);
        violations.push(Violation::Differs { order: id.clone(), what });
    }
    if reservations.iter().any(|(item, quantity)| (item, quantity) != (&order.item, &order.quantity)) {
        let what = format!("taken is {reservations:?}, and ordered {} of {}", order.quantity, order.item);
        violations.push(Violation::Differs { order: id, what });
    }
    violations
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HalfDone { order, has, lacks } => {
                write!(
                    f,
                    "order {order} is half done: {} have it, {} not",
                    has.join(" and "),
                    lacks.join(" and ")
                )
            }
            Self::PaidTwice { order, payments } => write!(f, "order {order} was paid {payments} times"),
            Self::ReservedTwice { order, reservations } => {
                write!(f, "order {order} was taken from the shelf {reservations} times")
            }
            Self::Differs { order, what } => write!(f, "order {order}: {what}"),
            Self::Told { order, told: Told::Committed } => {
                write!(f, "order {order} was told as done, and nobody has it")
            }
            Self::Told { order, told } => {
                write!(f, "order {order} was told as not done ({told:?}), and is done")
            }
            Self::Stock { item, received, stock, sold } => {
                write!(f, "{item}: {stock} in stock and {sold} sold make {}, not {received}", stock + sold)
            }
            Self::InDoubt { database, branches } => {
                write!(f, "{database} holds {branches} prepared branches that wait for their decision")
            }
        }
    }
}

#[cfg(test)]
mod tests;
