//! The other nodes: where they are, whether they can be reached, what they said of themselves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_engine::store::Envelope;
use flotilla_engine::time::BootTime;
use flotilla_proto::{NodeId, v1};
use tokio::sync::mpsc;

use super::hello::NOT_A_MEMBER;
use super::outbox::Outbox;
use crate::clock;

/// Snapshots that may wait for one node.
const SNAPSHOTS_WAITING_MAX: usize = 4;
/// Refusals that are remembered.
const REFUSALS_KEPT: usize = 16;
/// A node that is not known here is told of if it goes on to call for longer than this.
const NOT_A_MEMBER_PATIENCE: Duration = Duration::from_secs(3);
/// How long a refusal of a caller stays in the status after it was last seen.
const REFUSAL_SHOWN: Duration = Duration::from_secs(60);

/// Another node.
#[derive(Debug)]
pub(crate) struct Peer {
    pub node: NodeId,
    pub outbox: Arc<Outbox>,
    pub snapshots: mpsc::Sender<Envelope>,
    gone: AtomicBool,
    last_heard: AtomicU64,
    state: Mutex<PeerState>,
}

#[derive(Clone, Debug, Default)]
struct PeerState {
    /// As placement has it.
    configured: String,
    /// Whether to dial that instead of what the node says of itself.
    prefer_configured: bool,
    hello: v1::Hello,
    disk_full: bool,
    /// Why there is no connection to it, in words.
    trouble: Option<String>,
    /// Since when there is none.
    down_since: BootTime,
}

impl PeerState {
    /// What the node says of itself counts, unless it cannot be reached there.
    fn address(&self) -> &str {
        if self.prefer_configured || self.hello.peer_addr.is_empty() { &self.configured } else { &self.hello.peer_addr }
    }
}

impl Peer {
    fn new(record: &v1::NodeRecord) -> (Arc<Self>, mpsc::Receiver<Envelope>) {
        let (snapshots, queue) = mpsc::channel(SNAPSHOTS_WAITING_MAX);
        let state =
            PeerState { trouble: Some("not reached yet".into()), down_since: clock::now(), ..PeerState::default() };
        let peer = Self {
            node: NodeId(record.node_id),
            outbox: Arc::default(),
            snapshots,
            last_heard: AtomicU64::new(clock::now().0),
            gone: AtomicBool::new(false),
            state: Mutex::new(state),
        };
        peer.configure(record);
        (Arc::new(peer), queue)
    }

    /// Whether it was removed for good: nothing that it still says counts.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to dial it.
    pub fn address(&self) -> String {
        self.lock().address().into()
    }

    /// It did not answer there: the other address, if there are two, is next.
    pub fn try_other_address(&self) {
        let mut state = self.lock();
        state.prefer_configured = !state.prefer_configured;
    }

    /// Takes what it said of itself. It may have come back at another address.
    pub fn introduced(&self, hello: &v1::Hello) {
        let mut state = self.lock();
        if hello.peer_addr != state.hello.peer_addr {
            tracing::info!(node = %self.node, from = state.address(), to = hello.peer_addr, "the node told its address");
            state.prefer_configured = false;
        }
        state.hello = hello.clone();
        drop(state);
        self.heard();
    }

    /// What placement says of it.
    fn configure(&self, record: &v1::NodeRecord) {
        let mut state = self.lock();
        if state.configured != record.peer_addr {
            state.configured.clone_from(&record.peer_addr);
            state.prefer_configured = true;
        }
        // Until it has introduced itself, what it told placement is the newest that is known.
        if state.hello.node_id == 0 {
            state.hello.client_addr.clone_from(&record.client_addr);
            state.hello.http_addr.clone_from(&record.http_addr);
            state.hello.version.clone_from(&record.version);
        }
    }

    /// A frame came from it.
    pub fn heard(&self) {
        self.last_heard.store(clock::now().0, Ordering::Relaxed);
    }

    /// What its last frame said of its disk.
    pub fn note_disk(&self, full: bool) {
        self.lock().disk_full = full;
    }

    /// The connection to it stands.
    pub fn connected(&self) {
        self.lock().trouble = None;
    }

    /// There is no connection to it; true: that is news.
    pub fn disconnected(&self, why: String) -> bool {
        let mut state = self.lock();
        if state.trouble.is_none() {
            state.down_since = clock::now();
        }
        let news = state.trouble.as_ref() != Some(&why);
        state.trouble = Some(why);
        news
    }

    fn info(&self, now: BootTime) -> v1::NodeInfo {
        let state = self.lock();
        let heard = self.last_heard.load(Ordering::Relaxed);
        v1::NodeInfo {
            node_id: self.node.0,
            peer_addr: state.address().into(),
            client_addr: state.hello.client_addr.clone(),
            http_addr: state.hello.http_addr.clone(),
            version: state.hello.version.clone(),
            live: self.outbox.is_open(),
            boot_id: state.hello.boot_id,
            last_heard_ms: u64::try_from(now.since(BootTime(heard)).as_millis()).unwrap_or(u64::MAX),
            disk_full: state.disk_full,
            ..Default::default()
        }
    }

    fn problem(&self, now: BootTime) -> Option<String> {
        let state = self.lock();
        let trouble = state.trouble.as_ref()?;
        let down_for = now.since(state.down_since);
        if trouble.contains(NOT_A_MEMBER) && down_for < NOT_A_MEMBER_PATIENCE {
            return None;
        }
        let seconds = down_for.as_secs();
        Some(format!("no connection to node {} at {} for {seconds} s: {trouble}", self.node.0, state.address()))
    }
}

/// The taking end of a node's snapshot queue.
pub(crate) type SnapshotQueue = (Arc<Peer>, mpsc::Receiver<Envelope>);

/// All other nodes of the cluster, and who was turned away at the door.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    all: ArcSwap<BTreeMap<NodeId, Arc<Peer>>>,
    refusals: Mutex<VecDeque<Turned>>,
}

/// A caller that was turned away.
#[derive(Debug)]
struct Turned {
    words: String,
    first: BootTime,
    last: BootTime,
}

impl Peers {
    /// Takes what is known of the other nodes; returns those that are new, with the ends of their snapshot queues,
    /// and those that are gone for good.
    pub fn learn(&self, nodes: &[v1::NodeRecord]) -> (Vec<SnapshotQueue>, Vec<NodeId>) {
        let mut all = BTreeMap::clone(&self.all.load());
        let (mut queues, mut gone) = (Vec::new(), Vec::new());
        for record in nodes {
            let node = NodeId(record.node_id);
            match all.get(&node) {
                Some(peer) if record.removed => {
                    peer.gone.store(true, Ordering::Release);
                    all.remove(&node);
                    gone.push(node);
                }
                Some(peer) => peer.configure(record),
                None if record.removed => {}
                None => {
                    let (peer, queue) = Peer::new(record);
                    queues.push((Arc::clone(&peer), queue));
                    all.insert(node, peer);
                }
            }
        }
        if !queues.is_empty() || !gone.is_empty() {
            self.all.store(Arc::new(all));
        }
        (queues, gone)
    }

    /// One of them.
    pub fn get(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.all.load().get(&node).cloned()
    }

    /// Tells all of them how fast this node is.
    pub fn tell(&self, health: &v1::NodeHealth) {
        self.all.load().values().for_each(|peer| peer.outbox.tell(health.clone()));
    }

    /// Whether there is a connection to any.
    pub fn any_live(&self) -> bool {
        self.all.load().values().any(|peer| peer.outbox.is_open())
    }

    /// Notes that a caller was turned away.
    pub fn refused(&self, words: String) {
        let now = clock::now();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.iter_mut().find(|known| known.words == words) {
            Some(known) => known.last = now,
            None => {
                tracing::info!(words, "a node was turned away");
                if refusals.len() == REFUSALS_KEPT {
                    refusals.pop_front();
                }
                refusals.push_back(Turned { words, first: now, last: now });
            }
        }
    }

    /// All of them, by id.
    pub fn infos(&self) -> Vec<v1::NodeInfo> {
        let now = clock::now();
        self.all.load().values().map(|peer| peer.info(now)).collect()
    }

    /// What a person should know: a line each.
    pub fn problems(&self) -> Vec<String> {
        let now = clock::now();
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |known: &&Turned| {
            !known.words.contains(NOT_A_MEMBER) || known.last.since(known.first) > NOT_A_MEMBER_PATIENCE
        };
        let recent = refusals.iter().filter(|known| now.since(known.last) < REFUSAL_SHOWN).filter(stays);
        let turned_away = recent.map(|known| format!("a node was turned away: {}", known.words));
        self.all.load().values().filter_map(|peer| peer.problem(now)).chain(turned_away).collect()
    }
}
