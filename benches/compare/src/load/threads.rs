//! The threads that load.
//!
//! Each has a runtime, connections and clients of its own, and serves them in the order in which they become ready. One
//! runtime of several threads does not: with a thousand clients its threads' queues overflow, and what has overflowed waits
//! until what has not is done. Half of the answers were seen after 15 ms then and one in a hundred after 150, whatever the
//! server did.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::LazyLock;

use flotilla_benches::cluster::Result;
use tokio::runtime::{Builder, Handle};

/// As many as the smallest machine that is measured on has cores.
pub const THREADS: usize = 2;

/// They last as long as the process.
static THREADS_OF_LOAD: LazyLock<std::io::Result<Vec<Handle>>> =
    LazyLock::new(|| (0..THREADS).map(|_| start()).collect());

fn start() -> std::io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("load".into()).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// A session, and the thread that its connections belong to: its clients belong there, too.
#[derive(Clone, Debug)]
pub struct Placed<S> {
    pub session: S,
    pub thread: Handle,
    /// Which of the threads it is.
    pub number: usize,
}

/// Makes sessions for so many clients, an equal share of them on each thread; clients that take turns with the sessions
/// come to one thread after the other.
pub async fn sessions<S>(clients: usize, make: impl AsyncFn(usize) -> Result<Vec<S>>) -> Result<Vec<Placed<S>>> {
    let threads = THREADS_OF_LOAD.as_ref().map_err(|error| format!("cannot start threads: {error}"))?;
    let mut of_threads = Vec::new();
    for (number, thread) in threads.iter().enumerate().take(clients) {
        let share = (clients - number).div_ceil(threads.len().min(clients));
        let made = within(thread, make(share)).await?;
        let thread = thread.clone();
        of_threads.push(made.into_iter().map(move |session| Placed { session, thread: thread.clone(), number }));
    }
    let mut in_turn = Vec::new();
    loop {
        let before = in_turn.len();
        in_turn.extend(of_threads.iter_mut().filter_map(Iterator::next));
        if in_turn.len() == before {
            return Ok(in_turn);
        }
    }
}

/// What this begins, connections above all, belongs to that thread, although it is waited for here.
async fn within<F: Future>(thread: &Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _entered = thread.enter();
        future.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_are_shared_out_and_tasks_belong_to_their_threads() {
        for (clients, shares) in [(1, vec![1]), (2, vec![1, 1]), (7, vec![4, 3]), (1_000, vec![500, 500])] {
            let made = sessions(clients, async |share| {
                let thread = tokio::spawn(async { std::thread::current().id() }).await?;
                Ok(vec![(share, thread); share.min(3)])
            });
            let made = made.await.expect("made");
            let found: Vec<usize> = made.iter().take(shares.len()).map(|placed| placed.session.0).collect();
            assert_eq!(found, shares, "of {clients}");
            for placed in made {
                let own = placed.thread.spawn(async { std::thread::current().id() }).await.expect("it ran");
                assert_eq!(own, placed.session.1);
                assert_ne!(own, std::thread::current().id());
            }
        }
    }
}
