//! Runs the placement service while this node leads the system range.
//!
//! The records are read by a scan of the system range, and written by ordinary atomic batches to it, on this node's
//! own replica and in its own term: never through another leader. A write whose outcome is not known, or that was
//! refused because another service has written, ends this one; it is loaded anew while the range is still led.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flotilla_node::Node;
use flotilla_placement::{Config, Effects, Outcome, Service, WriteId};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, v1};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Order, Response};

const TICK: Duration = Duration::from_millis(200);
/// How long to wait before records are read again that could not be read, or written: what refused a write (a full
/// disk, say) may go on to do so for long.
const RELOAD_PAUSE: Duration = Duration::from_millis(200);
const TIMEOUT_MS: u64 = 5_000;

type Record = (Bytes, Bytes, u64);

/// See the module.
pub(crate) struct ServiceTask {
    node: Node,
    config: Config,
    orders: mpsc::Receiver<Order>,
    origin: Instant,
    waiting: BTreeMap<u64, oneshot::Sender<flotilla_proto::Result<Response>>>,
    last_token: u64,
}

impl ServiceTask {
    pub fn new(node: Node, config: Config, orders: mpsc::Receiver<Order>) -> Self {
        Self { node, config, orders, origin: Instant::now(), waiting: BTreeMap::new(), last_token: 0 }
    }

    /// Runs until the node stops.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut changes = self.node.route_changes();
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                () = self.reign_or_wait(&mut changes) => {}
            }
        }
    }

    async fn reign_or_wait(&mut self, changes: &mut watch::Receiver<u64>) {
        let Some(reign) = self.node.reign(SYSTEM_RANGE) else {
            tokio::select! {
                // An error means that the node is gone, and with it this task.
                _ = changes.changed() => {}
                order = self.orders.recv() => refuse(order),
            }
            return;
        };
        let loaded = match self.load().await {
            Ok(records) => Service::load(reign, records, self.origin.elapsed(), self.config.clone()),
            Err(error) => Err(error.to_string()),
        };
        match loaded {
            Ok(service) => {
                tracing::info!(reign, "the placement service runs here");
                let stopped = self.serve(service, reign).await;
                tracing::info!(reign, "the placement service has ended here");
                if stopped {
                    tokio::time::sleep(RELOAD_PAUSE).await;
                }
            }
            Err(reason) => {
                tracing::warn!(reign, reason, "the placement service cannot run");
                tokio::time::sleep(RELOAD_PAUSE).await;
            }
        }
    }

    fn header(&self) -> v1::RequestHeader {
        let epoch = self.node.descriptor(SYSTEM_RANGE).and_then(|descriptor| descriptor.epoch);
        v1::RequestHeader { range_id: SYSTEM_RANGE.0, epoch, timeout_ms: TIMEOUT_MS, ..Default::default() }
    }

    /// All records of the system range.
    async fn load(&self) -> Result<Vec<Record>, Error> {
        let (mut records, mut start) = (Vec::new(), Bytes::new());
        loop {
            let scan = v1::ScanRequest { header: Some(self.header()), start, ..Default::default() };
            let request = v1::Request { id: 0, body: Some(v1::request::Body::Scan(scan)) };
            match self.node.execute(request).await.body {
                Some(v1::response::Body::Scan(page)) => {
                    records.extend(page.records.into_iter().map(|record| (record.key, record.value, record.version)));
                    if page.next_token.is_empty() {
                        return Ok(records);
                    }
                    start = page.next_token;
                }
                Some(v1::response::Body::Error(error)) => return Err(error.into()),
                _ => return Err(Error::Unavailable { reason: "a scan was answered with something else".into() }),
            }
        }
    }

    /// Serves while this node leads in this term, and the service is the newest; true: it is to be loaded anew.
    async fn serve(&mut self, mut service: Service, reign: u64) -> bool {
        service.tell_time(self.origin.elapsed(), unix_ms());
        let (written, mut outcomes) = mpsc::unbounded_channel();
        let mut changes = self.node.route_changes();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let effects = service.take_effects();
            self.carry_out(effects, &written);
            if let Some(reason) = service.stopped() {
                tracing::warn!(reign, reason, "the placement service stops");
                return true;
            }
            if self.node.reign(SYSTEM_RANGE) != Some(reign) {
                self.carry_out(service.close(), &written);
                return false;
            }
            tokio::select! {
                _ = ticks.tick() => {
                    service.tell_time(self.origin.elapsed(), unix_ms());
                    service.tick(self.origin.elapsed());
                }
                _ = changes.changed() => {}
                Some((id, outcome)) = outcomes.recv() => service.written(self.origin.elapsed(), id, outcome),
                Some((request, reply)) = self.orders.recv() => {
                    self.last_token += 1;
                    self.waiting.insert(self.last_token, reply);
                    service.request(self.origin.elapsed(), self.last_token, request);
                }
            }
        }
    }

    fn carry_out(&mut self, effects: Effects, written: &mpsc::UnboundedSender<(WriteId, Outcome)>) {
        for note in effects.notes {
            tracing::info!("placement: {note}");
        }
        for answer in effects.answers {
            if let Some(reply) = self.waiting.remove(&answer.token) {
                // An asker that is gone wants no answer.
                drop(reply.send(answer.result));
            }
        }
        for write in effects.writes {
            let batch =
                v1::BatchRequest { header: Some(self.header()), ops: write.request.ops, atomic: write.request.atomic };
            let request = v1::Request { id: 0, body: Some(v1::request::Body::Write(batch)) };
            let (node, written) = (self.node.clone(), written.clone());
            tokio::spawn(async move {
                let outcome = outcome(node.execute(request).await);
                // A service that has ended wants to know no more.
                written.send((write.id, outcome)).ok();
            });
        }
    }
}

/// The time for people, which may be set back and forth: for the history alone.
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

fn refuse(order: Option<Order>) {
    if let Some((_, reply)) = order {
        let reason = "this node does not lead the system range any more".into();
        drop(reply.send(Err(Error::Unavailable { reason })));
    }
}

fn outcome(response: v1::Response) -> Outcome {
    match response.body {
        Some(v1::response::Body::Write(answer)) => Outcome::of(Some(&answer.results)),
        _ => Outcome::of(None),
    }
}
