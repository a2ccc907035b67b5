//! How many writes may be under way to one node: as many as it takes without saying that it is overloaded.
//!
//! A node that is asked for ten times what it can do spends its time on refusals, all the more as each is sent again. So a client
//! holds back by itself, as TCP does (Jacobson 1988; RFC 5681): the window shrinks by a part when the node says that it is busy, once
//! for all that was under way then, and grows in each [`PERIOD`] in which the node did not. What does not fit waits where it costs the node nothing.
//!
//! While the window is what holds requests back, the newest goes first: under overload a queue that is served in order serves only those
//! whose callers are about to give up (Maurer, \"Fail at Scale\", ACM Queue 2015, on adaptive LIFO).

use std::time::Duration;

use super::Time;

/// How long the node must not have said it.
const PERIOD: Duration = Duration::from_millis(100);
/// What stays of the window then.
const KEPT: f64 = 0.7;
/// By how much it grows in a period without: it doubles in less than a second.
const GROWTH: f64 = 1.1;
const SIZE_MIN: f64 = 2.0;

/// See the module.
#[derive(Clone, Debug)]
pub struct Window {
    size: f64,
    max: usize,
    cut_at: Option<Time>,
    /// The last request that had been sent then: refusals of those up to it are no news.
    cut_behind: u64,
    grown_at: Option<Time>,
}

impl Window {
    /// As wide as it may be.
    pub fn new(max: usize) -> Self {
        Self { size: max as f64, max, cut_at: None, cut_behind: 0, grown_at: None }
    }

    /// How many more may be sent while so many are under way.
    pub fn room(&self, under_way: usize) -> usize {
        (self.size as usize).clamp(1, self.max).saturating_sub(under_way)
    }

    /// Whether the node has been found busy, and the window is what holds requests back.
    pub fn is_cut(&self) -> bool {
        (self.size as usize) < self.max
    }

    /// An answer came while so many were under way, and it was not that the node is busy. A window that is not used does not grow.
    pub fn answered(&mut self, now: Time, under_way: usize) {
        let (grown, cut) = (is_over(self.grown_at, now), is_over(self.cut_at, now));
        if grown && cut && self.is_cut() && under_way as f64 >= self.size / 2.0 {
            self.grown_at = Some(now);
            self.size = (self.size * GROWTH + 1.0).min(self.max as f64);
        }
    }

    /// The node said of a request that it is busy, while so many were under way, up to the request `last`. Requests are numbered from 1 on.
    pub fn busy(&mut self, now: Time, request: u64, last: u64, under_way: usize) {
        if request > self.cut_behind {
            (self.cut_at, self.cut_behind) = (Some(now), last);
            // What was never sent says nothing about what the node takes.
            self.size = (self.size.min(under_way as f64) * KEPT).max(SIZE_MIN);
        }
    }

    /// Requests are numbered anew: the node is connected to anew.
    pub fn begins_again(&mut self) {
        self.cut_behind = 0;
    }
}

/// Whether the period that began then has ended.
fn is_over(began: Option<Time>, now: Time) -> bool {
    began.is_none_or(|at| now >= at + PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 4_096;

    #[test]
    fn it_comes_down_to_what_the_node_takes_and_stays_there() {
        // The node takes 50 at once, answers each after 10 ms, and refuses what is more.
        let (mut window, mut sizes, mut last) = (Window::new(MAX), Vec::new(), 0);
        for round in 0..1_000_u64 {
            let now = Duration::from_millis(round * 10);
            let sent = window.room(0);
            last += sent as u64;
            (0..sent.min(50)).for_each(|_| window.answered(now, sent));
            (50..sent).for_each(|at| window.busy(now, last - at as u64 + 50, last, sent));
            sizes.push(sent);
        }
        let settled = &sizes[200..];
        let mean = settled.iter().map(|sent| sent.min(&50)).sum::<usize>() / settled.len();
        let refused = settled.iter().map(|sent| sent.saturating_sub(50)).sum::<usize>();
        assert!(mean >= 40, "{mean}");
        assert!(refused * 10 <= settled.len() * 50, "{refused} refused of {}", settled.len() * 50);
    }

    #[test]
    fn it_opens_again_when_the_node_is_well_and_there_is_more_to_send() {
        let mut window = Window::new(MAX);
        window.busy(Duration::ZERO, 1, 10, 10);
        assert_eq!((window.room(0), window.is_cut()), (7, true));
        // Nothing was held back: nothing is known of a wider one.
        (1..100).for_each(|second| window.answered(Duration::from_secs(second), 2));
        assert_eq!(window.room(0), 7);
        let mut periods = 1_000;
        while window.is_cut() {
            (0..window.room(0)).for_each(|_| window.answered(PERIOD * periods, MAX));
            periods += 1;
        }
        assert!(periods <= 1_070, "{periods}");
        assert_eq!(window.room(MAX), 0);
    }

    #[test]
    fn a_round_of_refusals_is_one_sign() {
        let mut window = Window::new(1_000);
        (1..500).for_each(|request| window.busy(Duration::from_secs(1), request, 1_000, 1_000));
        assert_eq!(window.room(0), 700);
        window.busy(Duration::from_secs(1), 1_001, 1_003, 3);
        assert_eq!(window.room(0), 2, "never none");
        window.begins_again();
        window.busy(Duration::from_secs(3), 1, 1, 1);
        assert_eq!(window.room(0), 2);
    }
}
