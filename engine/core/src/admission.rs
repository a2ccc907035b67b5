//! How many writes of clients a node has under way, so that more than it can do makes it neither slow nor useless.
//!
//! A queue that is longer than its callers wait is full of work that nobody wants any more: all that comes out is late, and a node that is
//! asked for a little more than it can do gets nothing done (field bugs call it congestion collapse, or a metastable failure; Bronson et al.,
//! HotOS 2021). So the queue is kept short, by Little's law: what is under way is at most what the node has lately got done in
//! [`TARGET`] and in the time that the fastest write took of late, for whoever waits for slow disks or far nodes must be many. What comes beyond
//! that is refused at the door, where it costs next to nothing, and so is what could not be done before its deadline.
//!
//! The rate is that of the best 400 ms of the last two seconds, so that a pause does not close the door, and a burst does not open it. An idle
//! node takes [`UNITS_MIN`] at once, whatever it did before. What is under way for longer than any queue is waits for something else, such as a quorum of
//! its range: it does not count, for it must not close the door to all others.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::BootTime;

/// How long a write may wait for others, on a disk that is fast.
pub const TARGET: Duration = Duration::from_millis(300);
/// And on any disk.
const TARGET_MAX: Duration = Duration::from_secs(2);
/// So many units may always be under way.
pub const UNITS_MIN: u64 = 128;
/// A unit is a write, and every so many bytes of it.
const UNIT_BYTES: usize = 4 << 10;
const WINDOW: Duration = Duration::from_millis(400);
/// The windows that the rate is taken from; and those in which what was taken still counts.
const RATE_WINDOWS: usize = 5;
const COUNTING_WINDOWS: usize = 7;
/// And that the fastest write is looked for in: half a minute.
const WINDOWS: usize = 75;

/// What a write counts for.
pub fn units(bytes: usize) -> u64 {
    1 + (bytes / UNIT_BYTES) as u64
}

/// Why a write is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As much is under way as gets done in a short time.
    Busy,
    /// What is under way takes longer than the caller waits.
    TooLate,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    under_way: u64,
    /// The number of the newest window, counted from the machine's start.
    number: u64,
    /// The newest first.
    windows: VecDeque<Window>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// What came in it and is not answered, as far as it counts.
    under_way: u64,
    done: u64,
    /// The fastest of those that were done.
    fastest: Option<Duration>,
}

impl Admission {
    /// Takes a write in, or refuses it.
    ///
    /// # Errors
    /// Both say that it is surely not applied, and may be sent again later.
    pub fn admit(&mut self, now: BootTime, units: u64, deadline: BootTime) -> Result<(), Refused> {
        self.turn_to(now);
        if self.under_way >= UNITS_MIN {
            let rate = self.per_window();
            // However large it is: one that had to fit in would wait for ever behind small ones.
            if self.under_way >= share(rate, self.target()) {
                return Err(Refused::Busy);
            }
            // With a margin: all that is a little late is in vain.
            if now + WINDOW.mul_f64(1.25 * self.under_way as f64 / rate.max(1) as f64) > deadline {
                return Err(Refused::TooLate);
            }
        }
        self.under_way += units;
        if let Some(window) = self.window_of(now) {
            window.under_way += units;
        }
        Ok(())
    }

    /// So many units that were taken at `came` were carried out.
    pub fn done(&mut self, now: BootTime, came: BootTime, units: u64) {
        self.turn_to(now);
        if let Some(window) = self.windows.front_mut() {
            window.done += units;
            let took = now.since(came);
            window.fastest = Some(window.fastest.map_or(took, |fastest| fastest.min(took)));
        }
        self.left(came, units);
    }

    /// So many units that were taken at `came` were answered without having been carried out: refused behind the door, or given up.
    pub fn left(&mut self, came: BootTime, units: u64) {
        if let Some(window) = self.window_of(came) {
            let counted = units.min(window.under_way);
            window.under_way -= counted;
            self.under_way -= counted;
        }
    }

    /// Units under way, as far as they count.
    pub fn under_way(&self) -> u64 {
        self.under_way
    }

    fn target(&self) -> Duration {
        let fastest = self.windows.iter().filter_map(|window| window.fastest).min();
        (TARGET + fastest.unwrap_or_default()).min(TARGET_MAX)
    }

    fn per_window(&self) -> u64 {
        self.windows.iter().take(RATE_WINDOWS).map(|window| window.done).max().unwrap_or_default()
    }

    /// The window of a time, if what came in it still counts.
    fn window_of(&mut self, time: BootTime) -> Option<&mut Window> {
        let back = self.number.checked_sub(number_of(time))?;
        self.windows.get_mut(usize::try_from(back).ok()?).filter(|_| back < COUNTING_WINDOWS as u64)
    }

    fn turn_to(&mut self, now: BootTime) {
        let passed = number_of(now).saturating_sub(self.number);
        if self.windows.is_empty() || passed > WINDOWS as u64 {
            *self = Self { under_way: 0, number: number_of(now), windows: VecDeque::from([Window::default()]) };
            return;
        }
        for _ in 0..passed {
            self.number += 1;
            self.windows.push_front(Window::default());
            self.windows.truncate(WINDOWS);
            if let Some(old) = self.windows.get_mut(COUNTING_WINDOWS) {
                self.under_way -= std::mem::take(&mut old.under_way);
            }
        }
    }
}

fn number_of(time: BootTime) -> u64 {
    time.0 / WINDOW.as_nanos() as u64
}

/// What is done in `time` by one who does so much in a window.
fn share(per_window: u64, time: Duration) -> u64 {
    (per_window as f64 * time.as_secs_f64() / WINDOW.as_secs_f64()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> BootTime {
        BootTime(micros * 1_000)
    }

    /// A node that does so many writes a second, one after the other, each of them `latency` after its turn has come.
    struct Server {
        admission: Admission,
        queue: VecDeque<(u64, u64)>,
        per_second: u64,
        latency: u64,
    }

    /// What came of some seconds.
    #[derive(Debug, Default)]
    struct Outcome {
        in_time: u64,
        late: u64,
        busy: u64,
        too_late: u64,
        longest: u64,
    }

    impl Server {
        fn new(per_second: u64, latency: u64) -> Self {
            Self { admission: Admission::default(), queue: VecDeque::new(), per_second, latency }
        }

        /// Offers so many writes a second for some seconds, from a time in microseconds; each caller waits for `patience`.
        fn offer(&mut self, from: u64, seconds: u64, per_second: u64, patience: u64) -> Outcome {
            let mut outcome = Outcome::default();
            let (mut offered, mut served) = (0, 0);
            for now in (from..from + seconds * 1_000_000).step_by(100) {
                while offered * 1_000_000 < (now - from) * per_second {
                    offered += 1;
                    match self.admission.admit(at(now), 1, at(now + patience)) {
                        Ok(()) => self.queue.push_back((now, now + patience)),
                        Err(Refused::Busy) => outcome.busy += 1,
                        Err(Refused::TooLate) => outcome.too_late += 1,
                    }
                }
                while served * 1_000_000 < (now - from) * self.per_second {
                    served += 1;
                    let ripe = self.queue.front().is_some_and(|(came, _)| came + self.latency <= now);
                    let Some((came, deadline)) = ripe.then(|| self.queue.pop_front()).flatten() else { break };
                    self.admission.done(at(now), at(came), 1);
                    outcome.longest = outcome.longest.max(now - came);
                    if now <= deadline { outcome.in_time += 1 } else { outcome.late += 1 }
                }
                // What was not used of the past is not there for later.
                served = served.max((now - from) * self.per_second / 1_000_000);
            }
            outcome
        }
    }

    #[test]
    fn ten_times_too_much_leaves_it_as_fast_as_ever() {
        let mut server = Server::new(5_000, 1_000);
        server.offer(0, 3, 4_000, 1_000_000);
        let outcome = server.offer(3_000_000, 10, 50_000, 1_000_000);
        assert!(outcome.in_time >= 49_000, "{outcome:?}");
        assert_eq!(outcome.late, 0, "{outcome:?}");
        assert!(outcome.longest <= 400_000, "{outcome:?}");
        let behind = server.offer(13_000_000, 2, 2_500, 1_000_000);
        assert_eq!((behind.busy, behind.too_late, behind.late), (0, 0, 0), "well again at once: {behind:?}");
    }

    #[test]
    fn callers_who_wait_less_than_the_queue_is_long_are_not_taken_in_vain() {
        let mut server = Server::new(5_000, 1_000);
        let outcome = server.offer(0, 10, 50_000, 120_000);
        assert!(outcome.in_time >= 45_000, "{outcome:?}");
        assert!(outcome.late * 10 <= outcome.in_time, "{outcome:?}");
    }

    #[test]
    fn a_slow_disk_is_given_as_many_as_it_takes_to_keep_it_busy() {
        let mut server = Server::new(20_000, 600_000);
        server.offer(0, 8, 20_000, 10_000_000);
        let outcome = server.offer(8_000_000, 5, 20_000, 10_000_000);
        assert!(outcome.in_time >= 90_000, "{outcome:?}");
    }

    #[test]
    fn an_idle_node_takes_a_burst() {
        let mut admission = Admission::default();
        let burst = (0..UNITS_MIN).filter(|_| admission.admit(at(9_000_000), 1, at(9_000_001)).is_ok()).count();
        assert_eq!(burst as u64, UNITS_MIN);
        assert_eq!(admission.admit(at(9_000_000), 1, at(19_000_000)), Err(Refused::Busy));
        admission.left(at(9_000_000), UNITS_MIN);
        assert_eq!(admission.under_way(), 0);
    }

    #[test]
    fn what_waits_for_something_else_does_not_close_the_door() {
        let mut admission = Admission::default();
        // A range without a quorum: nothing of this is answered before its deadline.
        let hangs = (0..1_000).filter(|_| admission.admit(at(0), 1, at(60_000_000)).is_ok()).count() as u64;
        assert_eq!(hangs, UNITS_MIN);
        assert_eq!(admission.admit(at(400_000), 1, at(9_000_000)), Err(Refused::Busy));
        assert_eq!(admission.admit(at(3_000_000), 1, at(9_000_000)), Ok(()));
        admission.left(at(0), hangs);
        assert_eq!(admission.under_way(), 1, "it is not counted twice");
        admission.done(at(3_100_000), at(3_000_000), 1);
        assert_eq!(admission.under_way(), 0);
    }

    #[test]
    fn a_large_write_is_taken_among_small_ones() {
        let mut admission = Admission::default();
        for number in 0..2_000 {
            admission.admit(at(number * 100), 1, at(9_000_000)).expect("it keeps up");
            admission.done(at(number * 100), at(number * 100), 1);
        }
        (0..UNITS_MIN + 10).for_each(|_| admission.admit(at(200_000), 1, at(9_000_000)).expect("there is room"));
        assert_eq!(admission.admit(at(200_000), 2_000, at(9_000_000)), Ok(()));
        assert_eq!(admission.admit(at(200_000), 1, at(9_000_000)), Err(Refused::Busy));
    }

    #[test]
    fn large_writes_count_for_more() {
        assert_eq!([units(0), units(4_095), units(1 << 20)], [1, 1, 257]);
    }
}
