//! From the start of the processes until clients are served.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flotilla_benches::cluster::{PATIENCE, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::kernel::Resident;
use super::servers::Servers;
use crate::load::Load;
use crate::load::workload::key;
use crate::machine::Watch;
use crate::store::{Done, Failed, Session};

/// Keys that all must be served.
const KEYS: usize = 64;
/// What is not answered by then is asked anew; until then a client repeats it by itself, if that is its way.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// What was seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restart {
    /// Until a new client's get of a random key.
    pub first_seconds: f64,
    /// Until a get of each of some.
    pub all_seconds: f64,
    /// Behind these gets.
    pub resident: Resident,
    /// Cores that something else was busy with meanwhile.
    pub others: f64,
}

/// Starts nodes that were ended; `filled`: what they had been given.
pub async fn restart<S: Servers>(servers: &mut S, groups: &[PathBuf], filled: Load) -> Result<Restart> {
    let mut random = SmallRng::seed_from_u64(filled.seed);
    let numbers: Vec<u64> = (0..KEYS).map(|_| random.random_range(0..filled.keys)).collect();
    let late = |_| format!("clients are not served {PATIENCE:?} behind a restart");
    // Of nodes that have spent nothing yet.
    let (watch, began) = (Watch::start(&[])?, Instant::now());
    servers.start_again(groups)?;
    let session = timeout(PATIENCE, first_served(servers, numbers[0], filled.value_bytes)).await.map_err(late)??;
    let first_seconds = began.elapsed().as_secs_f64();
    let mut gets = JoinSet::new();
    for number in numbers {
        gets.spawn(until_served(session.clone(), number, filled.value_bytes));
    }
    while let Some(done) = timeout(PATIENCE, gets.join_next()).await.map_err(late)? {
        done??;
    }
    let all_seconds = began.elapsed().as_secs_f64();
    let processes = servers.processes()?;
    let (others, resident) = (watch.end(&processes)?.others, Resident::of(&processes)?);
    eprintln!(
        "  a get after {first_seconds:.2} s, {KEYS} after {all_seconds:.2} s, {others:.2} cores busy with something else"
    );
    Ok(Restart { first_seconds, all_seconds, resident, others })
}

/// A new client each time, as one would be that comes just then.
async fn first_served<S: Servers>(servers: &S, number: u64, value_bytes: usize) -> Result<S::Session> {
    loop {
        let attempt = async {
            let session = servers.sessions(1).await?.swap_remove(0);
            let found = session.get(key(number)).await?;
            Ok::<_, Box<dyn Error>>((session, found))
        };
        if let Ok(Ok((session, found))) = timeout(ATTEMPT, attempt).await {
            check(number, found, value_bytes)?;
            return Ok(session);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn until_served<S: Session>(session: S, number: u64, value_bytes: usize) -> Done<()> {
    loop {
        if let Ok(Ok(found)) = timeout(ATTEMPT, session.get(key(number))).await {
            return check(number, found, value_bytes);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What was acknowledged is still there.
fn check(number: u64, found: Option<usize>, value_bytes: usize) -> Done<()> {
    match found == Some(value_bytes) {
        true => Ok(()),
        false => {
            Err(Failed(format!("behind a restart key {number} has a value of {found:?} B, not of {value_bytes} B")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told() {
        check(7, Some(256), 256).expect("it is there");
        for lost in [None, Some(1)] {
            assert!(check(7, lost, 256).expect_err("it is not").0.contains("key 7"));
        }
    }
}
