//! Latency histograms cheap enough for production: one relaxed addition a sample.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets double from 1 microsecond; the last one takes all above 8 seconds.
const BUCKETS: usize = 25;

/// Counts durations in buckets that double.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // Bucket n holds what is at most 2^n microseconds.
        let micros = nanos.div_ceil(1_000).max(1);
        let at = (micros.next_power_of_two().trailing_zeros() as usize).min(BUCKETS - 1);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Upper bounds in seconds with the cumulative counts, the count of all, and the sum in seconds.
    pub fn snapshot(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BUCKETS - 1);
        for (at, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if at + 1 < BUCKETS {
                buckets.push(((1_u64 << at) as f64 / 1e6, count));
            }
        }
        (buckets, count, self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_lies_below_its_bound_and_above_the_one_before() {
        for micros in [0, 1, 2, 3, 4, 5, 1_000, 1_024, 1_025, 9_000_000, u64::MAX / 1_000_000] {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(micros));
            let (buckets, count, _) = histogram.snapshot();
            assert_eq!(count, 1);
            for (bound, below) in buckets {
                assert_eq!(below == 1, micros as f64 <= bound * 1e6, "{micros} against {bound}");
            }
        }
    }
}
