//! Drives [`Call`]s: sends what they want sent, waits, learns routes. Cheap to clone.
//!
//! All decisions are the core's. What is kept here: the routes, a seeded source of random
//! numbers, and one refresh of the routes at a time, however many calls want one.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use flotilla_proto::limits::TIMEOUT_MS_DEFAULT;
use flotilla_proto::{Error, KeyspaceId, NodeId, RangeId, Result, cluster, v1};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::transport::{RouteSource, Transport};
use crate::core::{Call, CallOutcome, Keyspaces, Route, Step, Time, backoff, header_of, mix};

/// How a router is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouterConfig {
    /// The node that the router runs in.
    pub local: Option<NodeId>,
    /// The cluster that it routes for; 0: the one that the first routes are of.
    pub cluster_id: u64,
    /// Start of its random numbers (jitter, choice of replicas).
    pub seed: u64,
}

/// Sends each request to where it belongs, and repeats it where that is safe.
pub struct Router<T, R> {
    shared: Arc<Shared<T, R>>,
}

impl<T, R> Clone for Router<T, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<T, R> {
    transport: T,
    source: R,
    keyspaces: Mutex<Keyspaces>,
    origin: Instant,
    seed: AtomicU64,
    /// How many refreshes have ended; the lock is held during one.
    refreshes: tokio::sync::Mutex<Result<()>>,
    refreshed: AtomicU64,
}

type Sending<'a> = Pin<Box<dyn Future<Output = CallOutcome> + Send + 'a>>;
type Refreshing<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A request that is out.
struct Sent<'a> {
    id: u64,
    node: NodeId,
    answer: Sending<'a>,
}

enum Event {
    Outcome(u64, NodeId, CallOutcome),
    Routes(Result<()>),
    Time,
}

impl<T: Transport, R: RouteSource> Router<T, R> {
    /// A router that knows no routes yet: its first call learns the routes.
    pub fn new(transport: T, routes: R, config: RouterConfig) -> Self {
        let shared = Shared {
            transport,
            source: routes,
            keyspaces: Mutex::new(Keyspaces::of_cluster(config.local, config.cluster_id)),
            origin: Instant::now(),
            seed: AtomicU64::new(config.seed),
            refreshes: tokio::sync::Mutex::new(Ok(())),
            refreshed: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Carries a request out, within the header's `timeout_ms` (0: 5 s). The header's range id and
    /// epoch are ignored. Errors: any of [`flotilla_proto::Error`]; one that is not
    /// [`Ambiguous`](flotilla_proto::Error::Ambiguous) means that surely nothing was applied.
    pub async fn call(&self, body: v1::request::Body) -> Result<v1::response::Body> {
        let timeout_ms = header_of(&body).map_or(0, |header| header.timeout_ms);
        let timeout_ms = if timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { timeout_ms };
        let now = self.now();
        let deadline = now.saturating_add(Duration::from_millis(timeout_ms));
        let (name, named) = header_of(&body).map_or(("", 0), |header| (&header.keyspace, header.cluster_id));
        cluster::check(self.cluster(named), named)?;
        let known = self.keyspaces().find(name);
        let keyspace = match known {
            Some(keyspace) => keyspace,
            None => self.look_for(name, deadline).await?,
        };
        let mut call = Call::new(body, now, deadline);
        let mut sending: Vec<Sent<'_>> = Vec::with_capacity(1);
        let mut refreshing: Option<Refreshing<'_>> = None;
        loop {
            let step = call.next(self.now(), self.keyspaces().routes(keyspace), self.rand());
            match step {
                Step::Done(result) => return result,
                Step::Send { node, request } => {
                    let id = request.id;
                    sending.push(Sent { id, node, answer: Box::pin(self.shared.transport.call(node, request)) });
                }
                Step::RefreshRoutes => {
                    let seen = self.shared.refreshed.load(Ordering::Acquire);
                    refreshing = Some(Box::pin(self.refresh_after(seen)));
                }
                Step::WaitUntil(time) => match self.wait(&mut sending, &mut refreshing, time).await {
                    Event::Time => {}
                    Event::Outcome(id, node, outcome) => {
                        if is_foreign(&outcome) {
                            self.shared.transport.disown(node);
                        }
                        let mut keyspaces = self.keyspaces();
                        call.on_outcome(self.now(), keyspaces.routes_mut(keyspace), self.rand(), id, outcome);
                    }
                    Event::Routes(result) => {
                        call.on_routes(self.now(), self.rand(), result);
                        if !self.is_still(call.keyspace(), keyspace, deadline).await {
                            call.abandon(&Error::KeyspaceNotFound { name: call.keyspace().to_string() });
                        }
                    }
                },
            }
        }
    }

    /// Learns the routes anew.
    pub async fn refresh(&self) -> Result<()> {
        let seen = self.shared.refreshed.load(Ordering::Acquire);
        self.refresh_after(seen).await
    }

    /// Takes news of ranges, leaders and nodes in.
    ///
    /// Errors: *fail*: [`Error::ClusterMismatch`]: they are of another cluster than the first ones.
    pub fn merge(&self, routes: &v1::ListRangesResponse) -> Result<()> {
        self.keyspaces().merge_all(routes)?;
        self.shared.transport.learn(&routes.nodes);
        Ok(())
    }

    /// The cluster that requests go to; 0: not known yet. Looked up only for those who ask.
    fn cluster(&self, asked: u64) -> u64 {
        if asked == 0 {
            return 0;
        }
        match self.keyspaces().cluster() {
            0 => asked,
            known => known,
        }
    }

    /// The node that leads a range, as far as is known here.
    pub fn leader_of(&self, range: RangeId) -> Option<NodeId> {
        self.keyspaces().by_range(range).and_then(|route| route.leader)
    }

    /// Takes news of one range's leader in; older than what is known, it is ignored.
    pub fn learn_leader(&self, range: RangeId, leader: NodeId, term: u64) {
        self.keyspaces().set_leader(range, leader, term);
    }

    /// Takes news of some ranges in.
    pub fn learn_ranges(&self, descriptors: &[v1::RangeDescriptor]) {
        self.keyspaces().merge_each(descriptors);
    }

    /// Takes in a keyspace that was just created, before the nodes' lists name it.
    pub fn learn_keyspace(&self, keyspace: KeyspaceId, name: &str) {
        self.keyspaces().learn(keyspace, name);
    }

    /// The range of the default keyspace that holds a key, as far as is known here.
    pub fn range_of(&self, key: &[u8]) -> Option<v1::RangeDescriptor> {
        self.range_in("", key)
    }

    /// The range of a keyspace (empty: the default one) that holds a key, as far as is known here.
    pub fn range_in(&self, keyspace: &str, key: &[u8]) -> Option<v1::RangeDescriptor> {
        let keyspaces = self.keyspaces();
        let route = keyspaces.routes(keyspaces.find(keyspace)?).lookup(key);
        route.map(|route: &Route| route.descriptor.clone())
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.shared.transport
    }

    /// The source of routes.
    pub fn source(&self) -> &R {
        &self.shared.source
    }

    /// A refresh that ended after `seen` refreshes is everyone's who waited for one.
    async fn refresh_after(&self, seen: u64) -> Result<()> {
        let shared = &self.shared;
        let mut last = shared.refreshes.lock().await;
        if shared.refreshed.load(Ordering::Acquire) == seen {
            *last = shared.source.routes().await.and_then(|routes| self.merge(&routes));
            shared.refreshed.fetch_add(1, Ordering::AcqRel);
        }
        last.clone()
    }

    async fn wait(&self, sending: &mut Vec<Sent<'_>>, refreshing: &mut Option<Refreshing<'_>>, until: Time) -> Event {
        let mut timer = pin!(sleep_until(self.shared.origin + until));
        poll_fn(|context| {
            if let Some(event) = poll_work(sending, refreshing, context) {
                return Poll::Ready(event);
            }
            timer.as_mut().poll(context).map(|()| Event::Time)
        })
        .await
    }

    /// A keyspace that is not known here: whoever knows decides, however long it takes to hear from one. The list of a
    /// node that is behind decides nothing.
    async fn look_for(&self, name: &str, deadline: Time) -> Result<KeyspaceId> {
        let over = self.shared.origin + deadline;
        let mut last = "no answer".to_string();
        let mut failures = 0;
        while Instant::now() < over {
            match timeout_at(over, self.look_once(name)).await {
                Ok(Ok(Some(keyspace))) => return Ok(keyspace),
                Ok(Ok(None)) => last = "a node that does not know the keyspaces yet".into(),
                Ok(Err(Error::KeyspaceNotFound { .. })) => return Err(Error::KeyspaceNotFound { name: name.into() }),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => break,
            }
            failures += 1;
            sleep_until(over.min(Instant::now() + backoff(failures, self.rand()))).await;
        }
        Err(Error::Timeout { stage: format!("while it looked for keyspace \"{name}\" (last: {last})") })
    }

    /// First the routes, which all that look for some get together; then somebody who knows.
    async fn look_once(&self, name: &str) -> Result<Option<KeyspaceId>> {
        self.refresh().await?;
        let (found, lists) = {
            let keyspaces = self.keyspaces();
            (keyspaces.find(name), keyspaces.lists())
        };
        if found.is_some() {
            return Ok(found);
        }
        let routes = self.shared.source.routes_with(name).await?;
        self.merge(&routes)?;
        let keyspaces = self.keyspaces();
        match keyspaces.find(name) {
            None if keyspaces.lists() > lists => Err(Error::KeyspaceNotFound { name: name.into() }),
            found => Ok(found),
        }
    }

    /// Whether a keyspace is not surely gone, though lists may have left it out: nodes may be behind.
    async fn is_still(&self, name: &str, keyspace: KeyspaceId, deadline: Time) -> bool {
        if self.keyspaces().contains(keyspace) {
            return true;
        }
        match self.look_for(name, deadline).await {
            Ok(found) => found == keyspace,
            Err(error) => !matches!(error, Error::KeyspaceNotFound { .. }),
        }
    }

    fn keyspaces(&self) -> MutexGuard<'_, Keyspaces> {
        // Every change of them leaves them consistent, so a panic elsewhere does no harm.
        self.shared.keyspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn sleep_until(&self, time: Time) {
        sleep_until(self.shared.origin + time).await;
    }

    pub(super) fn now(&self) -> Time {
        self.shared.origin.elapsed()
    }

    pub(super) fn rand(&self) -> u64 {
        mix(self.shared.seed.fetch_add(1, Ordering::Relaxed))
    }
}

/// Whether a node of another cluster answered.
fn is_foreign(outcome: &CallOutcome) -> bool {
    let CallOutcome::Response(v1::Response { body: Some(v1::response::Body::Error(error)), .. }) = outcome else {
        return false;
    };
    error.kind() == v1::ErrorKind::ClusterMismatch
}

fn poll_work(
    sending: &mut Vec<Sent<'_>>,
    refreshing: &mut Option<Refreshing<'_>>,
    context: &mut Context<'_>,
) -> Option<Event> {
    for at in 0..sending.len() {
        if let Poll::Ready(outcome) = sending[at].answer.as_mut().poll(context) {
            let Sent { id, node, .. } = sending.swap_remove(at);
            return Some(Event::Outcome(id, node, outcome));
        }
    }
    let routes = refreshing.as_mut()?;
    let Poll::Ready(result) = routes.as_mut().poll(context) else { return None };
    *refreshing = None;
    Some(Event::Routes(result))
}
