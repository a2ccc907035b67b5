//! A node's CLOCK_BOOTTIME: what it makes of the true time, which only the simulator knows.
//!
//! Each clock starts anywhere and runs at a rate of its own, which may change. Invariant: no two
//! clocks run further apart than the configuration allows, and none ever goes back while its machine
//! is up; a power cut starts it anew.

use std::time::Duration;

use flotilla_engine::time::BootTime;

/// True time, in nanoseconds since the start of the run.
pub(crate) type Nanos = u64;

/// Milliseconds as [`Nanos`].
pub(crate) const fn ms(count: u64) -> Nanos {
    count * 1_000_000
}

/// Microseconds as [`Nanos`].
pub(crate) const fn us(count: u64) -> Nanos {
    count * 1_000
}

/// A duration as [`Nanos`].
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const PARTS: u128 = 1_000_000;

#[derive(Clone, Debug)]
pub(crate) struct Clock {
    since: Nanos,
    base: u64,
    /// Parts per million of the true rate.
    rate: u64,
}

impl Clock {
    pub(crate) fn new(now: Nanos, base: u64, rate: u64) -> Self {
        Self { since: now, base, rate }
    }

    pub(crate) fn read(&self, now: Nanos) -> BootTime {
        let passed = u128::from(now - self.since) * u128::from(self.rate) / PARTS;
        BootTime(self.base + passed as u64)
    }

    pub(crate) fn set_rate(&mut self, now: Nanos, rate: u64) {
        *self = Self::new(now, self.read(now).0, rate);
    }

    /// A power cut: the clock starts anew at `base`, at the same rate.
    pub(crate) fn restart(&mut self, now: Nanos, base: u64) {
        *self = Self::new(now, base, self.rate);
    }

    /// The true time that passes while this clock advances by `local`.
    pub(crate) fn true_length(&self, local: Duration) -> Nanos {
        (local.as_nanos() * PARTS / u128::from(self.rate)) as u64
    }

    /// Rates between which all clocks stay, so that no two drift apart by more than `drift`.
    pub(crate) fn rates(drift: f64) -> (u64, u64) {
        let half = (drift * 0.45 * 1e6) as u64;
        (1_000_000 - half, 1_000_001 + half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_and_drifts_within_its_bounds() {
        let (slow, fast) = Clock::rates(0.1);
        let mut clock = Clock::new(0, 77, slow);
        let before = clock.read(ms(100));
        clock.set_rate(ms(100), fast);
        assert_eq!(clock.read(ms(100)), before);
        assert!(clock.read(ms(200)).since(before) > Duration::from_millis(104));
        assert!(fast as f64 / slow as f64 <= 1.1);
        assert!(clock.true_length(Duration::from_millis(100)) < ms(96));
    }
}
