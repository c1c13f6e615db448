//! The encoding: what goes in comes out, anything else is noticed, and nothing makes it panic.

use std::collections::BTreeMap;

use lockstep_proto::{
    Bqual, ClusterId, Epoch, Gtrid, Incarnation, ResourceManagerId, ResourceManagerName, TraceParent,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::decision_log::KnownResourceManager;
use crate::decision_log::contract::{commit, committed, gtrid};
use crate::decision_log::rows::*;
use crate::fuzz::{config, near};
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};

fn gtrids() -> impl Strategy<Value = Gtrid> {
    (1u32.., 0u64..1 << 48, any::<[u8; 10]>())
        .prop_map(|(epoch, ms, random)| Gtrid::new(Epoch::new(epoch).unwrap(), ms, random))
}

fn names() -> impl Strategy<Value = ResourceManagerName> {
    "[a-z0-9][a-z0-9_-]{0,46}".prop_map(|text| text.parse().unwrap())
}

fn bquals() -> impl Strategy<Value = Bqual> {
    (names(), any::<u64>()).prop_map(|(name, random)| Bqual::new(&name, random))
}

fn abouts() -> impl Strategy<Value = About> {
    let labels = prop_oneof![Just(BTreeMap::new()), btree_map(".{0,9}", ".{0,9}", 0..5)];
    let traces = option::of(any::<[u8; TraceParent::BYTES]>())
        .prop_map(|bytes| bytes.and_then(|bytes| TraceParent::from_bytes(&bytes)));
    (".{0,20}", labels, traces).prop_map(|(name, labels, trace)| About { name, labels, trace })
}

fn decisions() -> impl Strategy<Value = DecisionRecord> {
    let intent = vec(bquals(), 1).prop_map(|branches| (DecisionKind::OnePhaseIntent, branches));
    let commit = vec(bquals(), 1..20).prop_map(|branches| (DecisionKind::Commit, branches));
    (gtrids(), prop_oneof![intent, commit], 0..1u64 << 62, abouts()).prop_map(
        |(gtrid, (kind, branches), decided_ms, about)| DecisionRecord {
            gtrid,
            kind,
            branches,
            decided_ms,
            about,
        },
    )
}

fn branch_ends() -> impl Strategy<Value = BranchEnd> {
    use BranchEnd::{Abandoned, Committed, Hazard, Lost, ReadOnly, RolledBack};
    select(vec![Committed, RolledBack, ReadOnly, Hazard, Lost, Abandoned])
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    let heuristics = [Heuristic::Commit, Heuristic::Rollback, Heuristic::Mixed, Heuristic::Hazard];
    let plain = [Outcome::Committed, Outcome::RolledBack, Outcome::NothingToCommit];
    select([&plain[..], &heuristics.map(Outcome::Heuristic)].concat())
}

/// An end of its own, or one near to what the decision says, perhaps with something added or changed.
fn ends(decision: DecisionRecord) -> impl Strategy<Value = EndRecord> {
    let near = committed(&decision);
    let strange = (outcomes(), ".{0,30}", vec((bquals(), branch_ends()), 0..6), 0..1u64 << 62, abouts());
    (strange, any::<[bool; 5]>(), any::<Index>()).prop_map(move |(strange, take, at)| {
        let (outcome, detail, branches, ended_ms, about) = strange;
        let mut end = near.clone();
        let gtrid = end.gtrid;
        if take[0] {
            return EndRecord { gtrid, outcome, detail, branches, ended_ms, about };
        }
        if take[1] {
            let at = at.index(end.branches.len() + 1);
            end.branches.splice(at..at, branches);
        }
        if take[2] {
            let at = at.index(end.branches.len());
            end.branches.remove(at);
        }
        if take[3] {
            end.about = about;
        }
        if take[4] {
            end.detail = detail;
        }
        end
    })
}

fn managers() -> impl Strategy<Value = KnownResourceManager> {
    (names(), any::<[u8; 16]>(), ".{0,40}", any::<u32>(), option::of(gtrids()), any::<bool>()).prop_map(
        |(name, identity, location, timeline, floor, retired)| {
            let identity = ResourceManagerId::from_bytes(identity);
            KnownResourceManager { name, identity, location, timeline, floor, retired }
        },
    )
}

/// Every decoder over these bytes. That it returns is all that is asked.
fn decode_all(gtrid: Gtrid, bytes: &[u8], decision: &DecisionRecord) {
    let _ = decode_decision(gtrid, bytes);
    let _ = decode_end(gtrid, 0, bytes, None);
    let _ = decode_end(gtrid, -1, bytes, Some(decision));
    let _ = decode_epoch(1, bytes);
    let _ = decode_resource_manager("orders-db", bytes);
    let _ = decode_resource_manager("Not A Name", bytes);
    let _ = decode_cluster(bytes);
    let _ = decode_horizon(bytes);
}

proptest! {
    #[test]
    fn a_decision_survives(decision in decisions()) {
        let record = encode_decision(&decision);
        prop_assert_eq!(decode_decision(decision.gtrid, &record), Ok(decision));
    }

    #[test]
    fn an_end_survives_beside_its_decision(
        (decision, end) in decisions().prop_flat_map(|decision| (Just(decision.clone()), ends(decision))),
        kept: bool,
    ) {
        let decision = kept.then_some(&decision);
        let record = encode_end(&end, decision).unwrap();
        let ended_ms = column_ms(end.ended_ms);
        prop_assert_eq!(decode_end(end.gtrid, ended_ms, &record, decision), Ok(end));
    }

    #[test]
    fn the_other_records_survive(
        manager in managers(),
        number in 1u32..,
        incarnation: [u8; 16],
        sequence: u64,
        sealed: bool,
        cluster: u32,
    ) {
        let incarnation = Incarnation::from_bytes(incarnation);
        let epoch = EpochRow { incarnation, sequence, sealed };
        prop_assert_eq!(decode_epoch(number, &encode_epoch(number, &epoch)), Ok(epoch));
        prop_assert_eq!(decode_horizon(&encode_horizon(sequence)), Ok(sequence));
        let cluster = ClusterId::from_random(cluster);
        prop_assert_eq!(decode_cluster(&encode_cluster(cluster)), Ok(cluster));
        let record = encode_resource_manager(&manager);
        prop_assert_eq!(decode_resource_manager(manager.name.as_str(), &record), Ok(manager));
    }

    #[test]
    fn a_flipped_bit_is_noticed(decision in decisions(), at: Index, bit in 0..8u32) {
        let mut record = encode_decision(&decision);
        let at = at.index(record.len());
        record[at] ^= 1u8 << bit;
        prop_assert!(decode_decision(decision.gtrid, &record).is_err());
    }

    #[test]
    fn a_record_in_another_row_or_column_is_noticed(decision in decisions(), other in gtrids()) {
        let record = encode_decision(&decision);
        prop_assume!(other != decision.gtrid);
        prop_assert_eq!(decode_decision(other, &record), Err(RowError::Checksum));
        prop_assert_eq!(decode_end(decision.gtrid, 0, &record, None), Err(RowError::Checksum));
        let end = encode_end(&committed(&decision), Some(&decision)).unwrap();
        let ended_ms = column_ms(committed(&decision).ended_ms);
        prop_assert!(decode_end(decision.gtrid, ended_ms, &end, Some(&decision)).is_ok());
        prop_assert_eq!(decode_end(decision.gtrid, ended_ms ^ 1, &end, Some(&decision)), Err(RowError::Checksum));
    }

    #[test]
    fn nothing_panics_on_any_bytes(gtrid in gtrids(), bytes in vec(any::<u8>(), 0..200), decision in decisions()) {
        decode_all(gtrid, &bytes, &decision);
        // And behind a checksum that fits.
        for (kind, key) in [
            (Kind::Decision, gtrid.to_bytes().to_vec()),
            (Kind::End, [&gtrid.to_bytes()[..], &[0; 8]].concat()),
            (Kind::End, [&gtrid.to_bytes()[..], &[255; 8]].concat()),
            (Kind::Epoch, 1u32.to_be_bytes().to_vec()),
            (Kind::ResourceManager, b"orders-db".to_vec()),
            (Kind::ResourceManager, b"Not A Name".to_vec()),
            (Kind::Mark, b"cluster".to_vec()),
            (Kind::Mark, b"horizon".to_vec()),
        ] {
            decode_all(gtrid, &frame(kind, &key, &bytes), &decision);
        }
    }

    #[test]
    fn a_damaged_body_behind_a_fitting_checksum_does_not_panic(decision in decisions(), at: Index, byte: u8) {
        let mut body = encode_decision(&decision).split_off(5);
        let at = at.index(body.len());
        body[at] = byte;
        let record = frame(Kind::Decision, &decision.gtrid.to_bytes(), &body);
        if let Ok(read) = decode_decision(decision.gtrid, &record) {
            // Whatever it says now is a decision that can be written again.
            prop_assert_eq!(decode_decision(read.gtrid, &encode_decision(&read)), Ok(read));
        }
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever a row of the log holds, as it is and behind a checksum that fits.
    #[test]
    fn fuzz_log_rows(bytes in near("log-rows")) {
        let decision = commit(gtrid(Epoch::new(3).unwrap(), 5, 7));
        let gtrid = decision.gtrid;
        decode_all(gtrid, &bytes, &decision);
        for (kind, key) in [
            (Kind::Decision, gtrid.to_bytes().to_vec()),
            (Kind::End, [&gtrid.to_bytes()[..], &[0; 8]].concat()),
            (Kind::Epoch, 1u32.to_be_bytes().to_vec()),
            (Kind::ResourceManager, b"orders-db".to_vec()),
            (Kind::Mark, b"cluster".to_vec()),
            (Kind::Mark, b"horizon".to_vec()),
            (Kind::Operation, 1u64.to_be_bytes().to_vec()),
        ] {
            let record = frame(kind, &key, &bytes);
            decode_all(gtrid, &record, &decision);
            let _ = decode_operation(1, None, &record);
        }
        if let Ok(read) = decode_decision(gtrid, &frame(Kind::Decision, &gtrid.to_bytes(), &bytes)) {
            // Whatever it says is a decision that can be written again.
            prop_assert_eq!(decode_decision(gtrid, &encode_decision(&read)), Ok(read));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Logs that were written have to be read for ever. A change of these bytes is a new format.
#[test]
fn the_format_is_what_it_was() {
    let decision = commit(gtrid(Epoch::new(3).unwrap(), 5, 7));
    let end = encode_end(&committed(&decision), Some(&decision)).unwrap();
    assert_eq!(
        hex(&encode_decision(&decision)),
        "01547c0b34\
         0801\
         12140a096f72646572732d6462110707070707070707\
         12130a0873746f636b2d6462110707070707070707\
         1899a0f1c2b134"
    );
    assert_eq!(hex(&end), "01208c86e508011801");
}

/// The body of a decision as a version reads it that knows of no spans.
#[derive(Clone, PartialEq, Message)]
struct OlderDecisionBody {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, repeated, tag = "2")]
    branches: Vec<BqualBody>,
    #[prost(uint64, tag = "3")]
    decided_ms: u64,
    #[prost(message, optional, tag = "4")]
    about: Option<OlderAboutBody>,
}

#[derive(Clone, PartialEq, Message)]
struct OlderAboutBody {
    #[prost(string, tag = "1")]
    name: String,
}

#[test]
fn a_recorded_span_is_one_field_more_and_an_older_version_passes_it_over() {
    let plain = commit(gtrid(Epoch::new(3).unwrap(), 5, 7));
    let about = About { name: "pay".to_owned(), ..About::default() };
    let named = DecisionRecord { about: about.clone(), ..plain };
    let trace = TraceParent::new([1; 16], [2; 8], true);
    let traced = DecisionRecord { about: About { trace, ..about }, ..named.clone() };
    let bytes = encode_decision(&traced);
    assert_eq!(bytes.len(), encode_decision(&named).len() + 2 + TraceParent::BYTES);
    assert_eq!(decode_decision(traced.gtrid, &bytes).as_ref(), Ok(&traced));
    let older: OlderDecisionBody = unframe(Kind::Decision, &traced.gtrid.to_bytes(), &bytes).unwrap();
    assert_eq!(older.about.unwrap().name, "pay");
    assert_eq!(older.branches.len(), 2);
}

#[test]
fn a_span_that_is_none_is_damage() {
    let about = |trace: Vec<u8>| AboutBody { trace, ..AboutBody::default() }.about();
    assert_eq!(about(Vec::new()).unwrap().trace, None);
    for wrong in [vec![1; 23], vec![1; 25], vec![0; 24]] {
        assert_eq!(about(wrong), Err(RowError::Malformed("trace")));
    }
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let decision = commit(gtrid(Epoch::new(3).unwrap(), 5, 7));
    let mut record = encode_decision(&decision);
    record[0] = 2;
    assert_eq!(decode_decision(decision.gtrid, &record), Err(RowError::Newer(2)));
    record[0] = 0;
    assert_eq!(decode_decision(decision.gtrid, &record), Err(RowError::Checksum));
    assert_eq!(decode_decision(decision.gtrid, &record[..4]), Err(RowError::Short));
}

#[test]
fn a_decision_has_as_many_branches_as_it_may() {
    let decision = commit(gtrid(Epoch::new(3).unwrap(), 5, 7));
    let with = |kind, count: u64| {
        let branches = (0..count).map(|n| Bqual::new(&"orders-db".parse().unwrap(), n)).collect();
        let decision = DecisionRecord { kind, branches, ..decision.clone() };
        decode_decision(decision.gtrid, &encode_decision(&decision)).map(|_decision| ())
    };
    let malformed = Err(RowError::Malformed("list of branches"));
    for (kind, most) in [(DecisionKind::Commit, 256), (DecisionKind::OnePhaseIntent, 1)] {
        assert_eq!(with(kind, 0), malformed);
        assert_eq!(with(kind, most), Ok(()));
        assert_eq!(with(kind, most + 1), malformed);
    }
}
