//! How many requests may be under way to one node: of writes as many as it takes without saying that it is overloaded, of reads as many as
//! it answers in time.
//!
//! A node that is asked for ten times what it can do spends its time on refusals, all the more as each is sent again. So a client
//! holds back by itself, as TCP does (Jacobson 1988; RFC 5681): the window shrinks by a part when the node says that it is busy, once
//! for all that was under way then, and grows in each [`PERIOD`] in which the node did not. What does not fit waits where it costs the node nothing.
//!
//! While the window is what holds writes back, and the first of them has waited for half of its time, the newest goes first (reads: once the first
//! has waited for a tenth of a second): under overload a queue that is served in order serves only those whose callers are about to give up (Maurer,
//! "Fail at Scale", ACM Queue 2015, on adaptive LIFO).

use std::time::Duration;

use super::Time;

/// By how much the fastest read may take longer than at its best.
const LATE: Duration = Duration::from_millis(100);
/// How long the node must not have said it.
const PERIOD: Duration = Duration::from_millis(100);
/// What stays of the window then.
const KEPT: f64 = 0.7;
/// And at least.
const KEPT_MIN: f64 = 0.1;
/// By how much it grows in a period without: it doubles in less than a second.
const GROWTH: f64 = 1.1;

/// Whether a node answers reads more slowly than it is asked. It answers them as they come, and refuses none; so this shows by the time that
/// even the fastest of some time take (CoDel: Nichols and Jacobson, ACM Queue 2012): others may be slow for reasons of their own.
#[derive(Clone, Debug, Default)]
pub struct Delay {
    fastest: Option<Duration>,
    began: Time,
    /// The fastest of this period.
    least: Option<Duration>,
}

impl Delay {
    /// An answer came that took so long. If it ends a period in which all took longer than they should: what share of the requests under way would
    /// have been answered in time.
    pub fn answered(&mut self, now: Time, took: Duration) -> Option<f64> {
        let fastest = self.fastest.map_or(took, |fastest| fastest.min(took));
        let least = self.least.map_or(took, |least| least.min(took));
        (self.fastest, self.least) = (Some(fastest), Some(least));
        if now < self.began + PERIOD {
            return None;
        }
        (self.began, self.least) = (now, None);
        let aim = fastest + LATE;
        (least > aim).then(|| aim.as_secs_f64() / least.as_secs_f64())
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Window {
    size: f64,
    min: usize,
    max: usize,
    cut_at: Option<Time>,
    /// The last request that had been sent then: refusals of those up to it are no news.
    cut_behind: u64,
    grown_at: Option<Time>,
}

impl Window {
    /// As wide as it may be.
    pub fn new(min: usize, max: usize) -> Self {
        Self { size: max as f64, min: min.min(max), max, cut_at: None, cut_behind: 0, grown_at: None }
    }

    /// How many more may be sent while so many are under way.
    pub fn room(&self, under_way: usize) -> usize {
        (self.size as usize).clamp(self.min, self.max).saturating_sub(under_way)
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
        self.cut_to(KEPT, now, request, last, under_way);
    }

    /// It showed by an answer that it is, and would have answered such a share of those in time.
    pub fn late(&mut self, share: f64, now: Time, request: u64, last: u64, under_way: usize) {
        self.cut_to(share.clamp(KEPT_MIN, KEPT), now, request, last, under_way);
    }

    fn cut_to(&mut self, kept: f64, now: Time, request: u64, last: u64, under_way: usize) {
        if request > self.cut_behind {
            (self.cut_at, self.cut_behind) = (Some(now), last);
            // What was never sent says nothing about what the node takes.
            self.size = (self.size.min(under_way as f64) * kept).max(self.min as f64);
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
        let (mut window, mut sizes, mut last) = (Window::new(2, MAX), Vec::new(), 0);
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
        let mut window = Window::new(2, MAX);
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
    fn a_node_is_late_when_even_its_fastest_answers_are() {
        let (mut delay, ms) = (Delay::default(), Duration::from_millis);
        let late = |delay: &mut Delay, from: u64, took: &[u64]| {
            let answers = took.iter().zip(1..).filter_map(|(took, at)| delay.answered(ms(from + 10 * at), ms(*took)));
            answers.collect::<Vec<f64>>()
        };
        assert_eq!(late(&mut delay, 100, &[5, 2, 900, 4, 3, 5, 4, 7, 900, 900, 900, 6]), [], "some are slow");
        assert_eq!(late(&mut delay, 300, &[408; 10]), [], "one was fast in this period");
        assert_eq!(late(&mut delay, 400, &[408; 30]), [0.25; 3], "a sign in each period");
        assert_eq!(late(&mut delay, 900, &[90; 30]), []);
    }

    #[test]
    fn a_round_of_refusals_is_one_sign() {
        let mut window = Window::new(2, 1_000);
        (1..500).for_each(|request| window.busy(Duration::from_secs(1), request, 1_000, 1_000));
        assert_eq!(window.room(0), 700);
        window.busy(Duration::from_secs(1), 1_001, 1_003, 3);
        assert_eq!(window.room(0), 2, "never none");
        window.begins_again();
        window.busy(Duration::from_secs(3), 1, 1, 1);
        assert_eq!(window.room(0), 2);
    }
}
