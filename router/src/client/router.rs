//! Drives [`Call`]s: sends what they want sent, waits, learns routes. Cheap to clone.
//!
//! All decisions are the core's. What is kept here: the routes, a seeded source of random
//! numbers, and one refresh of the routes at a time, however many calls want one.

use std::collections::BTreeMap;
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
use crate::core::{Call, CallOutcome, Keyspaces, Places, Route, Step, Time, backoff, header_of, mix};

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
    /// The places that are to be asked for next.
    wanted: Mutex<Wanted>,
    /// The lock is held while somebody asks, for all who want something then.
    asked: tokio::sync::Mutex<Asked>,
}

/// Places that routes are wanted of, by keyspace.
#[derive(Default)]
struct Wanted {
    places: BTreeMap<String, Places>,
    /// How many times somebody has set out to ask for all that was wanted.
    turns: u64,
}

/// What came of it.
#[derive(Default)]
struct Asked {
    /// So many of these turns are over.
    turns: u64,
    results: BTreeMap<String, Result<()>>,
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
            wanted: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Carries a request out, within the header's `timeout_ms` from now on (0: 5 s). The header's range id and
    /// epoch are ignored. Errors: any of [`flotilla_proto::Error`]; one that is not
    /// [`Ambiguous`](flotilla_proto::Error::Ambiguous) means that surely nothing was applied.
    ///
    /// The future is small: each layer above copies it, and a thousand of them should fit into a processor's cache. Hence the
    /// call and all that is rare are on the heap, and the request is in nothing but the call.
    pub fn call(&self, body: v1::request::Body) -> impl Future<Output = Result<v1::response::Body>> + Send {
        let (timeout_ms, named) = header_of(&body).map_or((0, 0), |header| (header.timeout_ms, header.cluster_id));
        let timeout_ms = if timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { timeout_ms };
        let now = self.now();
        let deadline = now.saturating_add(Duration::from_millis(timeout_ms));
        let call = Box::new(Call::new(body, now, deadline));
        async move {
            cluster::check(self.cluster(named), named)?;
            let known = self.keyspaces().find(call.keyspace());
            let keyspace = match known {
                Some(keyspace) => keyspace,
                None => Box::pin(self.look_for(call.keyspace(), deadline)).await?,
            };
            self.drive(call, keyspace, deadline).await
        }
    }

    async fn drive(&self, mut call: Box<Call>, keyspace: KeyspaceId, deadline: Time) -> Result<v1::response::Body> {
        let mut sending: Vec<Sent<'_>> = Vec::with_capacity(1);
        let mut refreshing: Option<Refreshing<'_>> = None;
        loop {
            let until = match self.next(&mut call, keyspace) {
                Step::Done(result) => return result,
                Step::Send { node, request } => {
                    let id = request.id;
                    sending.push(Sent { id, node, answer: Box::pin(self.shared.transport.call(node, request)) });
                    continue;
                }
                Step::RefreshRoutes(places) => {
                    let name = call.keyspace().to_string();
                    refreshing = Some(Box::pin(async move { self.refresh(&name, &places).await }));
                    continue;
                }
                Step::WaitUntil(until) => until,
            };
            let is_still = match self.wait(&mut sending, &mut refreshing, until).await {
                Event::Time => continue,
                Event::Outcome(id, node, outcome) => {
                    if is_foreign(&outcome) {
                        self.shared.transport.disown(node);
                    }
                    let mut keyspaces = self.keyspaces();
                    call.on_outcome(self.now(), keyspaces.routes_mut(keyspace), self.rand(), id, outcome);
                    continue;
                }
                Event::Routes(result) => {
                    call.on_routes(self.now(), self.rand(), result);
                    Box::pin(self.is_still(call.keyspace(), keyspace, deadline))
                }
            };
            if !is_still.await {
                call.abandon(&Error::KeyspaceNotFound { name: call.keyspace().to_string() });
            }
        }
    }

    /// What the call wants next. By itself: the routes' lock is not held while it is done.
    fn next(&self, call: &mut Call, keyspace: KeyspaceId) -> Step {
        call.next(self.now(), self.keyspaces().routes(keyspace), self.rand())
    }

    /// Takes news of ranges, leaders and nodes in.
    ///
    /// Errors: *fail*: [`Error::ClusterMismatch`]: they are of another cluster than the first ones.
    pub fn merge(&self, routes: &v1::ListRangesResponse) -> Result<()> {
        self.keyspaces().merge_all(routes)?;
        self.shared.transport.learn(&routes.nodes);
        Ok(())
    }

    /// Takes in what somebody found who was asked for some ranges.
    ///
    /// Errors: *fail*: [`Error::ClusterMismatch`]: as above.
    pub fn merge_found(&self, found: &v1::ListRangesResponse) -> Result<()> {
        self.keyspaces().merge_found(found)?;
        self.shared.transport.learn(&found.nodes);
        Ok(())
    }

    /// Takes news of ranges in that there were requests for, and of nodes.
    pub fn follow(&self, routes: &[v1::RangeStatus], nodes: &[v1::NodeInfo]) {
        self.keyspaces().follow(routes);
        self.shared.transport.learn(nodes);
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

    /// Learns the routes at some places anew. Whoever asks does so for all who want something by then.
    async fn refresh(&self, keyspace: &str, places: &Places) -> Result<()> {
        let want = |wanted: &mut Wanted| {
            wanted.places.entry(keyspace.to_string()).or_default().merge(places);
            wanted.turns
        };
        let turn = want(&mut self.wanted());
        let mut asked = self.shared.asked.lock().await;
        if asked.turns <= turn {
            let (turns, wanted) = {
                let mut wanted = self.wanted();
                // Somebody may have set out with these, and been dropped on the way.
                want(&mut wanted);
                wanted.turns += 1;
                (wanted.turns, std::mem::take(&mut wanted.places))
            };
            asked.results.clear();
            for (keyspace, places) in wanted {
                let result = self.ask(&keyspace, places).await;
                asked.results.insert(keyspace, result);
            }
            asked.turns = turns;
        }
        asked.results.get(keyspace).cloned().unwrap_or(Ok(()))
    }

    async fn ask(&self, keyspace: &str, places: Places) -> Result<()> {
        for question in places.into_questions() {
            match self.shared.source.routes_at(keyspace, &question).await {
                Ok(found) => self.merge_found(&found)?,
                Err(error) => {
                    if matches!(error, Error::KeyspaceNotFound { .. }) {
                        self.keyspaces().forget(keyspace);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// First whoever knows routes, whom all that look for some ask together; then somebody who knows.
    async fn look_once(&self, name: &str) -> Result<Option<KeyspaceId>> {
        match self.refresh(name, &Places::default()).await {
            Ok(()) | Err(Error::KeyspaceNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let (found, lists) = {
            let keyspaces = self.keyspaces();
            (keyspaces.find(name), keyspaces.lists())
        };
        if found.is_some() {
            return Ok(found);
        }
        let found = self.shared.source.routes_with(name).await?;
        self.merge_found(&found)?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use flotilla_proto::ids::DEFAULT_KEYSPACE;

    use super::super::endpoints::Endpoints;
    use super::super::grpc::{GrpcConfig, GrpcTransport};
    use super::*;

    /// Every key is a range, and every node leads all.
    #[derive(Default)]
    struct Letters {
        asked: AtomicUsize,
        keys: AtomicUsize,
    }

    struct AnswersAll;

    impl Transport for AnswersAll {
        async fn call(&self, _: NodeId, request: v1::Request) -> CallOutcome {
            let body = v1::response::Body::Get(v1::GetResponse::default());
            CallOutcome::Response(v1::Response { id: request.id, body: Some(body) })
        }
    }

    impl RouteSource for Letters {
        async fn routes_at(&self, _: &str, places: &Places) -> Result<v1::ListRangesResponse> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.keys.fetch_add(places.keys.len(), Ordering::Relaxed);
            // The others come to ask meanwhile.
            tokio::task::yield_now().await;
            let route = |key: &bytes::Bytes| {
                let end = [key, &b"\0"[..]].concat().into();
                let number = key.iter().fold(1, |number, byte| number * 256 + u64::from(*byte));
                let descriptor = v1::RangeDescriptor {
                    range_id: number,
                    keyspace_id: DEFAULT_KEYSPACE.0,
                    start: key.clone(),
                    end,
                    epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
                    ..Default::default()
                };
                v1::RangeStatus { descriptor: Some(descriptor), leader_node_id: 1, term: 1, ..Default::default() }
            };
            Ok(v1::ListRangesResponse { ranges: places.keys.iter().map(route).collect(), ..Default::default() })
        }

        async fn routes_with(&self, keyspace: &str) -> Result<v1::ListRangesResponse> {
            self.routes_at(keyspace, &Places::default()).await
        }
    }

    #[tokio::test]
    async fn whoever_asks_for_routes_asks_for_all_that_wait() {
        let router = Router::new(AnswersAll, Letters::default(), RouterConfig::default());
        let get = |at: usize| {
            let router = router.clone();
            async move { router.get(v1::GetRequest { key: format!("{at:04}").into(), ..Default::default() }).await }
        };
        let calls: Vec<_> = (0..500).map(|at| tokio::spawn(get(at))).collect();
        // One that goes away while it asks takes nobody's question with it.
        let gone: Vec<_> = (500..520).map(|at| tokio::spawn(get(at))).collect();
        gone.iter().for_each(tokio::task::JoinHandle::abort);
        for call in calls {
            call.await.expect("it does not panic").expect("answered");
        }
        let letters = &router.shared.source;
        assert!(letters.asked.load(Ordering::Relaxed) <= 4, "{} questions", letters.asked.load(Ordering::Relaxed));
        assert!((500..=1_010).contains(&letters.keys.load(Ordering::Relaxed)));
    }

    #[test]
    fn the_future_of_a_call_is_small() {
        let endpoints =
            Endpoints::new(vec!["127.0.0.1:1".into()], Duration::from_secs(1), 0, None).expect("an address");
        let router = Router::new(GrpcTransport::new(GrpcConfig::default()), endpoints, RouterConfig::default());
        let of_a_call = size_of_val(&router.call(v1::request::Body::Get(v1::GetRequest::default())));
        let of_a_request = size_of_val(&router.transport().call(NodeId(1), v1::Request::default()));
        let of_a_get = size_of_val(&router.get(v1::GetRequest::default()));
        let of_a_put = size_of_val(&router.put(v1::PutRequest::default()));
        let sizes = [of_a_call, of_a_request, of_a_get, of_a_put];
        assert!(
            sizes.iter().all(|bytes| *bytes <= 1_024),
            "bytes of a call, a request to a node, a get, a put: {sizes:?}"
        );
    }
}
