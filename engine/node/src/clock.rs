//! The clocks of this machine: the only place of the crate that reads one for the engine.
//!
//! Leases and deadlines are in CLOCK_BOOTTIME, which goes on while the machine is suspended.

use std::time::Duration;

use flotilla_engine::time::BootTime;
use rustix::time::{ClockId, Timespec, clock_gettime};

fn nanos(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Now.
pub fn now() -> BootTime {
    BootTime(nanos(clock_gettime(ClockId::Boottime)))
}

/// The processor time that this process has taken, of all its threads.
pub fn process_cpu() -> Duration {
    Duration::from_nanos(nanos(clock_gettime(ClockId::ProcessCPUTime)))
}

/// A number that no other process start is likely to draw.
pub fn random_u64() -> u64 {
    let mut bytes = [0_u8; 8];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // Only before the machine has gathered any entropy: time and process tell starts apart.
        _ => now().0 ^ (u64::from(std::process::id()) << 32),
    }
    .max(1)
}
