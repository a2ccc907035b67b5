//! The client's source of routes, and its way to the Admin service of any node.
//!
//! Begins with the addresses given by the user; learns those of the other nodes from the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_proto::error::Action;
use flotilla_proto::limits::DECODED_BYTES_MAX;
use flotilla_proto::{Error, NodeId, RangeId, Result, error, v1};
use flotilla_tls::Tls;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};
use v1::admin_client::AdminClient;

use super::connection::{Way, status_text};
use super::named::{Admin, NamedChannel, Naming};
use super::transport::RouteSource;
use crate::core::Places;

/// What a unary call brings.
pub(super) type RpcResult<A> = std::result::Result<Response<A>, Status>;

/// The nodes' addresses and channels, shared by all clones.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connect_timeout: Duration,
    tls: Option<Arc<Tls>>,
    /// The cluster that the nodes are of.
    naming: Naming,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// As the user gave them.
    given: Vec<String>,
    /// As the nodes told them.
    nodes: BTreeMap<NodeId, String>,
    /// The address that answered last.
    last: Option<String>,
    /// Addresses that did not answer when last asked: asked after the others.
    silent: BTreeSet<String>,
    /// How often routes were asked for again.
    turn: usize,
    /// The places that were last looked for.
    looked_for: Places,
    channels: BTreeMap<String, Channel>,
}

impl Endpoints {
    /// Refuses addresses that cannot be any. `cluster`: the only one to speak to; 0: the one that answers first.
    /// `tls`: plain text without.
    pub(super) fn new(
        given: Vec<String>,
        connect_timeout: Duration,
        cluster: u64,
        tls: Option<Arc<Tls>>,
    ) -> Result<Self> {
        if given.is_empty() {
            return Err(Error::invalid("no address of a node is given", "give at least one as host:port"));
        }
        for address in &given {
            Way::new(address, connect_timeout, tls.as_ref())
                .map_err(|bad| Error::invalid(bad, "addresses look like host:port"))?;
        }
        let known = Mutex::new(Known { given, ..Known::default() });
        Ok(Self { shared: Arc::new(Shared { connect_timeout, tls, naming: Naming::new(cluster), known }) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is a single one, so a panic elsewhere does no harm.
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All addresses, the one that answered last in front, those that did not at the end.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.known().addresses()
    }

    /// The same, beginning with another one each time. A node may be behind, or new and know nothing:
    /// who asks for routes again has not been helped by the last one.
    fn addresses_in_turn(&self) -> Vec<String> {
        let mut known = self.known();
        let mut addresses = known.addresses();
        let answering = addresses.iter().filter(|address| !known.silent.contains(*address)).count();
        if let Some(at) = known.turn.checked_rem(answering) {
            addresses[..answering].rotate_left(at);
        }
        known.turn = known.turn.wrapping_add(1);
        addresses
    }

    /// For whoever looks for these places: the one that answered last in front, unless it was just asked for one of them.
    fn addresses_for(&self, places: &Places) -> Vec<String> {
        let before = std::mem::replace(&mut self.known().looked_for, places.clone());
        let again = !before.keys.is_disjoint(&places.keys) || !before.before.is_disjoint(&places.before);
        if again { self.addresses_in_turn() } else { self.addresses() }
    }

    pub(super) fn address_of(&self, node: NodeId) -> Option<String> {
        self.known().nodes.get(&node).cloned()
    }

    /// The address to try at this turn: all of them, one after the other, the one that answered last
    /// first.
    pub(super) fn address_at(&self, turn: usize) -> String {
        let mut addresses = self.addresses();
        // There is always one: those that were given never go.
        addresses.swap_remove(turn % addresses.len())
    }

    /// Notes an address that has just answered.
    pub(super) fn answered(&self, address: &str) {
        let mut known = self.known();
        known.silent.remove(address);
        if known.last.as_deref() != Some(address) {
            known.last = Some(address.to_string());
        }
    }

    /// Notes an address that could not be reached.
    pub(super) fn silent(&self, address: &str) {
        self.known().silent.insert(address.to_string());
    }

    /// Whether the cluster is known that requests are meant for: then nodes of another one refuse them.
    pub(super) fn knows_cluster(&self) -> bool {
        self.shared.naming.is_known()
    }

    /// The Admin service at an address.
    pub(super) fn admin(&self, address: &str) -> Result<Admin> {
        self.channel(address).map(admin)
    }

    /// How long a node may take over a short answer: one that hangs must not hold up the others.
    pub(super) fn patience(&self) -> Duration {
        self.shared.connect_timeout.saturating_mul(2)
    }

    /// The channel to an address. The connection is made by the first call.
    pub(super) fn channel(&self, address: &str) -> Result<NamedChannel> {
        let way = Way::new(address, self.shared.connect_timeout, self.shared.tls.as_ref())
            .map_err(|bad| Error::invalid(bad, "addresses look like host:port"))?;
        let mut known = self.known();
        let channel = known.channels.entry(address.to_string()).or_insert_with(|| way.connect_lazy());
        Ok(NamedChannel::new(channel.clone(), self.shared.naming.clone()))
    }

    /// Asks one node after the other until one can answer; if none can, says why of each.
    pub(super) async fn ask_any<A, F>(&self, ask: impl Fn(Admin) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        self.ask_each(self.addresses(), ask, |_, _| Ok(())).await
    }

    /// `accept`: whether an answer of that address is one; if not, the next is asked.
    async fn ask_each<A, F>(
        &self,
        addresses: Vec<String>,
        ask: impl Fn(Admin) -> F,
        accept: impl Fn(&str, &A) -> Result<()>,
    ) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let mut failures = vec![];
        for address in addresses {
            let limit = self.patience();
            match timeout(limit, ask(self.admin(&address)?)).await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    if let Err(error) = accept(&address, &answer) {
                        self.silent(&address);
                        failures.push(error.to_string());
                        continue;
                    }
                    self.answered(&address);
                    return Ok(answer);
                }
                Ok(Err(status)) => match error::from_status(&status) {
                    Some(error @ Error::ClusterMismatch { .. }) => {
                        self.silent(&address);
                        failures.push(format!("{address}: {error}"));
                    }
                    // The node knows, and another one would say the same.
                    Some(error) if error.action() != Action::Retry => return Err(error),
                    Some(error) => failures.push(format!("{address}: {error}")),
                    None => {
                        self.silent(&address);
                        failures.push(format!("{address}: {}", status_text(&status)));
                    }
                },
                Err(_) => {
                    self.silent(&address);
                    failures.push(format!("{address}: no answer within {} ms", limit.as_millis()));
                }
            }
        }
        Err(Error::Unavailable { reason: format!("no node answers ({})", failures.join("; ")) })
    }

    /// Keeps the nodes' addresses.
    pub(super) fn learn(&self, nodes: &[v1::NodeInfo]) {
        for node in nodes {
            self.learn_address(NodeId(node.node_id), &node.client_addr);
        }
    }

    /// Keeps a node's address; an empty one says nothing.
    pub(super) fn learn_address(&self, node: NodeId, address: &str) {
        if !address.is_empty() {
            self.known().nodes.insert(node, address.to_string());
        }
    }
}

impl Known {
    fn addresses(&self) -> Vec<String> {
        let all = self.last.iter().chain(&self.given).chain(self.nodes.values());
        let mut seen = BTreeSet::new();
        let mut addresses: Vec<String> = all.filter(|address| seen.insert(address.as_str())).cloned().collect();
        // Stable: otherwise the order stays.
        addresses.sort_by_key(|address| self.silent.contains(address));
        addresses
    }
}

/// The Admin service over a channel.
pub(super) fn admin(channel: NamedChannel) -> Admin {
    AdminClient::new(channel).max_decoding_message_size(DECODED_BYTES_MAX)
}

impl Endpoints {
    /// All ranges of a keyspace (empty: of all), in as many parts as it takes.
    pub(super) async fn list(&self, keyspace: &str) -> Result<v1::ListRangesResponse> {
        let mut request = v1::ListRangesRequest { keyspace: keyspace.into(), ..Default::default() };
        let mut routes = self.ask_for_ranges(&request, self.addresses_in_turn()).await?;
        while std::mem::take(&mut routes.more) {
            let last = routes.ranges.last().and_then(|route| route.descriptor.as_ref());
            request.after =
                last.map(|range| v1::RangePlace { keyspace_id: range.keyspace_id, start: range.start.clone() });
            let part = self.ask_for_ranges(&request, self.addresses()).await?;
            routes.ranges.extend(part.ranges);
            routes.more = part.more;
        }
        Ok(routes)
    }

    /// One range, if it is known; and nodes.
    pub(super) async fn route_of(&self, range: RangeId) -> Result<v1::ListRangesResponse> {
        let lookup = v1::RangeLookup { range_id: range.0, ..Default::default() };
        self.look_up("", lookup, self.addresses_in_turn()).await
    }

    async fn look_up(
        &self,
        keyspace: &str,
        lookup: v1::RangeLookup,
        addresses: Vec<String>,
    ) -> Result<v1::ListRangesResponse> {
        let request = v1::ListRangesRequest { keyspace: keyspace.into(), after: None, lookup: Some(lookup) };
        self.ask_for_ranges(&request, addresses).await
    }

    async fn ask_for_ranges(
        &self,
        request: &v1::ListRangesRequest,
        addresses: Vec<String>,
    ) -> Result<v1::ListRangesResponse> {
        let ask = |mut admin: Admin| {
            let request = request.clone();
            async move { admin.list_ranges(request).await }
        };
        let accept =
            |address: &str, routes: &v1::ListRangesResponse| self.shared.naming.told(address, routes.cluster_id);
        let routes = self.ask_each(addresses, ask, accept).await?;
        self.learn(&routes.nodes);
        Ok(routes)
    }
}

/// A node that is asked for places in a keyspace that it does not know asks placement before it says that there is none.
impl RouteSource for Endpoints {
    async fn routes_at(&self, keyspace: &str, places: &Places) -> Result<v1::ListRangesResponse> {
        self.look_up(keyspace, places.lookup(), self.addresses_for(places)).await
    }

    async fn routes_with(&self, keyspace: &str) -> Result<v1::ListRangesResponse> {
        self.routes_at(keyspace, &Places::default()).await
    }
}

/// An Admin answer, or the error in its status; one without details of ours came from the way.
pub(super) fn answer<A>(address: &str, result: RpcResult<A>) -> Result<A> {
    result.map(Response::into_inner).map_err(|status| {
        error::from_status(&status)
            .unwrap_or_else(|| Error::Unavailable { reason: format!("{address}: {}", status_text(&status)) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_the_same_again_asks_another_node() {
        let given = vec!["a:1".to_string(), "b:1".to_string(), "c:1".to_string()];
        let endpoints = Endpoints::new(given, Duration::from_secs(1), 0, None).expect("they are addresses");
        let first = |key: &'static str| {
            let places = Places { keys: [key.into()].into(), ..Places::default() };
            endpoints.addresses_for(&places).swap_remove(0)
        };
        endpoints.answered("b:1");
        assert_eq!((first("x"), first("y"), first("z")), ("b:1".into(), "b:1".into(), "b:1".into()));
        let again: BTreeSet<String> = (0..3).map(|_| first("z")).collect();
        assert_eq!(again.len(), 3, "one after the other");
        assert_eq!(first("x"), "b:1");
    }
}
