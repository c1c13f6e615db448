//! Which coordinators to be connected to: those that were named, and those that they tell of.
//!
//! Coordinators that share a decision log tell who else does, so that a list need not be complete, and one name is enough. One
//! pure function says what is to be changed; the participant and the client carry it out, every now and then.

use std::collections::BTreeSet;

use lockstep_proto::limits::{MAX_ADDRESS_BYTES, MAX_NODES};
use lockstep_proto::wire::WireError;
use lockstep_proto::{Epoch, v1};

use crate::session::message::NodeAddress;

/// What a coordinator tells of those that share its log.
pub(crate) fn from_wire(nodes: Vec<v1::Node>) -> Result<Vec<NodeAddress>, WireError> {
    if nodes.len() > MAX_NODES {
        return Err(WireError::Limit { field: "nodes", why: "at most 64" });
    }
    let node = |node: v1::Node| {
        let why = "an epoch, and an address of at most 255 bytes";
        let epoch = Epoch::new(node.epoch).filter(|_| node.address.len() <= MAX_ADDRESS_BYTES);
        let epoch = epoch.ok_or(WireError::Limit { field: "nodes", why })?;
        Ok(NodeAddress { epoch, address: node.address })
    };
    nodes.into_iter().map(node).collect()
}

/// A coordinator that there is a connection with, or that one is tried with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// Where.
    pub(crate) address: &'a str,
    /// The application named it: it stays, whatever becomes of it.
    pub(crate) is_named: bool,
    /// Its epoch, as long as there is a connection.
    pub(crate) epoch: Option<Epoch>,
    /// Whom it has told of.
    pub(crate) told: &'a [NodeAddress],
}

/// What is to be changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Addresses to connect to.
    pub(crate) add: Vec<String>,
    /// Places in what is known, to be left.
    pub(crate) leave: Vec<usize>,
}

/// What is to be changed, where this is known; those that the application named stand first.
///
/// A coordinator can be reached by several addresses, of which the application named one and it tells another: its epoch says
/// that it is the same.
pub(crate) fn change(known: &[Known<'_>]) -> Change {
    let connected = || known.iter().filter(|known| known.epoch.is_some());
    if connected().next().is_none() {
        return Change::default(); // What was told before is the best there is.
    }
    let told = || connected().flat_map(|known| known.told);
    let listed: BTreeSet<&str> = told().map(|node| node.address.as_str()).collect();
    let leave = |&place: &usize| {
        let Known { address, is_named, epoch, .. } = known[place];
        let is_second = epoch.is_some() && known[..place].iter().any(|earlier| earlier.epoch == epoch);
        !is_named && (is_second || epoch.is_none() && !listed.contains(address))
    };
    let leave: Vec<usize> = (0..known.len()).filter(leave).collect();
    let is_known = |node: &NodeAddress| {
        known.iter().any(|known| known.address == node.address || known.epoch == Some(node.epoch))
    };
    let add: BTreeSet<&str> =
        told().filter(|node| !is_known(node)).map(|node| node.address.as_str()).collect();
    let room = MAX_NODES.saturating_sub(known.len() - leave.len());
    Change { add: add.into_iter().take(room).map(str::to_owned).collect(), leave }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(nodes: &[(u32, &str)]) -> Vec<NodeAddress> {
        let node = |&(epoch, address): &(u32, &str)| NodeAddress {
            epoch: Epoch::new(epoch).unwrap(),
            address: address.to_owned(),
        };
        nodes.iter().map(node).collect()
    }

    /// Each one known by its address: named if it has a `!`, and connected if it has an epoch.
    fn changes(known: &[(&str, u32, &[NodeAddress])]) -> (Vec<String>, Vec<usize>) {
        let of = |&(address, epoch, told): &(&'static str, u32, _)| Known {
            address: address.trim_start_matches('!'),
            is_named: address.starts_with('!'),
            epoch: Epoch::new(epoch),
            told,
        };
        let known: Vec<(&'static str, u32, &[NodeAddress])> = known
            .iter()
            .map(|(address, epoch, told)| (&*(*address).to_owned().leak(), *epoch, *told))
            .collect();
        let Change { add, leave } = change(&known.iter().map(of).collect::<Vec<_>>());
        (add, leave)
    }

    #[test]
    fn who_is_told_of_is_connected_to_once() {
        let both = told(&[(7, "a"), (8, "b")]);
        assert_eq!(changes(&[("!a", 7, &both)]), (vec!["b".to_owned()], vec![]));
        assert_eq!(changes(&[("!a", 7, &both), ("b", 0, &[])]), (vec![], vec![]));
        assert_eq!(changes(&[("!a", 7, &both), ("!c", 6, &both)]), (vec!["b".to_owned()], vec![]));
    }

    #[test]
    fn the_same_coordinator_under_another_address_is_not_another_one() {
        let both = told(&[(7, "10.0.0.1"), (8, "10.0.0.2")]);
        assert_eq!(changes(&[("!a", 7, &both), ("!b", 8, &both)]), (vec![], vec![]));
        // Its own connection came later than what the other one told.
        let third = ("10.0.0.2", 8, &*both);
        assert_eq!(changes(&[("!a", 7, &both), ("!b", 8, &both), third]), (vec![], vec![2]));
        // Which is named stays, be it there twice.
        assert_eq!(changes(&[("!a", 7, &both), ("!b", 7, &both)]), (vec!["10.0.0.2".to_owned()], vec![]));
    }

    #[test]
    fn who_is_not_told_of_any_more_is_left_once_it_is_gone() {
        let alone = told(&[(7, "a")]);
        assert_eq!(changes(&[("!a", 7, &alone), ("b", 8, &alone)]), (vec![], vec![]));
        assert_eq!(changes(&[("!a", 7, &alone), ("b", 0, &[])]), (vec![], vec![1]));
        assert_eq!(changes(&[("!a", 7, &alone), ("!b", 0, &[])]), (vec![], vec![]));
    }

    #[test]
    fn a_coordinator_that_begins_again_is_where_it_was() {
        let again = told(&[(7, "a"), (9, "b")]);
        assert_eq!(changes(&[("!a", 7, &again), ("b", 0, &told(&[(8, "b")]))]), (vec![], vec![]));
        // Until its old epoch is sealed, both are told of.
        let twice = told(&[(7, "a"), (8, "b"), (9, "b")]);
        assert_eq!(changes(&[("!a", 7, &twice)]), (vec!["b".to_owned()], vec![]));
    }

    #[test]
    fn nothing_is_left_while_nobody_answers() {
        let both = told(&[(7, "a"), (8, "b")]);
        assert_eq!(changes(&[("!a", 0, &both), ("b", 0, &both), ("c", 0, &[])]), (vec![], vec![]));
    }

    #[test]
    fn there_are_never_more_than_64() {
        let many: Vec<NodeAddress> =
            (1..=64).flat_map(|epoch| told(&[(epoch, &format!("node-{epoch}"))])).collect();
        let (add, _) = changes(&[("!a", 100, &many), ("!b", 101, &many)]);
        assert_eq!(add.len(), 62);
    }

    #[test]
    fn a_list_that_is_too_long_or_has_no_epoch_is_not_understood() {
        let node = |epoch, bytes| v1::Node { epoch, address: "a".repeat(bytes) };
        assert!(from_wire(vec![node(1, 255); 64]).is_ok());
        for wrong in [vec![node(1, 1); 65], vec![node(0, 1)], vec![node(1, 256)]] {
            assert!(from_wire(wrong).is_err());
        }
    }
}
