//! Values with a ttl.

use super::*;
use crate::checker::{Calm, nothing_outlives};

#[test]
fn a_value_may_end_when_its_ttl_is_over_and_stay_gone() {
    Script::new()
        .put_for(100, (0, 10), "a", 1)
        .get((50, 60), "a", 1)
        .get((200, 210), "a", 1)
        .get_nothing((220, 230))
        .delete_nothing((240, 250))
        .applied((300, 310), if_absent("b"), 3)
        .passes();
}

#[test]
fn a_value_does_not_end_early() {
    // The ttl runs from the request on, so it is over at 100 at the earliest.
    Script::new().put_for(100, (0, 40), "a", 1).get_nothing((90, 100)).passes();
    Script::new().put_for(100, (0, 40), "a", 1).get_nothing((80, 99)).contradicts(&[0, 1]);
    Script::new().put_for(100, (0, 40), "a", 1).applied((50, 60), if_absent("b"), 2).contradicts(&[0, 1]);
}

#[test]
fn what_is_gone_stays_gone() {
    Script::new().put_for(100, (0, 10), "a", 1).get_nothing((120, 130)).get((140, 150), "a", 1).contradicts(&[0, 1, 2]);
    // Nor does it come back under another version.
    Script::new().put_for(100, (0, 10), "a", 1).get_nothing((120, 130)).get((140, 150), "a", 3).violation();
}

#[test]
fn a_renewed_value_has_a_time_of_its_own() {
    let renewed = || Script::new().put_for(100, (0, 10), "a", 1).put_for(100, (80, 90), "b", 2);
    renewed().get((150, 160), "b", 2).get_nothing((185, 195)).passes();
    renewed().get_nothing((150, 160)).violation();
}

#[test]
fn a_write_without_a_ttl_takes_the_end_away() {
    Script::new().put_for(100, (0, 10), "a", 1).put((80, 90), "b", 2).get_nothing((150, 160)).violation();
    let swap = swap_value("a", "b");
    Script::new().put_for(100, (0, 10), "a", 1).applied((80, 90), swap, 2).get_nothing((999, 1_000)).violation();
}

#[test]
fn a_refused_write_renews_nothing() {
    Script::new()
        .put((0, 10), "a", 1)
        .op_for(20, (20, 30), if_absent("b"), Outcome::Ok(Output::Exists { version: 1 }))
        .get_nothing((90, 100))
        .contradicts(&[0, 2]);
    Script::new()
        .put((0, 10), "a", 1)
        .op_for(20, (20, 30), put("b"), Outcome::NotApplied)
        .get_nothing((90, 100))
        .contradicts(&[0, 2]);
}

#[test]
fn the_end_takes_a_version() {
    // 1 is written, 2 is the end: 2 cannot be the next write's.
    let ended = || Script::new().put_for(100, (0, 10), "a", 1).get_nothing((120, 130));
    ended().put((140, 150), "b", 3).passes();
    ended().put((140, 150), "b", 2).contradicts(&[0, 1, 2]);
}

#[test]
fn a_write_of_unknown_outcome_may_come_and_go() {
    let unknown = || Script::new().put((0, 10), "a", 1).op_for(100, (20, 30), put("b"), Outcome::Unknown);
    unknown().get((40, 50), "b", 2).get_nothing((130, 140)).passes();
    unknown().get_nothing((130, 140)).passes();
    unknown().get_nothing((100, 110)).contradicts(&[0, 2]);
    unknown().get_nothing((130, 140)).get((150, 160), "a", 1).violation();
}

/// What is found by those who look for values that live too long.
fn outlived(script: &Script, spans: &[(u64, u64)]) -> usize {
    let calm = Calm { spans: spans.to_vec(), slowest: 1.5, late_ns: 50 };
    nothing_outlives(&script.history, &calm).len()
}

#[test]
fn a_value_that_is_seen_long_after_its_ttl_is_found() {
    let seen_at = |at| Script::new().put_for(100, (0, 10), "a", 1).get((at, at + 5), "a", 1);
    // Written by 10; 100 may take 150, and 50 more are allowed.
    assert_eq!(outlived(&seen_at(210), &[(0, 1_000)]), 0);
    assert_eq!(outlived(&seen_at(211), &[(0, 1_000)]), 1);
    // Before the calm nothing need have been counted.
    assert_eq!(outlived(&seen_at(500), &[(300, 1_000)]), 0);
    assert_eq!(outlived(&seen_at(501), &[(300, 1_000)]), 1);
    assert_eq!(outlived(&seen_at(501), &[(0, 400)]), 0);
    assert_eq!(outlived(&seen_at(501), &[]), 0);
    // All of these are possible orders, in which the value merely never ended.
    seen_at(100_000).passes();
}

#[test]
fn a_value_of_an_unknown_write_lives_from_when_it_was_seen() {
    let unknown = |at| {
        let swap = swap_value("a", "b");
        Script::new().op_for(100, (0, 10), put("a"), Outcome::Unknown).get((190, 200), "a", 1).applied(
            (at, at + 5),
            swap,
            2,
        )
    };
    assert_eq!(outlived(&unknown(400), &[(0, 1_000)]), 0);
    assert_eq!(outlived(&unknown(401), &[(0, 1_000)]), 1);
}

#[test]
fn a_value_that_was_also_written_to_stay_need_not_end() {
    let script = Script::new().put_for(100, (0, 10), "a", 1).unknown(20, put("a")).get((900, 905), "a", 4);
    assert_eq!(outlived(&script, &[(0, 1_000)]), 0);
}

#[test]
fn a_lost_value_is_told_from_one_that_ended() {
    let lost = |script: &Script| crate::checker::nothing_lost(&script.history).findings.len();
    let script = Script::new().put_for(100, (0, 10), "a", 1).get_nothing((90, 120));
    assert_eq!(lost(&script), 0);
    let script = Script::new().put_for(100, (0, 10), "a", 1).get_nothing((20, 99));
    assert_eq!(lost(&script), 1);
    let script = Script::new().put_for(100, (0, 10), "a", 1).put((20, 30), "b", 2).get_nothing((200, 210));
    assert_eq!(lost(&script), 1);
}
