//! Nodes that are gone for good, as a person says who has recovered ranges without them (`recovery.rs`): they are
//! removed at once, whatever they hold, and never come back.

use flotilla_proto::{Error, Result, v1};

use crate::history;
use crate::records::{Change, Counter};
use crate::recovery::LEAP;
use crate::service::{Response, Service, Token};
use crate::waiters::Wants;

impl Service {
    /// Marks nodes as removed. May be repeated: those that are removed already stay so.
    pub(crate) fn on_record_recovery(&mut self, token: Token, request: &v1::RecordRecoveryRequest) -> Result<()> {
        let known = |node: &u64| self.state.ahead.nodes.get(node);
        // What was lost with the system range's majority may have been a node's joining.
        let forgotten = |node: &u64| known(node).is_none() && self.reign() >= LEAP;
        if let Some(node) = request.dead_nodes.iter().find(|node| known(node).is_none() && !forgotten(node)) {
            return Err(Error::invalid(format!("there is no node {node}"), "see the nodes by `flotilla node list`"));
        }
        if let Some(node) = request.dead_nodes.iter().find(|node| self.state.is_live(**node)) {
            let hint = "a node that lives is not gone for good: stop it, or drain it";
            return Err(Error::invalid(format!("node {node} reports, and lives"), hint));
        }
        let records = request.dead_nodes.iter().filter_map(known).filter(|record| !record.removed);
        let forgotten = request.dead_nodes.iter().filter(|node| forgotten(node));
        let forgotten = forgotten.map(|node_id| v1::NodeRecord { node_id: *node_id, ..Default::default() });
        let records = records.cloned().chain(forgotten);
        let mut changes: Vec<Change> =
            records.map(|record| Change::Node(v1::NodeRecord { removed: true, ..record })).collect();
        let beyond = request.dead_nodes.iter().max().map_or(0, |node| node.saturating_add(1));
        if beyond > self.next_id(Counter::Node) {
            changes.push(Change::Next(Counter::Node, beyond));
        }
        let words =
            format!("recovery {}: nodes {:?} are gone for good; {}", request.plan_id, request.dead_nodes, request.what);
        self.effects.notes.push(words.clone());
        let unit = self.stage_told(changes, vec![history::of_nodes("recovered", &request.dead_nodes, words)]);
        // Whoever is removed does not die any more: what such a node held is looked at now, or by nobody.
        for node in &request.dead_nodes {
            let held = self.state.table.holding(*node).map(|holding| holding.held.clone()).unwrap_or_default();
            self.work.look_at(&self.state, held);
        }
        self.work.unpark();
        // Ranges may have begun again on nodes that had told everything.
        self.state.reports.doubt();
        self.round();
        self.wait(token, unit, Wants::Written(Response::RecordRecovery(v1::RecordRecoveryResponse {})));
        Ok(())
    }
}
