//! Placement in a node: the service, which runs where the system range is led, and the agent, by which every node
//! reports to it and does what it says.
//!
//! ```text
//! every node:  agent ──report──▶ leader of the system range: service ──▶ records in the system range
//!              agent ◀─orders, routes, ids, nodes, keyspaces──┘
//! ```

mod agent;
mod asked;
mod rpc;
mod service;

use flotilla_node::Node;
use flotilla_placement::{Request, Response};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use super::table::RouteTable;
use asked::Asked;

pub(super) use agent::{Agent, Askers, News};
pub(super) use rpc::PlacementRpc;
pub(super) use service::ServiceTask;

/// Requests that may wait for the service.
const QUEUE_MAX: usize = 1_024;

/// A request for the service, and where its answer goes.
type Order = (Request, oneshot::Sender<Result<Response>>);

/// The way to the service of this node, if it is the one that runs. Clones are handles on the same one.
#[derive(Clone)]
pub(super) struct Handle {
    node: Node,
    table: RouteTable,
    orders: mpsc::Sender<Order>,
}

impl Handle {
    /// A way, and its other end.
    pub fn new(node: Node, table: RouteTable) -> (Self, mpsc::Receiver<Order>) {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        (Self { node, table, orders }, queue)
    }

    /// Asks the service; refused with a hint where another node runs it.
    pub async fn ask(&self, request: Request) -> Result<Response> {
        if self.node.reign(SYSTEM_RANGE).is_none() {
            return Err(self.elsewhere());
        }
        let gone = || Error::Unavailable { reason: "the placement service is starting or stopping here".into() };
        let (reply, answer) = oneshot::channel();
        self.orders.send((request, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Asks the service what came over the network.
    pub async fn call<R: Asked>(&self, request: tonic::Request<R>) -> Result<R::Answer> {
        let answer = self.ask(request.into_inner().request()).await?;
        let other = || Error::Unavailable { reason: "the placement service answered something else".into() };
        R::answer(answer).ok_or_else(other)
    }

    /// The refusal of a node that does not lead the system range.
    fn elsewhere(&self) -> Error {
        let known = self.table.range(SYSTEM_RANGE.0);
        let leader = self.node.leader(SYSTEM_RANGE).or_else(|| {
            let leader = known.as_ref().map_or(0, |route| route.leader_node_id);
            (leader != 0).then_some(leader.into())
        });
        let descriptors = known.iter().map(|route| (*route.descriptor).clone()).collect();
        Error::NotLeader {
            range: SYSTEM_RANGE,
            leader: leader.filter(|node| *node != self.node.node_id()),
            descriptors,
        }
    }
}
