//! Histories known to be good, some of which look bad at first sight.

use super::super::{nothing_lost, timeline};
use super::*;

#[test]
fn empty_and_sequential_histories() {
    Script::new().passes();
    Script::new()
        .get_nothing((0, 1))
        .delete_nothing((2, 3))
        .put((4, 5), "a", 1)
        .get((6, 7), "a", 1)
        .failed((8, 9), swap_value("x", "y"), Some(("a", 1)))
        .applied((10, 11), swap(Expect::Version(1), "b"), 4)
        .exists((12, 13), "c", 4)
        .deleted((14, 15), 9)
        .failed((16, 17), swap(Expect::Version(4), "d"), None)
        .applied((18, 19), swap(Expect::Absent, "e"), 10)
        .applied((20, 21), remove_value("e"), 11)
        .applied((22, 23), if_absent("f"), 12)
        .get((24, 25), "f", 12)
        .passes();
}

#[test]
fn concurrent_writes_in_the_order_of_their_versions() {
    Script::new()
        .put((0, 10), "a", 2)
        .put((0, 10), "b", 1)
        .get((1, 3), "b", 1)
        .get((4, 6), "a", 2)
        .get_nothing((0, 2))
        .passes();
}

#[test]
fn equal_times_count_as_concurrent_when_recorded_elsewhere() {
    Script::new().put((0, 5), "a", 1).get_nothing((5, 6)).passes();
}

#[test]
fn equal_times_are_ordered_when_recorded_in_order() {
    let mut history = History::new();
    let id = history.invoke(1, 5, "k".into(), put("a"));
    history.complete(id, 5, Outcome::Ok(Output::Put { version: 1 }));
    let id = history.invoke(1, 5, "k".into(), Input::Get);
    history.complete(id, 5, Outcome::Ok(Output::Get(None)));
    assert!(!check(&history, Budget::default()).is_ok());
}

#[test]
fn unknown_write_takes_effect_late() {
    Script::new()
        .unknown(0, put("late"))
        .put((1, 2), "a", 1)
        .get((3, 4), "a", 1)
        .put((5, 6), "b", 2)
        .get((7, 8), "late", 9)
        .put((9, 10), "c", 11)
        .get((11, 12), "c", 11)
        .passes();
}

#[test]
fn unknown_write_is_seen_by_a_delete_alone() {
    Script::new().unknown(0, put("a")).deleted((1, 2), 2).get_nothing((3, 4)).passes();
}

#[test]
fn unknown_write_is_seen_by_its_version_alone() {
    Script::new().unknown(0, put("a")).exists((1, 2), "b", 7).get((3, 4), "a", 7).passes();
}

#[test]
fn version_shown_without_value_belongs_to_another_unknown_write() {
    // "a" is there with a version nobody knows; the version shown next is that of "b".
    Script::new()
        .unknown(0, put("a"))
        .unknown(0, put("b"))
        .unknown(0, swap_value("a", "c"))
        .failed((1, 2), swap_value("x", "y"), Some(("c", 5)))
        .exists((3, 4), "z", 6)
        .get((5, 6), "b", 6)
        .passes();
}

#[test]
fn value_behind_a_version_matters_later_though_any_would_do_at_first() {
    // No version is left between 7 and 8, so it was one of the "a" that had version 7.
    let mut script = Script::new().unknown(0, put("a")).unknown(0, put("a"));
    for other in ["b", "c", "d", "e"] {
        script = script.unknown(0, put(other));
    }
    script.exists((1, 2), "x", 7).applied((3, 4), swap_value("a", "z"), 8).passes();
}

#[test]
fn unknown_swaps_build_a_chain() {
    Script::new()
        .put((0, 1), "a", 1)
        .unknown(2, swap_value("c", "d"))
        .unknown(3, swap_value("a", "b"))
        .unknown(4, swap_value("b", "c"))
        .get((5, 6), "d", 4)
        .passes();
}

#[test]
fn unknown_chain_through_a_version() {
    Script::new()
        .put((0, 1), "a", 1)
        .unknown(2, swap(Expect::Version(5), "c"))
        .unknown(2, put("b"))
        .get((5, 6), "c", 6)
        .passes();
}

#[test]
fn unknown_delete_makes_room_for_an_unknown_put_if_absent() {
    Script::new().put((0, 1), "a", 1).unknown(2, if_absent("b")).unknown(3, Input::Delete).get((5, 6), "b", 3).passes();
}

#[test]
fn open_forever_and_never_applied() {
    Script::new().put((0, 1), "a", 1).unknown(2, put("b")).get((90, 91), "a", 1).passes();
}

#[test]
fn an_operation_that_was_never_completed_is_unknown() {
    let mut history = History::new();
    let _ = history.invoke(1, 0, "k".into(), put("a"));
    let id = history.invoke(2, 5, "k".into(), Input::Get);
    history.complete(id, 6, Outcome::Ok(Output::Get(Some(("a".into(), 1)))));
    let verdict = check(&history, Budget::default());
    assert!(verdict.is_ok(), "{verdict}");
    let shown = timeline(&history, &"k".into());
    assert_eq!(shown, "  #0 c1 [0.000 .. ? us] put \"a\" -> unknown\n  #1 c2 [0.005 .. 0.006 us] get -> \"a\" v1\n");
}

#[test]
fn surely_failed_operations_are_left_out() {
    Script::new()
        .op((0, 1), put("a"), Outcome::NotApplied)
        .get_nothing((2, 3))
        .op((4, 5), Input::Get, Outcome::NotApplied)
        .passes();
}

#[test]
fn a_key_without_a_final_read_is_reported_as_such() {
    let script = Script::new().get_nothing((0, 1)).put((2, 3), "a", 1);
    let audit = nothing_lost(&script.history);
    assert_eq!(audit.keys_compared, 0);
    assert_eq!(audit.keys_without_final_read, ["k"]);
}

#[test]
fn hundreds_of_unknown_writes_cost_little() {
    let mut script = Script::new();
    for at in 0..300 {
        script = script.unknown(at, Input::Put(format!("u{at}").into()));
        script = script.unknown(at, Input::Delete);
        script = script.unknown(at, Input::PutIfAbsent(format!("i{at}").into()));
        script = script.unknown(at, swap(Expect::Version(at), "s"));
    }
    // Some of them are seen, in another order than they were invoked in.
    let mut version = 10;
    for round in 0..100_u64 {
        let at = 1000 + 10 * round;
        version += 10;
        let value = format!("u{}", 299 - round);
        script = script
            .ok((at, at + 1), Input::Get, Output::Get(Some((value.into(), version))))
            .get_nothing((at + 2, at + 3))
            .deleted((at + 4, at + 5), version + 5);
    }
    let budget = Budget { search_steps: 1_000_000, explain_steps: 0 };
    let verdict = check(&script.history, budget);
    assert!(verdict.is_ok(), "{verdict}");
}
