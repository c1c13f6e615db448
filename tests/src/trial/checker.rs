//! The verdict: what was found in the databases against what clients were told. Knows nothing of how Lockstep works.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::books::{ACCOUNTS, OPENING_BALANCE, Page};
use crate::harness::client::{Entry, PREPARED, Plan, Told, What};

/// What has become of a transaction, in the databases alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// In every bank it concerned.
    Committed,
    /// In none.
    RolledBack,
    /// In one and not in the other.
    Torn,
}

/// What must have become of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Committed.
    Committed,
    /// Rolled back.
    RolledBack,
    /// Either, as long as it is the same everywhere.
    Either,
    /// Committed in one bank and lost in the other, and said so: somebody's hand was in it.
    Heuristic,
}

/// Everything that was seen from outside in one cell.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Each bank's books.
    pub pages: Vec<Page>,
    /// What the client was told while it ran, and what it had begun.
    pub ledger: Vec<Entry>,
    /// What the coordinator answered afterwards for each transaction in the ledger.
    pub asked: BTreeMap<String, Told>,
    /// Whether ended transactions may have been forgotten since: then `Unknown` is an answer too.
    pub forgets: bool,
    /// The transaction that somebody's hand has torn: it is not to be hidden.
    pub torn_by_hand: Option<String>,
}

impl Seen {
    /// What has become of a transaction.
    #[must_use]
    pub fn found(&self, gtrid: &str) -> Found {
        let there = self.pages.iter().filter(|page| page.transfers.contains_key(gtrid)).count();
        match there {
            0 => Found::RolledBack,
            all if all == self.pages.len() => Found::Committed,
            _some => Found::Torn,
        }
    }

    /// The transaction that was under way at this moment: begun, and its client not told.
    #[must_use]
    pub fn under_way_at(&self, at: u64) -> Option<&str> {
        let mut under_way = None;
        for entry in self.ledger.iter().filter(|entry| entry.at <= at) {
            under_way = match entry.what {
                What::Begun { .. } | What::Ready { .. } | What::Heard { .. } => Some(entry.gtrid.as_str()),
                What::Told { .. } => None,
            };
        }
        under_way
    }

    /// Where it is determined what must come of the transaction that was struck: what is wrong with it.
    #[must_use]
    pub fn unexpected(&self, struck: Option<&str>, expected: Expected) -> Vec<String> {
        match (struck, expected) {
            (None, Expected::Either) => Vec::new(),
            (None, Expected::Committed | Expected::RolledBack | Expected::Heuristic) => {
                vec!["no transaction was under way at the fault, so it shows nothing".to_owned()]
            }
            (Some(gtrid), expected) => {
                let found = self.found(gtrid);
                let wrong =
                    format!("{gtrid} was under way at the fault and must be {expected:?}, and is {found:?}");
                if is_expected(expected, found) { Vec::new() } else { vec![wrong] }
            }
        }
    }

    /// The transaction that is named in a text, such as a statement; if none is, the one that was under way at this moment.
    #[must_use]
    pub fn named_in(&self, text: &str, at: u64) -> Option<&str> {
        let named = self.asked.keys().find(|gtrid| text.contains(gtrid.as_str()));
        named.map(String::as_str).or_else(|| self.under_way_at(at))
    }

    /// Transactions that were to be rolled back, and were not.
    #[must_use]
    pub fn committed_against_plan(&self) -> Vec<String> {
        let planned =
            self.ledger.iter().filter(|entry| matches!(entry.what, What::Begun { plan } if !plan.commits()));
        planned
            .filter(|entry| self.found(&entry.gtrid) != Found::RolledBack)
            .map(|entry| {
                format!("{} was to be rolled back, and is {:?}", entry.gtrid, self.found(&entry.gtrid))
            })
            .collect()
    }

    /// Whether the client had all the work done that votes by itself, and went on to ask for the commit, at this moment.
    #[must_use]
    pub fn was_ready_at(&self, gtrid: &str, at: u64) -> bool {
        let mut earlier = self.ledger.iter().filter(|entry| entry.gtrid == gtrid && entry.at <= at);
        earlier.any(|entry| matches!(entry.what, What::Ready { .. }))
    }

    /// Transactions that were to commit with early votes, have committed, and not all of their branches had voted before the client
    /// asked for the commit.
    #[must_use]
    pub fn committed_without_early_votes(&self) -> Vec<String> {
        let mut ready = BTreeMap::new();
        let mut wrong = Vec::new();
        for entry in &self.ledger {
            let gtrid = entry.gtrid.as_str();
            match &entry.what {
                What::Begun { plan: Plan::EarlyVote } => {
                    ready.insert(gtrid, None);
                }
                What::Ready { branches } => {
                    ready.insert(gtrid, Some(branches));
                }
                What::Told { told: Told::Committed, .. } => match ready.get(gtrid) {
                    Some(Some(branches)) if all_have_voted(branches) => {}
                    Some(branches) => wrong.push(format!(
                        "{gtrid} was to commit with early votes, and before them: {branches:?}"
                    )),
                    None => {}
                },
                What::Begun { .. } | What::Heard { .. } | What::Told { .. } => {}
            }
        }
        wrong
    }

    /// Transactions of which the client was told anything else than what they were meant to end in. Only where nothing failed.
    #[must_use]
    pub fn not_as_planned(&self) -> Vec<String> {
        let mut planned = BTreeMap::new();
        let mut wrong = Vec::new();
        for entry in &self.ledger {
            match &entry.what {
                What::Begun { plan } => {
                    planned.insert(&entry.gtrid, *plan);
                }
                What::Told { told, detail } => {
                    let plan = planned.get(&entry.gtrid);
                    let commits = plan.is_some_and(|plan| plan.commits());
                    if *told != if commits { Told::Committed } else { Told::RolledBack } {
                        let gtrid = &entry.gtrid;
                        wrong.push(format!(
                            "{gtrid}: planned as {plan:?}, without a fault it is {told:?} ({detail})"
                        ));
                    }
                }
                What::Ready { .. } | What::Heard { .. } => {}
            }
        }
        wrong
    }

    /// Everything that contradicts everything else, a sentence each.
    #[must_use]
    pub fn contradictions(&self) -> Vec<String> {
        let mut wrong = self.wrong_books();
        // Once: a long run has a hundred thousand of them.
        let mut begun = BTreeMap::<&str, Vec<&Entry>>::new();
        for entry in &self.ledger {
            begun.entry(&entry.gtrid).or_default().push(entry);
        }
        let in_books: BTreeSet<&str> =
            self.pages.iter().flat_map(|page| page.transfers.keys().map(String::as_str)).collect();
        wrong.extend(
            in_books
                .iter()
                .filter(|gtrid| !begun.contains_key(*gtrid))
                .map(|gtrid| format!("{gtrid} is in the books and nobody began it")),
        );
        for (gtrid, entries) in begun {
            wrong.extend(self.contradictions_of(gtrid, &entries));
        }
        wrong
    }

    /// Of one transaction, with its lines of the ledger.
    fn contradictions_of(&self, gtrid: &str, entries: &[&Entry]) -> Vec<String> {
        let found = self.found(gtrid);
        if self.torn_by_hand.as_deref() == Some(gtrid) {
            return self.contradictions_of_torn(gtrid, entries);
        }
        if found == Found::Torn {
            let banks: Vec<bool> = self.pages.iter().map(|page| page.transfers.contains_key(gtrid)).collect();
            return vec![format!("{gtrid} is torn: committed in each bank: {banks:?}")];
        }
        let mut wrong = Vec::new();
        let told = entries.iter().filter_map(|entry| match &entry.what {
            What::Told { told, detail } => Some((*told, detail.as_str())),
            What::Heard { told } => Some((*told, "in answer to a question")),
            What::Begun { .. } | What::Ready { .. } => None,
        });
        for (told, detail) in told {
            if !fits(told, found, true) {
                wrong.push(format!(
                    "{gtrid}: the client was told {told:?} ({detail}), the databases say {found:?}"
                ));
            }
        }
        match self.asked.get(gtrid) {
            Some(told) if fits(*told, found, self.forgets) => {}
            Some(told) => wrong
                .push(format!("{gtrid}: asked again the answer is {told:?}, the databases say {found:?}")),
            None => wrong.push(format!("{gtrid}: nobody could be asked for it")),
        }
        wrong
    }

    /// Whoever asks for it is told, and nobody was told that it was rolled back: the decision was commit.
    fn contradictions_of_torn(&self, gtrid: &str, entries: &[&Entry]) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.asked.get(gtrid) != Some(&Told::Heuristic) {
            wrong.push(format!(
                "{gtrid}: torn by hand, and asked again the answer is {:?}",
                self.asked.get(gtrid)
            ));
        }
        let denied = |entry: &&Entry| match entry.what {
            What::Told { told, .. } | What::Heard { told } => told == Told::RolledBack,
            What::Begun { .. } | What::Ready { .. } => false,
        };
        if entries.iter().any(denied) {
            wrong.push(format!(
                "{gtrid}: decided to commit, torn by hand, and the client was told RolledBack"
            ));
        }
        wrong
    }

    /// Money that came from nowhere, and balances that are not what the transfers make them.
    fn wrong_books(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let banks = i64::try_from(self.pages.len()).expect("one bank or two");
        let total: i64 = self.pages.iter().map(|page| page.total).sum();
        let torn = self.torn_by_hand.as_deref().unwrap_or_default();
        let by_hand: i64 = self.pages.iter().filter_map(|page| page.transfers.get(torn)).sum();
        let expected = banks * ACCOUNTS * OPENING_BALANCE + by_hand;
        // What one bank alone moves, it moves out of the world; only between two is money conserved.
        if banks > 1 && total != expected {
            wrong.push(format!("money is not conserved: {total} instead of {expected}"));
        }
        for page in &self.pages {
            if !page.wrong_accounts.is_empty() {
                wrong.push(format!("accounts do not match their transfers: {:?}", page.wrong_accounts));
            }
        }
        wrong
    }
}

fn all_have_voted(branches: &[String]) -> bool {
    !branches.is_empty() && branches.iter().all(|state| state == PREPARED)
}

/// Whether what somebody was told can be true of what is in the databases.
fn fits(told: Told, found: Found, unknown_is_an_answer: bool) -> bool {
    match told {
        Told::Committed => found == Found::Committed,
        Told::RolledBack => found == Found::RolledBack,
        Told::Unknown => unknown_is_an_answer,
        // Nobody forced anything by hand in these cells.
        Told::Heuristic => false,
    }
}

/// Whether what was found is what had to come.
fn is_expected(expected: Expected, found: Found) -> bool {
    match expected {
        Expected::Committed => found == Found::Committed,
        Expected::RolledBack => found == Found::RolledBack,
        Expected::Either => found != Found::Torn,
        Expected::Heuristic => found == Found::Torn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(transfers: &[(&str, i64)]) -> Page {
        let transfers: BTreeMap<String, i64> =
            transfers.iter().map(|(gtrid, amount)| ((*gtrid).to_owned(), *amount)).collect();
        let total = ACCOUNTS * OPENING_BALANCE + transfers.values().sum::<i64>();
        Page { transfers, total, wrong_accounts: Vec::new() }
    }

    fn ledger(lines: &[(u64, &str, Option<Told>)]) -> Vec<Entry> {
        let entry = |(at, gtrid, told): &(u64, &str, Option<Told>)| Entry {
            at: *at,
            gtrid: (*gtrid).to_owned(),
            what: match told {
                None => What::Begun { plan: Plan::Commit },
                Some(told) => What::Told { told: *told, detail: String::new() },
            },
        };
        lines.iter().map(entry).collect()
    }

    fn seen(first: &[(&str, i64)], second: &[(&str, i64)], told: Option<Told>, asked: Told) -> Seen {
        let mut lines = vec![(1, "t", None)];
        lines.extend(told.map(|told| (3, "t", Some(told))));
        let asked = BTreeMap::from([("t".to_owned(), asked)]);
        Seen {
            pages: vec![page(first), page(second)],
            ledger: ledger(&lines),
            asked,
            forgets: false,
            torn_by_hand: None,
        }
    }

    #[test]
    fn what_fits_together_is_no_contradiction() {
        use Told::{Committed, RolledBack, Unknown};
        let both: (&[_], &[_]) = (&[("t", -5)], &[("t", 5)]);
        for (told, asked, (first, second)) in [
            (Some(Committed), Committed, both),
            (Some(Unknown), Committed, both),
            (None, Committed, both),
            (Some(RolledBack), RolledBack, (&[][..], &[][..])),
            (Some(Unknown), RolledBack, (&[][..], &[][..])),
        ] {
            assert_eq!(
                seen(first, second, told, asked).contradictions(),
                Vec::<String>::new(),
                "{told:?} {asked:?}"
            );
        }
    }

    #[test]
    fn each_contradiction_is_found_and_named() {
        use Told::{Committed, Heuristic, RolledBack, Unknown};
        let (paid, got): (&[_], &[_]) = (&[("t", -5)], &[("t", 5)]);
        for (seen, expected) in [
            (seen(paid, &[], Some(Unknown), Committed), "torn"),
            (seen(&[], got, Some(Unknown), Committed), "torn"),
            (seen(paid, &[], Some(Unknown), Committed), "conserved"),
            (seen(paid, got, Some(RolledBack), Committed), "the client was told RolledBack"),
            (seen(&[], &[], Some(Committed), RolledBack), "the client was told Committed"),
            (seen(paid, got, Some(Heuristic), Committed), "the client was told Heuristic"),
            (seen(paid, got, Some(Unknown), RolledBack), "asked again the answer is RolledBack"),
            (seen(&[], &[], Some(Unknown), Committed), "asked again the answer is Committed"),
            (seen(paid, got, Some(Unknown), Unknown), "asked again the answer is Unknown"),
            (Seen { asked: BTreeMap::new(), ..seen(paid, got, None, Committed) }, "nobody could be asked"),
            (Seen { ledger: Vec::new(), ..seen(paid, got, None, Committed) }, "nobody began it"),
        ] {
            let wrong = seen.contradictions().join("\n");
            assert!(wrong.contains(expected), "{expected:?} is not in {wrong:?}");
        }
        let mut cooked = seen(paid, got, None, Committed);
        cooked.pages[0].wrong_accounts.push(2);
        assert!(cooked.contradictions().join("\n").contains("do not match"));
    }

    #[test]
    fn what_a_hand_has_torn_is_told_and_never_denied() {
        let torn = |told, asked| Seen {
            torn_by_hand: Some("t".to_owned()),
            ..seen(&[("t", -5)], &[], Some(told), asked)
        };
        for told in [Told::Committed, Told::Unknown, Told::Heuristic] {
            assert_eq!(torn(told, Told::Heuristic).contradictions(), Vec::<String>::new(), "{told:?}");
        }
        assert!(!torn(Told::RolledBack, Told::Heuristic).contradictions().is_empty());
        assert!(!torn(Told::Unknown, Told::Committed).contradictions().is_empty());
        assert!(!torn(Told::Unknown, Told::RolledBack).contradictions().is_empty());
    }

    #[test]
    fn a_vote_that_came_only_when_it_was_asked_for_is_found() {
        let seen = |states: Option<&[&str]>| {
            let mut seen = seen(&[("t", -5)], &[("t", 5)], Some(Told::Committed), Told::Committed);
            seen.ledger[0].what = What::Begun { plan: Plan::EarlyVote };
            if let Some(states) = states {
                let branches = states.iter().map(|state| (*state).to_owned()).collect();
                seen.ledger.insert(1, Entry { at: 2, gtrid: "t".to_owned(), what: What::Ready { branches } });
            }
            seen
        };
        assert!(seen(Some(&["prepared", "prepared"])).committed_without_early_votes().is_empty());
        for late in [None, Some(&[][..]), Some(&["prepared", "enlisted"][..])] {
            assert_eq!(seen(late).committed_without_early_votes().len(), 1, "{late:?}");
        }
        let ready = seen(Some(&["prepared"]));
        assert!(!ready.was_ready_at("t", 1) && ready.was_ready_at("t", 2) && !ready.was_ready_at("u", 9));
        assert!(!seen(None).was_ready_at("t", 9));
    }

    #[test]
    fn a_forgetful_coordinator_may_answer_unknown_and_nothing_else_that_does_not_fit() {
        let forgets =
            |asked| Seen { forgets: true, ..seen(&[("t", -5)], &[("t", 5)], Some(Told::Committed), asked) };
        assert!(forgets(Told::Unknown).contradictions().is_empty());
        assert!(!forgets(Told::RolledBack).contradictions().is_empty());
    }

    #[test]
    fn the_transaction_that_was_struck_is_the_one_that_was_begun_and_not_told() {
        let told = Some(Told::Committed);
        let ledger = ledger(&[(10, "a", None), (20, "a", told), (30, "b", None), (40, "b", told)]);
        let seen =
            Seen { pages: Vec::new(), ledger, asked: BTreeMap::new(), forgets: false, torn_by_hand: None };
        let at = |at| seen.under_way_at(at);
        assert_eq!((at(5), at(10), at(19), at(20)), (None, Some("a"), Some("a"), None));
        assert_eq!((at(29), at(35), at(50)), (None, Some("b"), None));
    }
}
