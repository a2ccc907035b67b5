//! While the cluster runs: tells who dies, how long ranges were without a leader, and who comes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Signals;
use super::change;
use super::child::ending;
use super::cluster::Cluster;
use super::level::Levelling;
use super::nodes::Views;
use super::orders::{Control, Order};
use super::outage::Outage;
use super::show::say;
use crate::cli::failure::{Failure, Result};
use crate::cli::output::{duration, plural};
use crate::cli::run::RunCommand;

/// Between two looks while all is well, while a node is away, and while ranges have no leader (which
/// is how exactly their time without one is known).
const CALM: Duration = Duration::from_millis(250);
const AWAY: Duration = Duration::from_millis(100);
const OUTAGE: Duration = Duration::from_millis(20);
/// A node started by hand that has not answered for so long is gone again: its process is not ours
/// to wait for.
const GONE_AFTER: Duration = Duration::from_secs(2);

/// A node whose process, as we started it, has ended.
#[derive(Debug)]
enum Away {
    Down,
    /// Started by hand.
    Back {
        levelling: Option<Levelling>,
        answered: Instant,
    },
}

/// Watches, and carries orders out, until a signal.
pub async fn watch(cluster: &mut Cluster, control: &Control, signals: &mut Signals) -> Result {
    let mut watch = Watch { cluster, away: BTreeMap::new(), outages: Vec::new() };
    loop {
        let pause = match () {
            () if !watch.outages.is_empty() => OUTAGE,
            () if watch.away.is_empty() => CALM,
            () => AWAY,
        };
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.child.recv() => {}
            order = control.next() => tokio::select! {
                () = watch.carry_out(order) => {}
                () = signals.stop() => return Ok(()),
            },
            () = tokio::time::sleep(pause) => {}
        }
        watch.look().await;
    }
}

struct Watch<'a> {
    cluster: &'a mut Cluster,
    away: BTreeMap<u64, Away>,
    outages: Vec<Outage>,
}

impl Watch<'_> {
    async fn carry_out(&mut self, mut order: Order) {
        let result = match order.command {
            Some(RunCommand::AddNode) => change::add_node(self.cluster, &mut order).await,
            Some(RunCommand::Restart { node }) => self.restart(node, &mut order).await,
            None => Ok(()),
        };
        if let Err(failure) = &result {
            say(format_args!("the order was not carried out: {failure}"));
        }
        order.end(&result).await;
    }

    async fn restart(&mut self, node: u64, order: &mut Order) -> Result {
        if matches!(self.away.get(&node), Some(Away::Back { .. })) {
            return Err(Failure::failed(format!("node {node} was started by hand: end it first")));
        }
        change::restart(self.cluster, node, order).await?;
        self.away.remove(&node);
        Ok(())
    }

    async fn look(&mut self) {
        self.note_deaths();
        let up: Vec<u64> = self.up().collect();
        let views = self.cluster.nodes.views(up.iter().copied()).await;
        self.note_leaders(&views, &up);
        self.note_returns(&views).await;
    }

    /// Nodes that are not known to be down.
    fn up(&self) -> impl Iterator<Item = u64> {
        let ids = self.cluster.plan.nodes.iter().map(|node| node.id);
        ids.filter(|node| !matches!(self.away.get(node), Some(Away::Down)))
    }

    fn note_deaths(&mut self) {
        let now = Instant::now();
        for process in &mut self.cluster.processes {
            let node = process.node;
            let Some(status) = process.ended().filter(|_| !self.away.contains_key(&node)) else { continue };
            say(format_args!("\nnode {node} (pid {}) {}", process.pid(), ending(status)));
            self.away.insert(node, Away::Down);
            self.outages.push(Outage::new(node, now, &self.cluster.leaders));
            say_start_line(
                self.cluster.plan.nodes.iter().find(|plan| plan.id == node),
                self.outages.last(),
                &self.cluster.plan,
            );
        }
        self.outages.retain(|outage| !outage.over());
    }

    fn note_leaders(&mut self, views: &Views, asked: &[u64]) {
        let leaders = views.leaders();
        let (up, nodes) = (self.up().count(), self.cluster.plan.nodes.len());
        for outage in &mut self.outages {
            if let Some(line) = outage.look(Instant::now(), &leaders, up, nodes) {
                say(line);
            }
        }
        for (range, leader) in leaders {
            let known = self.cluster.leaders.entry(range).or_default();
            // A leader that did not answer may have died this moment: its death, noted in the next
            // turn, must find what it led.
            let silent = known.is_some_and(|known| asked.contains(&known) && !views.nodes.contains_key(&known));
            if leader.is_some() || !silent {
                *known = leader;
            }
        }
    }

    async fn note_returns(&mut self, views: &Views) {
        let now = Instant::now();
        for (node, away) in &mut self.away {
            match away {
                Away::Down => {
                    if self.cluster.nodes.status(*node).await.is_some() {
                        say(format_args!("node {node} is up again, started by hand"));
                        *away = Away::Back { levelling: Some(Levelling::new(*node)), answered: now };
                    }
                }
                Away::Back { answered, .. } if now.saturating_duration_since(*answered) > GONE_AFTER => {
                    say(format_args!("\nnode {node}, started by hand, is gone again"));
                    self.outages.push(Outage::new(*node, *answered, &self.cluster.leaders));
                    say_start_line(
                        self.cluster.plan.nodes.iter().find(|plan| plan.id == *node),
                        self.outages.last(),
                        &self.cluster.plan,
                    );
                    *away = Away::Down;
                }
                Away::Back { levelling, answered } => {
                    if views.nodes.contains_key(node) {
                        *answered = now;
                    }
                    let Some(levels) = levelling else { continue };
                    if levels.look(&self.cluster.nodes, &self.cluster.leaders).await {
                        say(format_args!(
                            "node {node} is level with the others, {} after it answered",
                            duration(levels.began.elapsed())
                        ));
                        *levelling = None;
                    }
                }
            }
        }
    }
}

/// What a death means, and the line that undoes it.
fn say_start_line(node: Option<&super::plan::NodePlan>, outage: Option<&Outage>, plan: &super::plan::Plan) {
    let (Some(node), Some(outage)) = (node, outage) else { return };
    say(format_args!("it led {}. To start it again, in another terminal:", plural(outage.ranges() as u64, "range")));
    say(plan.start_line(node));
}
