//! Waiting until nodes have done what writes left behind: flushes, compactions, garbage.

use std::time::{Duration, Instant};

use flotilla_benches::cluster::Result;
use serde::Serialize;

use super::servers::Servers;
use crate::machine::Spent;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// So many quiet looks in a row.
const QUIET_LOOKS: usize = 2;
/// All nodes together between two looks, at most.
const WRITTEN_MAX: f64 = 1024.0 * 1024.0;
const BUSY_MAX: f64 = 0.05;

/// How long it took, and whether it came to an end.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settled {
    pub seconds: f64,
    pub in_time: bool,
}

/// Waits, as long as there is patience.
pub async fn settle<S: Servers>(servers: &S, patience: Duration) -> Result<Settled> {
    let processes = servers.processes()?;
    let (began, mut quiet, mut before) = (Instant::now(), 0, Spent::until_now(&processes)?);
    while quiet < QUIET_LOOKS && began.elapsed() < patience {
        tokio::time::sleep(LOOK).await;
        let now = Spent::until_now(&processes)?;
        let still = is_quiet(now.since(before)) && servers.has_tidied_up().await?;
        quiet = if still { quiet + 1 } else { 0 };
        before = now;
    }
    let settled = Settled { seconds: began.elapsed().as_secs_f64(), in_time: quiet == QUIET_LOOKS };
    match settled.in_time {
        true => eprintln!("  settled after {:.0} s", settled.seconds),
        false => eprintln!("  NOT settled after {:.0} s: go on as it is", settled.seconds),
    }
    Ok(settled)
}

fn is_quiet(spent: Spent) -> bool {
    spent.disk_bytes < WRITTEN_MAX && spent.server_us < BUSY_MAX * LOOK.as_micros() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_or_computes_is_not_quiet() {
        let spent = |disk_bytes, server_us| Spent { disk_bytes, server_us, ..Spent::default() };
        assert!(is_quiet(spent(1e6, 2e5)));
        assert!(!is_quiet(spent(1.1e6, 2e5)));
        assert!(!is_quiet(spent(1e6, 3e5)));
    }
}
