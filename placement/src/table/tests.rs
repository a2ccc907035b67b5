//! The table by itself: which descriptors count, what covers a keyspace, and what nodes are told.

use bytes::Bytes;

use super::*;

fn descriptor(range: u64, start: &str, end: &str, version: u64, conf_ver: u64) -> v1::RangeDescriptor {
    let replica = |node| v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 };
    v1::RangeDescriptor {
        range_id: range,
        keyspace_id: 1,
        start: Bytes::copy_from_slice(start.as_bytes()),
        end: Bytes::copy_from_slice(end.as_bytes()),
        epoch: Some(v1::Epoch { conf_ver, version }),
        replicas: vec![replica(1), replica(2)],
        next_replica_id: 3,
    }
}

fn report(descriptor: &v1::RangeDescriptor, leader: u64, term: u64) -> v1::RangeReport {
    v1::RangeReport {
        descriptor: Some(descriptor.clone()),
        replica_id: 1,
        term,
        leader_node_id: leader,
        data_bytes: 100,
        ..Default::default()
    }
}

fn ranges(table: &Table) -> Vec<u64> {
    table.in_order().map(|route| route.descriptor.range_id).collect()
}

#[test]
fn a_split_takes_the_old_cut_out_whichever_half_comes_first() {
    for child_first in [false, true] {
        let mut table = Table::default();
        table.report(0, 1, &report(&descriptor(2, "", "", 1, 1), 1, 1));
        let mut halves = [descriptor(2, "", "m", 2, 1), descriptor(3, "m", "", 2, 1)];
        if child_first {
            halves.reverse();
        }
        for half in &halves {
            table.report(0, 1, &report(half, 1, 1));
        }
        assert_eq!(ranges(&table), [2, 3]);
        assert!(table.tiles(1));
        // A replica that has not applied the split says what is old.
        assert!(!table.report(0, 2, &report(&descriptor(2, "", "", 1, 1), 1, 1)));
        assert_eq!(ranges(&table), [2, 3]);
    }
}

/// A range of which nothing was left begins again under its id, with its first term; a claim of an older term by one that
/// is not beyond the leap of a recovery is none.
#[test]
fn who_leads_a_range_that_has_begun_again_is_believed_whatever_its_term() {
    let led = |table: &Table| table.get(2).map(|route| (route.leader, route.term));
    let mut table = Table::default();
    table.report(0, 1, &report(&descriptor(2, "", "", 1, 1), 1, 90));
    table.report(0, 2, &report(&descriptor(2, "", "", 1, 2), 2, 6));
    assert_eq!(led(&table), Some((1, 90)));
    let again = descriptor(2, "", "", 1, 2 + crate::recovery::LEAP);
    table.report(0, 2, &report(&again, 2, 6));
    assert_eq!(led(&table), Some((2, 6)));
    table.report(0, 2, &report(&again, 2, 7));
    assert_eq!(led(&table), Some((2, 7)));
}

#[test]
fn a_descriptor_older_than_what_covers_its_span_has_no_place() {
    let mut table = Table::default();
    table.report(0, 1, &report(&descriptor(3, "m", "", 3, 1), 1, 1));
    table.report(0, 1, &report(&descriptor(2, "", "", 1, 1), 1, 1));
    assert_eq!(ranges(&table), [3]);
    assert!(!table.tiles(1));
    table.report(0, 1, &report(&descriptor(2, "", "m", 2, 1), 1, 1));
    assert!(table.tiles(1) && !table.tiles(2));
}

#[test]
fn the_leader_of_the_larger_term_counts() {
    let mut table = Table::default();
    let range = descriptor(2, "", "", 1, 1);
    table.report(0, 1, &report(&range, 1, 5));
    table.report(0, 2, &report(&range, 2, 4));
    assert_eq!(table.get(2).map(|route| (route.leader, route.term)), Some((1, 5)));
    // A follower knows of a newer one, which has not reported yet.
    table.report(0, 1, &report(&range, 2, 6));
    assert_eq!(table.get(2).map(|route| (route.leader, route.led.is_some())), Some((2, false)));
    table.report(0, 2, &report(&range, 2, 6));
    assert_eq!(table.get(2).map(|route| (route.leader, route.led.is_some())), Some((2, true)));
    // It steps down.
    table.report(0, 2, &report(&range, 0, 6));
    assert_eq!(table.get(2).map(|route| route.leader), Some(0));
}

#[test]
fn what_nodes_hold_and_lead_follows_every_change() {
    let mut table = Table::default();
    table.report(0, 1, &report(&descriptor(2, "", "", 1, 1), 1, 1));
    let mut moved = descriptor(2, "", "", 1, 2);
    moved.replicas[1].node_id = 9;
    table.report(0, 1, &report(&moved, 1, 1));
    assert_eq!(table.holding(2).map(|holding| (holding.held.len(), holding.bytes)), Some((0, 0)));
    assert_eq!(table.holding(9).map(|holding| (holding.held.len(), holding.bytes)), Some((1, 100)));
    assert_eq!(table.holding(1).map(|holding| holding.led.len()), Some(1));
    assert!(table.not_there(1, 2));
    assert_eq!(table.holding(1).map(|holding| holding.led.len()), Some(0));
    table.remove(2);
    assert_eq!(table.holding(1), Some(&Holding::default()));
}

#[test]
fn a_delta_names_each_change_once_and_what_went() {
    let mut table = Table::default();
    for (range, span) in [(2, ("", "b")), (3, ("b", "c")), (4, ("c", ""))] {
        table.report(0, 1, &report(&descriptor(range, span.0, span.1, 1, 1), 1, 1));
    }
    let all = table.delta(None, 1 << 20);
    assert!(all.full && !all.more && all.routes.len() == 3);
    assert!(table.delta(Some(all.sequence), 1 << 20).routes.is_empty());
    table.report(0, 1, &report(&descriptor(3, "b", "c", 1, 2), 1, 1));
    table.report(0, 1, &report(&descriptor(3, "b", "c", 1, 3), 1, 2));
    table.remove(4);
    let delta = table.delta(Some(all.sequence), 1 << 20);
    assert_eq!((delta.full, delta.routes.len(), delta.gone), (false, 1, vec![4]));
    // A number that was never given out, as of another reign: everything.
    assert!(table.delta(Some(delta.sequence + 1), 1 << 20).full);
}

#[test]
fn pages_of_a_delta_leave_nothing_out() {
    let mut table = Table::default();
    for at in 0..50 {
        let (start, end) = (format!("{at:02}"), format!("{:02}", at + 1));
        table.report(0, 1, &report(&descriptor(2 + at, &start, &end, 1, 1), 1, 1));
    }
    let (mut found, mut since) = (BTreeSet::new(), None);
    loop {
        let page = table.delta(since, 200);
        assert_eq!(page.full, since.is_none());
        found.extend(page.routes.iter().filter_map(|route| Some(route.descriptor.as_ref()?.range_id)));
        since = Some(page.sequence);
        if !page.more {
            break;
        }
    }
    assert_eq!(found.len(), 50);
}
