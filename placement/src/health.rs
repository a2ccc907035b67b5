//! Which nodes are slow: by their own measures against those of the others.
//!
//! A node is judged slow when what it measures (log batches to disk, tasks of the apply stage) has for some seconds, and in a
//! few further samples, been several times the median of all live nodes, and above a floor; or when it finds itself slow: a
//! node with little to do says no more by being silent for some seconds. A disk that hangs is not measured at all, and found
//! out by the node itself (`health.rs` of the engine). It counts as slow until it
//! has for longer been well below that: between the two nothing changes. Never more than a minority is slow, because
//! if most are, slow is what nodes are now, and moving leaders between them helps nobody. Leaders return few at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_proto::v1;

use crate::config::Config;

/// Below this a measure is never slow, in microseconds.
const FLOOR_US: u64 = 20_000;
/// Times the median that is slow, and halves of it below which a node is well again.
const SLOW_TIMES: u64 = 5;
/// So many samples while a node is over the bound prove it.
const PROOF_MIN: u64 = 8;

#[derive(Clone, Debug, Default)]
struct Judged {
    /// Since when it has been over, or well again, without a break; and how many samples there were of the former then.
    over_since: Option<(Duration, u64)>,
    well_since: Option<Duration>,
    /// Why it is slow; empty: it is not.
    slow: String,
    recovered: Option<Duration>,
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Speeds {
    nodes: BTreeMap<u64, Judged>,
}

impl Speeds {
    /// Why the node is slow, if it is.
    pub fn slow(&self, node: u64) -> Option<&str> {
        self.nodes.get(&node).map(|judged| judged.slow.as_str()).filter(|why| !why.is_empty())
    }

    /// Whether the node was slow until a moment ago.
    pub fn is_returning(&self, node: u64, now: Duration, within: Duration) -> bool {
        let recovered = self.nodes.get(&node).and_then(|judged| judged.recovered);
        recovered.is_some_and(|at| now.saturating_sub(at) < within)
    }

    /// Judges all live nodes by what they last said; the nodes that became slow or well, and what to say of it.
    pub fn judge(
        &mut self,
        now: Duration,
        config: &Config,
        live: &BTreeMap<u64, v1::NodeHealth>,
    ) -> Vec<(u64, String)> {
        let medians = [median(live, |health| health.sync_us), median(live, |health| health.apply_us)];
        let mut news = Vec::new();
        let mut worst: Vec<(u64, u64, String)> = Vec::new();
        for (node, health) in live {
            let judged = self.nodes.entry(*node).or_default();
            let (score, why) = score(health, medians);
            // Whoever writes has both.
            let samples = health.syncs.min(health.applies);
            // With fewer samples than before it has started anew.
            let over = judged.over_since.filter(|(_, had)| *had <= samples);
            judged.over_since = (score >= 100).then(|| over.unwrap_or((now, samples)));
            judged.well_since = (score < 50).then(|| judged.well_since.unwrap_or(now));
            let for_long = |since: Option<Duration>, least| since.is_some_and(|since| now - since >= least);
            let proven = health.slow || over.is_some_and(|(_, had)| samples - had >= PROOF_MIN);
            let over = judged.over_since.map(|(since, _)| since);
            if !judged.slow.is_empty() && for_long(judged.well_since, config.slow_back_after) {
                judged.slow.clear();
                judged.recovered = Some(now);
                news.push((*node, "is as fast as the others again: leaders return to it few at a time".into()));
            } else if judged.slow.is_empty() && proven && for_long(over, config.slow_after) {
                worst.push((score, *node, why));
            }
        }
        worst.sort_by(|one, other| other.cmp(one));
        let minority = live.len().saturating_sub(1) / 2;
        let slow =
            self.nodes.iter().filter(|(node, judged)| live.contains_key(node) && !judged.slow.is_empty()).count();
        for (_, node, why) in worst.into_iter().take(minority.saturating_sub(slow)) {
            news.push((node, format!("is slow: {why}; leaders leave it")));
            self.nodes.entry(node).or_default().slow = why;
        }
        news
    }

    /// The node is no part of the cluster any more.
    pub fn forget(&mut self, node: u64) {
        self.nodes.remove(&node);
    }
}

fn median(live: &BTreeMap<u64, v1::NodeHealth>, of: impl Fn(&v1::NodeHealth) -> u64) -> u64 {
    let mut all: Vec<u64> = live.values().map(of).filter(|value| *value != 0).collect();
    all.sort_unstable();
    // Of two in the middle the lower: of two nodes, one cannot hide behind its own measure.
    all.get(all.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

/// How slow, in percent of what counts as slow; and in words.
fn score(health: &v1::NodeHealth, medians: [u64; 2]) -> (u64, String) {
    let of = |what: &str, own: u64, median: u64| {
        let bound = (median * SLOW_TIMES).max(FLOOR_US);
        (own * 100 / bound, format!("{what} {:.1} ms, most nodes {:.1} ms", own as f64 / 1e3, median as f64 / 1e3))
    };
    let sync = of("a log batch takes its disk", health.sync_us, medians[0]);
    let apply = of("applying takes", health.apply_us, medians[1]);
    let worse = if apply.0 > sync.0 { apply } else { sync };
    if health.slow && worse.0 < 100 {
        let why = if health.reason.is_empty() { worse.1 } else { health.reason.clone() };
        return (100, why);
    }
    worse
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        speeds: Speeds,
        now: Duration,
        sync_ms: Vec<u64>,
        /// What all of them have measured so far, and measure in a second.
        syncs: u64,
        syncs_a_second: u64,
    }

    fn health(sync_us: u64, samples: u64) -> v1::NodeHealth {
        v1::NodeHealth { sync_us, syncs: samples, applies: samples, ..Default::default() }
    }

    impl Bench {
        fn new(nodes: usize) -> Self {
            let (speeds, now) = (Speeds::default(), Duration::from_secs(10));
            Self { speeds, now, sync_ms: vec![1; nodes], syncs: 0, syncs_a_second: 100 }
        }

        fn run(&mut self, seconds: u64) -> usize {
            let mut news = 0;
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                self.syncs += self.syncs_a_second;
                let live = (1..).zip(self.sync_ms.iter().map(|ms| health(ms * 1_000, self.syncs))).collect();
                news += self.speeds.judge(self.now, &Config::default(), &live).len();
            }
            news
        }

        fn slow(&self) -> Vec<u64> {
            (1..=self.sync_ms.len() as u64).filter(|node| self.speeds.slow(*node).is_some()).collect()
        }
    }

    #[test]
    fn a_node_is_slow_after_a_while_and_well_after_a_longer_one() {
        let mut bench = Bench::new(3);
        assert_eq!(bench.run(20), 0);
        bench.sync_ms[1] = 50;
        bench.run(2);
        assert!(bench.slow().is_empty(), "a moment is not enough");
        bench.run(4);
        assert_eq!(bench.slow(), [2]);
        bench.sync_ms[1] = 15;
        bench.run(60);
        assert_eq!(bench.slow(), [2], "between the two bounds nothing changes");
        bench.sync_ms[1] = 2;
        bench.run(5);
        assert_eq!(bench.slow(), [2]);
        bench.run(10);
        assert!(bench.slow().is_empty());
        let back = |bench: &Bench| bench.speeds.is_returning(2, bench.now, Duration::from_secs(60));
        assert!(back(&bench));
        bench.run(60);
        assert!(!back(&bench));
    }

    #[test]
    fn never_more_than_a_minority_is_slow_and_the_slowest_first() {
        let mut bench = Bench::new(5);
        bench.sync_ms = vec![300, 200, 400, 1, 1];
        bench.run(60);
        assert!(bench.slow().is_empty(), "most are as slow: that is how fast nodes are now");
        bench.sync_ms = vec![1, 100, 400, 1, 15];
        bench.run(60);
        assert_eq!(bench.slow(), [2, 3]);
        let mut two = Bench::new(2);
        two.sync_ms[0] = 900;
        two.run(60);
        assert!(two.slow().is_empty(), "one of two is no minority");
    }

    #[test]
    fn a_few_slow_syncs_of_a_node_that_rests_are_no_proof_however_long_they_are_told() {
        let mut bench = Bench::new(3);
        (bench.sync_ms[1], bench.syncs_a_second) = (50, 0);
        assert_eq!(bench.run(60), 0);
        bench.syncs_a_second = 1;
        assert_eq!(bench.run(7), 0);
        bench.run(2);
        assert_eq!(bench.slow(), [2]);
    }

    #[test]
    fn what_is_fast_enough_is_not_slow_however_fast_the_others_are() {
        let mut bench = Bench::new(3);
        bench.sync_ms = vec![0, 1, 15];
        bench.run(60);
        assert!(bench.slow().is_empty());
    }

    #[test]
    fn a_node_that_finds_itself_slow_is_believed() {
        let mut speeds = Speeds::default();
        let slow = v1::NodeHealth { slow: true, reason: "stalls".into(), ..Default::default() };
        let live = BTreeMap::from([(1, slow), (2, v1::NodeHealth::default()), (3, v1::NodeHealth::default())]);
        for second in 0..10 {
            speeds.judge(Duration::from_secs(second), &Config::default(), &live);
        }
        assert_eq!(speeds.slow(1), Some("stalls"));
    }
}
