//! How long ranges were without a leader after a node died. Pure: fed with views and times.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::nodes::Leaders;
use crate::cli::output::{duration, plural};

/// When a range that still has no leader is worth a word.
const PATIENCE: Duration = Duration::from_secs(10);

/// From a node's death until all that it led has leaders again.
#[derive(Debug)]
pub struct Outage {
    node: u64,
    began: Instant,
    /// Ranges that it led and that have no other leader yet.
    open: BTreeSet<u64>,
    /// For how long each of the others had none.
    closed: Vec<Duration>,
    complained: bool,
}

impl Outage {
    /// A node died at `began`; `leaders` is what was known before.
    pub fn new(node: u64, began: Instant, leaders: &Leaders) -> Self {
        let open = leaders.iter().filter(|(_, leader)| **leader == Some(node)).map(|(range, _)| *range).collect();
        Self { node, began, open, closed: Vec::new(), complained: false }
    }

    /// How many ranges it led.
    pub fn ranges(&self) -> usize {
        self.open.len() + self.closed.len()
    }

    /// Whether all have leaders again.
    pub fn over(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes a look at the leaders; returns a line if there is something to say.
    pub fn look(&mut self, now: Instant, leaders: &Leaders, up: usize, nodes: usize) -> Option<String> {
        if self.over() {
            return None;
        }
        let elapsed = now.saturating_duration_since(self.began);
        let led: Vec<u64> =
            self.open.iter().filter(|range| leaders.get(range).is_some_and(Option::is_some)).copied().collect();
        for range in led {
            self.open.remove(&range);
            self.closed.push(elapsed);
        }
        if self.over() {
            return Some(self.summary());
        }
        if elapsed < PATIENCE || self.complained {
            return None;
        }
        self.complained = true;
        let quorum = if up * 2 > nodes { "" } else { ": too few nodes are up to choose one; start one again" };
        let open = plural(self.open.len() as u64, "range");
        Some(format!("{open} that node {} led have had no leader for {}{quorum}", self.node, duration(elapsed)))
    }

    fn summary(&self) -> String {
        let longest = self.closed.iter().max().copied().unwrap_or_default();
        let sum: Duration = self.closed.iter().sum();
        let average = sum / u32::try_from(self.closed.len()).unwrap_or(u32::MAX).max(1);
        format!(
            "all {} that node {} led have leaders again: they were without one for {} on average, {} at the longest",
            plural(self.closed.len() as u64, "range"),
            self.node,
            duration(average),
            duration(longest),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_a_leader_is_measured_by_range() {
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let before = Leaders::from([(2, Some(1)), (3, Some(2)), (4, Some(1))]);
        let mut outage = Outage::new(1, began, &before);
        assert_eq!(outage.ranges(), 2);
        let none = Leaders::from([(2, None), (3, Some(2)), (4, None)]);
        assert_eq!(outage.look(after(10), &none, 2, 3), None);
        let half = Leaders::from([(2, Some(3)), (3, Some(2)), (4, None)]);
        assert_eq!(outage.look(after(1_000), &half, 2, 3), None);
        let all = Leaders::from([(2, Some(3)), (3, Some(2)), (4, Some(2))]);
        let text = outage.look(after(2_000), &all, 2, 3).expect("over");
        assert!(text.contains("1.50 s on average, 2.00 s at the longest"), "{text}");
        assert!(outage.over());
        assert_eq!(outage.look(after(3_000), &all, 2, 3), None);
    }

    #[test]
    fn a_lasting_outage_is_told_once_and_why() {
        let began = Instant::now();
        let mut outage = Outage::new(1, began, &Leaders::from([(2, Some(1))]));
        let none = Leaders::from([(2, None)]);
        let late = began + Duration::from_secs(11);
        let text = outage.look(late, &none, 1, 3).expect("a word");
        assert!(text.contains("1 range") && text.contains("too few nodes"), "{text}");
        assert_eq!(outage.look(late, &none, 1, 3), None);
    }

    #[test]
    fn a_node_that_led_nothing_leaves_nothing_open() {
        assert!(Outage::new(2, Instant::now(), &Leaders::from([(2, Some(1))])).over());
    }
}
