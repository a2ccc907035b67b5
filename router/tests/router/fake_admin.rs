//! The Admin and Placement services of a test's node: orders are written down, and only the leader of
//! the range that they belong to takes them.

use flotilla_proto::{Error, NodeId, cluster, v1};
use tonic::{Request, Response};
use v1::admin_server::Admin;
use v1::placement_server::Placement;

use super::fake_node::{Rpc, Service};

impl Service {
    /// Refuses what names another cluster, as a node's doors do.
    fn is_meant<T>(&self, request: &Request<T>) -> Result<(), tonic::Status> {
        let named = request.metadata().get(cluster::METADATA);
        let named = named.map_or(0, |value| value.to_str().expect("digits").parse().expect("a number"));
        Ok(cluster::check(self.world.truth().cluster, named)?)
    }

    /// Notes an order, if this node leads the range.
    fn take(&self, range: u64, order: String) -> Result<(), tonic::Status> {
        self.lead(range)?;
        self.world.truth().orders.push(format!("n{} {order}", self.node.0));
        Ok(())
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn list_ranges(&self, request: Request<v1::ListRangesRequest>) -> Rpc<v1::ListRangesResponse> {
        if self.world.truth().blank.contains(&self.node.0) {
            return Ok(Response::new(v1::ListRangesResponse { nodes: self.nodes(), ..Default::default() }));
        }
        let ids: Vec<u64> = self.world.truth().ranges.keys().copied().collect();
        let ranges = ids.into_iter().map(|range| self.status(range)).collect();
        let mut keyspaces: Vec<v1::Keyspace> = self.world.truth().keyspaces.values().cloned().collect();
        keyspaces.push(v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() });
        let v1::ListRangesRequest { keyspace, lookup, .. } = request.into_inner();
        if let Some(lookup) = lookup {
            // More ranges than were looked for do no harm; a keyspace that there is not must be told.
            let name = if keyspace.is_empty() { "default" } else { &keyspace };
            keyspaces.retain(|of| of.name == name);
            if keyspaces.is_empty() && lookup.range_id == 0 {
                return Err(Error::KeyspaceNotFound { name: name.into() }.into());
            }
        }
        let cluster_id = self.world.truth().cluster;
        Ok(Response::new(v1::ListRangesResponse { ranges, nodes: self.nodes(), keyspaces, cluster_id, more: false }))
    }

    async fn get_range(&self, request: Request<v1::GetRangeRequest>) -> Rpc<v1::GetRangeResponse> {
        let request = request.into_inner();
        if !request.local {
            self.lead(request.range_id)?;
        }
        let replica = Some(v1::ReplicaStatus { node_id: self.node.0, ..Default::default() });
        Ok(Response::new(v1::GetRangeResponse { status: Some(self.status(request.range_id)), replica }))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Rpc<v1::ListNodesResponse> {
        Ok(Response::new(v1::ListNodesResponse { nodes: self.nodes() }))
    }

    async fn transfer_leader(&self, request: Request<v1::TransferLeaderRequest>) -> Rpc<v1::TransferLeaderResponse> {
        let request = request.into_inner();
        self.lead(request.range_id)?;
        self.world.truth().leaders.insert(request.range_id, NodeId(request.to_node_id));
        Ok(Response::new(v1::TransferLeaderResponse { leader_node_id: request.to_node_id, term: 2 }))
    }

    async fn node_status(&self, _: Request<v1::NodeStatusRequest>) -> Rpc<v1::NodeStatusResponse> {
        let node = Some(v1::NodeInfo { node_id: self.node.0, ..Default::default() });
        Ok(Response::new(v1::NodeStatusResponse { node, ..Default::default() }))
    }

    async fn split_range(&self, request: Request<v1::SplitRangeRequest>) -> Rpc<v1::SplitRangeResponse> {
        let request = request.into_inner();
        self.take(request.range_id, format!("split {:?} {}", request.keys, request.parts))?;
        let ranges = request.keys.first().map(|at| self.world.truth().split(request.range_id, at, self.node));
        Ok(Response::new(v1::SplitRangeResponse { ranges: ranges.unwrap_or_default() }))
    }

    async fn check_range(&self, request: Request<v1::CheckRangeRequest>) -> Rpc<v1::CheckRangeResponse> {
        self.take(request.into_inner().range_id, "check".into())?;
        Ok(Response::new(v1::CheckRangeResponse { index: 7, ..Default::default() }))
    }

    async fn range_checksum(&self, request: Request<v1::RangeChecksumRequest>) -> Rpc<v1::RangeChecksumResponse> {
        let index = request.into_inner().index;
        Ok(Response::new(v1::RangeChecksumResponse { index, ..Default::default() }))
    }

    async fn range_events(&self, _: Request<v1::RangeEventsRequest>) -> Rpc<v1::RangeEventsResponse> {
        let event = v1::RangeEvent { node_id: self.node.0, ..Default::default() };
        Ok(Response::new(v1::RangeEventsResponse { events: vec![event] }))
    }

    async fn move_replica(&self, request: Request<v1::MoveReplicaRequest>) -> Rpc<v1::MoveReplicaResponse> {
        let v1::MoveReplicaRequest { range_id, from_node_id, to_node_id, timeout_ms } = request.into_inner();
        self.take(1, format!("move r{range_id} n{from_node_id} n{to_node_id}"))?;
        Ok(Response::new(v1::MoveReplicaResponse { done: timeout_ms > 0 }))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Rpc<v1::DrainNodeResponse> {
        self.is_meant(&request)?;
        let request = request.into_inner();
        self.take(1, format!("drain n{} {}", request.node_id, request.undo))?;
        Ok(Response::new(v1::DrainNodeResponse {}))
    }

    async fn create_keyspace(&self, request: Request<v1::CreateKeyspaceRequest>) -> Rpc<v1::CreateKeyspaceResponse> {
        let request = request.into_inner();
        self.take(1, format!("create {}", request.name))?;
        let held = self.world.truth().hold_orders;
        if held {
            std::future::pending::<()>().await;
        }
        let mut truth = self.world.truth();
        if truth.keyspaces.contains_key(&request.name) {
            return Err(Error::KeyspaceExists { name: request.name }.into());
        }
        let keyspace = truth.add_keyspace(&request.name);
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace: Some(keyspace) }))
    }

    async fn list_keyspaces(&self, _: Request<v1::ListKeyspacesRequest>) -> Rpc<v1::ListKeyspacesResponse> {
        self.lead(1)?;
        let keyspaces = self.world.truth().keyspaces.values().cloned().collect();
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces }))
    }

    async fn set_keyspace(&self, request: Request<v1::SetKeyspaceRequest>) -> Rpc<v1::SetKeyspaceResponse> {
        self.lead(1)?;
        let request = request.into_inner();
        let mut truth = self.world.truth();
        let Some(keyspace) = truth.keyspaces.get_mut(&request.name) else {
            return Err(Error::KeyspaceNotFound { name: request.name }.into());
        };
        keyspace.replicas = request.replicas.unwrap_or(keyspace.replicas);
        Ok(Response::new(v1::SetKeyspaceResponse { keyspace: Some(keyspace.clone()) }))
    }

    async fn drop_keyspace(&self, request: Request<v1::DropKeyspaceRequest>) -> Rpc<v1::DropKeyspaceResponse> {
        let name = request.into_inner().name;
        self.take(1, format!("drop {name}"))?;
        match self.world.truth().drop_keyspace(&name) {
            true => Ok(Response::new(v1::DropKeyspaceResponse {})),
            false => Err(Error::KeyspaceNotFound { name }.into()),
        }
    }

    async fn placement_history(
        &self,
        request: Request<v1::PlacementHistoryRequest>,
    ) -> Rpc<v1::PlacementHistoryResponse> {
        self.take(1, format!("history r{}", request.into_inner().range_id))?;
        Ok(Response::new(v1::PlacementHistoryResponse { kept: 7, ..Default::default() }))
    }

    async fn range_explain(&self, request: Request<v1::RangeExplainRequest>) -> Rpc<v1::RangeExplainResponse> {
        self.take(1, format!("explain r{}", request.into_inner().range_id))?;
        Ok(Response::new(v1::RangeExplainResponse { next: "nothing".into(), ..Default::default() }))
    }

    async fn placement_plan(&self, _: Request<v1::PlacementPlanRequest>) -> Rpc<v1::PlacementPlanResponse> {
        self.take(1, "plan".into())?;
        Ok(Response::new(v1::PlacementPlanResponse::default()))
    }

    async fn placement_status(&self, _: Request<v1::PlacementStatusRequest>) -> Rpc<v1::PlacementStatusResponse> {
        self.take(1, "status".into())?;
        Ok(Response::new(v1::PlacementStatusResponse { node_id: self.node.0, ..Default::default() }))
    }

    async fn merge_ranges(&self, request: Request<v1::MergeRangesRequest>) -> Rpc<v1::MergeRangesResponse> {
        let request = request.into_inner();
        self.take(1, format!("merge r{} r{}", request.left_range_id, request.right_range_id))?;
        Ok(Response::new(v1::MergeRangesResponse { done: true, range: None }))
    }

    async fn decommission_node(
        &self,
        request: Request<v1::DecommissionNodeRequest>,
    ) -> Rpc<v1::DecommissionNodeResponse> {
        let request = request.into_inner();
        self.take(1, format!("decommission n{} {}", request.node_id, request.undo))?;
        Ok(Response::new(v1::DecommissionNodeResponse { replicas: 4, ..Default::default() }))
    }

    async fn maintain_node(&self, request: Request<v1::MaintainNodeRequest>) -> Rpc<v1::MaintainNodeResponse> {
        let request = request.into_inner();
        self.take(1, format!("maintain n{} {}", request.node_id, request.duration_ms))?;
        Ok(Response::new(v1::MaintainNodeResponse { leaders: 3, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl Placement for Service {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Rpc<v1::JoinResponse> {
        self.take(1, format!("join s{}", request.into_inner().store_id))?;
        Ok(Response::new(v1::JoinResponse { node_id: 9, ..Default::default() }))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Rpc<v1::ReportResponse> {
        self.take(1, format!("report {}", request.into_inner().sequence))?;
        Ok(Response::new(v1::ReportResponse { reign: 4, ..Default::default() }))
    }
}
