//! Histories known to be bad. Each must be found out, with exactly the guilty operations named.

use super::super::{nothing_invented, nothing_lost};
use super::*;

#[test]
fn stale_read_after_acknowledgement() {
    Script::new().put((0, 1), "a", 1).put((2, 3), "b", 2).get((4, 5), "a", 1).contradicts(&[1, 2]);
}

#[test]
fn acknowledged_write_lost() {
    let script = Script::new().put((0, 1), "a", 4).get_nothing((2, 3));
    let audit = nothing_lost(&script.history);
    assert_eq!((audit.findings.len(), audit.keys_compared), (1, 1), "{audit:?}");
    script.contradicts(&[0, 1]);
}

#[test]
fn lost_update_of_two_readers_who_both_swap() {
    // Both saw version 1 and both were told that their swap on it was done.
    Script::new()
        .put((0, 1), "a", 1)
        .applied((2, 10), swap(Expect::Version(1), "b"), 2)
        .applied((2, 10), swap(Expect::Version(1), "c"), 3)
        .contradicts(&[1, 2]);
}

#[test]
fn two_winners_of_a_swap_on_value() {
    Script::new()
        .put((0, 1), "a", 1)
        .applied((2, 10), swap_value("a", "b"), 2)
        .applied((2, 10), swap_value("a", "c"), 3)
        .contradicts(&[1, 2]);
}

#[test]
fn two_winners_of_put_if_absent() {
    Script::new().applied((0, 10), if_absent("a"), 1).applied((0, 10), if_absent("b"), 2).contradicts(&[0, 1]);
}

#[test]
fn value_that_nobody_wrote() {
    let script = Script::new().put((0, 1), "a", 1).get((2, 3), "x", 2);
    assert_eq!(nothing_invented(&script.history).len(), 1);
    script.contradicts(&[1]);
}

#[test]
fn value_read_before_it_was_written() {
    let script = Script::new().get((0, 1), "a", 1).put((2, 3), "a", 1);
    assert_eq!(nothing_invented(&script.history).len(), 1);
    script.contradicts(&[0]);
}

#[test]
fn delete_resurrected() {
    Script::new().put((0, 1), "a", 1).deleted((2, 3), 2).get((4, 5), "a", 1).contradicts(&[1, 2]);
}

#[test]
fn deleted_value_back_under_a_new_version() {
    Script::new().put((0, 1), "a", 1).deleted((2, 3), 2).get((4, 5), "a", 3).contradicts(&[1, 2]);
}

#[test]
fn delete_undone_for_a_later_delete() {
    Script::new().put((0, 1), "a", 1).deleted((2, 3), 2).deleted((4, 5), 3).contradicts(&[1, 2]);
}

#[test]
fn version_goes_backwards() {
    Script::new().put((0, 1), "a", 7).put((2, 3), "b", 6).contradicts(&[0, 1]);
}

#[test]
fn version_given_twice() {
    let script = Script::new().put((0, 9), "a", 7).put((0, 9), "b", 7);
    assert_eq!(nothing_invented(&script.history).len(), 1);
    script.contradicts(&[0, 1]);
}

#[test]
fn version_repeats_after_a_delete() {
    Script::new().put((0, 1), "a", 1).deleted((2, 3), 2).put((4, 5), "b", 2).contradicts(&[1, 2]);
}

#[test]
fn read_shows_another_version_than_was_acknowledged() {
    let script = Script::new().put((0, 1), "a", 3).get((2, 3), "a", 4);
    assert_eq!(nothing_invented(&script.history).len(), 1);
    script.contradicts(&[0, 1]);
}

#[test]
fn reads_go_back_while_the_write_is_under_way() {
    Script::new().put((0, 1), "a", 1).put((2, 20), "b", 2).get((3, 4), "b", 2).get((5, 6), "a", 1).contradicts(&[2, 3]);
}

#[test]
fn failed_operation_took_effect() {
    let script = Script::new().put((0, 1), "a", 1).op((2, 3), put("b"), Outcome::NotApplied).get((4, 5), "b", 2);
    assert_eq!(nothing_invented(&script.history).len(), 1);
    script.contradicts(&[2]);
}

#[test]
fn failed_swap_took_effect() {
    Script::new()
        .put((0, 1), "a", 1)
        .failed((2, 3), swap_value("x", "b"), Some(("a", 1)))
        .get((4, 5), "b", 2)
        .contradicts(&[2]);
}

#[test]
fn swap_failed_though_it_had_to_win() {
    Script::new().put((0, 1), "a", 1).failed((2, 3), swap_value("a", "b"), Some(("a", 1))).contradicts(&[1]);
}

#[test]
fn swap_won_though_it_had_to_fail() {
    Script::new().put((0, 1), "a", 1).put((2, 3), "b", 2).applied((4, 5), swap_value("a", "c"), 3).contradicts(&[1, 2]);
}

#[test]
fn unknown_write_seen_then_unseen() {
    Script::new().put((0, 1), "a", 1).unknown(2, put("b")).get((3, 4), "b", 2).get((5, 6), "a", 1).contradicts(&[2, 3]);
}

#[test]
fn unknown_write_seen_unseen_by_a_delete_and_seen_again() {
    Script::new().unknown(0, put("b")).get((1, 2), "b", 1).deleted((3, 4), 2).get((5, 6), "b", 3).contradicts(&[2, 3]);
}

#[test]
fn unknown_write_seen_under_two_versions() {
    Script::new().unknown(0, put("b")).get((1, 2), "b", 5).get((3, 4), "b", 6).contradicts(&[1, 2]);
}

#[test]
fn unknown_write_between_versions_that_leave_no_room() {
    // "b" came after version 1 and before version 2.
    Script::new()
        .put((0, 1), "a", 1)
        .unknown(2, put("b"))
        .put((3, 9), "c", 2)
        .ok((3, 9), swap_value("b", "d"), Output::Applied { version: 2 })
        .contradicts(&[2, 3]);
}

#[test]
fn absence_without_any_delete() {
    Script::new()
        .unknown(0, put("a"))
        .get((1, 2), "a", 1)
        .unknown(3, put("b"))
        .get_nothing((4, 5))
        .contradicts(&[1, 3]);
}

#[test]
fn one_unknown_delete_cannot_explain_two_absences() {
    Script::new()
        .unknown(0, Input::Delete)
        .put((1, 2), "a", 1)
        .get_nothing((3, 4))
        .put((5, 6), "b", 3)
        .get_nothing((7, 8))
        .contradicts(&[1, 2, 3, 4]);
}

#[test]
fn one_unknown_put_cannot_explain_two_deletes() {
    Script::new().unknown(0, put("a")).deleted((1, 2), 3).deleted((3, 4), 5).contradicts(&[1, 2]);
}

#[test]
fn exists_on_a_key_that_was_deleted() {
    Script::new().put((0, 1), "a", 1).deleted((2, 3), 2).exists((4, 5), "b", 1).contradicts(&[1, 2]);
}

#[test]
fn answer_that_does_not_fit_the_question() {
    Script::new().ok((0, 1), Input::Get, Output::Put { version: 1 }).contradicts(&[0]);
}

#[test]
fn the_guilty_ones_are_found_in_a_long_history() {
    let mut script = Script::new();
    for round in 0..400 {
        let at = 10 * round;
        script = script.put((at, at + 1), "x", round + 1).get((at + 2, at + 3), "x", round + 1);
        script = script.unknown(at + 4, put("never seen"));
    }
    // Reads the value of the round before.
    script = script.put((4001, 4002), "y", 500).get((4003, 4004), "x", 400);
    for round in 401..800 {
        let at = 10 * round;
        script = script.put((at, at + 1), "x", 200 + round);
    }
    let violation = script.violation();
    let core: Vec<usize> = violation.core.iter().map(|id| id.0).collect();
    assert_eq!(core, [1200, 1201], "{}", violation.explanation);
    assert!(violation.explanation.contains("put \"y\" -> v500"), "{}", violation.explanation);
}

#[test]
fn a_bad_key_is_found_among_good_ones() {
    let mut script = Script::new().put((0, 1), "a", 1).get_nothing((2, 3));
    for key in ["a", "z"] {
        let id = script.history.invoke(9, 5, key.into(), put("v"));
        script.history.complete(id, 6, Outcome::Ok(Output::Put { version: 1 }));
    }
    assert_eq!(script.violation().key, "k");
}

#[test]
fn too_small_a_budget_is_no_pass() {
    let mut script = Script::new();
    for at in 0..20 {
        script = script.put((at, 100), "a", at + 1);
    }
    let budget = Budget { search_steps: 10, ..Budget::default() };
    let verdict = check(&script.history, budget);
    assert!(matches!(verdict, Verdict::Undecided { .. }), "{verdict}");
    script.passes();
}
