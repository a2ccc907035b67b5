//! Which other nodes are alive: told by what comes from them, for all ranges at once.
//!
//! Ranges that are awake hear of one another by themselves. Sleeping ones say nothing; for them two nodes that share
//! ranges send each other a *beat* with every tick, however many there are, and whether or not any of them sleeps yet: the
//! other one may still hold this node for the process that stopped here. It carries a number that the sender
//! drew when its process started (its boot id).
//!
//! ```text
//! silent for an election time-out ─▶ dead ─▶ the sleeping ranges it led wake here, spread over time (sleepers.rs)
//! another boot id ────────────────▶ the same at once: that process leads nothing any more
//! it says that it stops ──────────▶ the same at once
//! it hears nothing of this node ──▶ the same after an election time-out: it could not lead; and it gets a beat
//! heard of again ─────────────────▶ ranges that are led here, and fell asleep without it, wake
//! ```
//! **What hangs on it.** Only when ranges wake; never whether a lease holds or a vote may be given. A beat promises nothing to
//! any leader: a follower's promise runs from when it last heard its leader in the range itself (`range/sleep.rs`).
//! So a late beat, one of a former process, or one that is lost costs waking up, and nothing else.
//!
//! Silence is counted in ticks that this store has made, not by the clock: who was stopped for a while finds all others
//! silent for long, and would take all of them for dead (tikv#17101). A tick that comes late counts once.

use std::collections::BTreeMap;

use flotilla_proto::NodeId;

/// What a sign of life has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// It was dead, or is heard of for the first time.
    pub came_back: bool,
    /// What it led before it leads no more: its process is another one, or stops.
    pub lost_its_ranges: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    nodes: BTreeMap<NodeId, Sign>,
}

#[derive(Debug)]
struct Sign {
    /// 0: not known yet.
    boot_id: u64,
    silent_ticks: usize,
    dead: bool,
    /// For so many ticks it has said that it hears nothing of this node.
    deaf_ticks: Option<usize>,
    deaf: bool,
    /// The process with this boot id has said that it stops.
    leaving: bool,
}

impl Liveness {
    /// Something came from a node; with its boot id, if that was said.
    pub(crate) fn heard(&mut self, node: NodeId, boot_id: Option<u64>) -> Heard {
        let new = Sign {
            boot_id: boot_id.unwrap_or(0),
            silent_ticks: 0,
            dead: true,
            deaf_ticks: None,
            deaf: false,
            leaving: false,
        };
        let sign = self.nodes.entry(node).or_insert(new);
        let mut heard = Heard::default();
        if let Some(boot_id) = boot_id.filter(|id| *id != sign.boot_id) {
            heard.lost_its_ranges = sign.boot_id != 0;
            (sign.boot_id, sign.leaving) = (boot_id, false);
        }
        if !sign.leaving {
            heard.came_back = !sign.deaf && std::mem::take(&mut sign.dead);
            sign.silent_ticks = 0;
        }
        heard
    }

    /// The node says whether it hears this one. True: it does again, and lives.
    pub(crate) fn hears_this_node(&mut self, node: NodeId, hears: bool) -> bool {
        let Some(sign) = self.nodes.get_mut(&node) else { return false };
        if !hears {
            sign.deaf_ticks.get_or_insert(0);
            return false;
        }
        sign.deaf_ticks = None;
        std::mem::take(&mut sign.deaf) && !sign.leaving && std::mem::take(&mut sign.dead)
    }

    /// Whether anything came from a node within an election time-out.
    pub(crate) fn is_heard(&self, node: NodeId, election_ticks: usize) -> bool {
        self.nodes.get(&node).is_some_and(|sign| sign.silent_ticks <= election_ticks)
    }

    /// Who lives, and says that it hears nothing of this node.
    pub(crate) fn strangers(&self, election_ticks: usize) -> impl Iterator<Item = NodeId> {
        let asks = move |sign: &Sign| sign.deaf_ticks.is_some() && sign.silent_ticks <= election_ticks;
        self.nodes.iter().filter(move |(_, sign)| asks(sign)).map(|(node, _)| *node)
    }

    /// The node says that its process stops.
    pub(crate) fn leaves(&mut self, node: NodeId, boot_id: u64) -> Heard {
        let before = self.heard(node, Some(boot_id));
        let Some(sign) = self.nodes.get_mut(&node) else { return before };
        let news = !std::mem::replace(&mut sign.leaving, true);
        sign.dead = true;
        Heard { came_back: false, lost_its_ranges: before.lost_its_ranges || news }
    }

    /// Time has passed by one tick; returns who is dead by now and was not before.
    pub(crate) fn tick(&mut self, election_ticks: usize) -> Vec<NodeId> {
        let mut died = Vec::new();
        for (node, sign) in &mut self.nodes {
            sign.silent_ticks = sign.silent_ticks.saturating_add(1);
            sign.deaf_ticks = sign.deaf_ticks.map(|ticks| ticks.saturating_add(1));
            sign.deaf = sign.deaf_ticks.is_some_and(|ticks| ticks > election_ticks);
            if !sign.dead && (sign.deaf || sign.silent_ticks > election_ticks) {
                sign.dead = true;
                died.push(*node);
            }
        }
        died
    }

    /// Whether a node was heard of within an election time-out.
    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|sign| !sign.dead)
    }

    /// The process of a node that is alive, if that is known.
    pub(crate) fn boot_id(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node).filter(|sign| !sign.dead && sign.boot_id != 0).map(|sign| sign.boot_id)
    }

    /// Whether a node is alive, and its process the one with this boot id.
    pub(crate) fn is_same(&self, node: NodeId, boot_id: u64) -> bool {
        self.nodes.get(&node).is_some_and(|sign| !sign.dead && sign.boot_id == boot_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: NodeId = NodeId(2);

    #[test]
    fn a_node_is_dead_after_an_election_timeout_without_a_word() {
        let mut liveness = Liveness::default();
        assert!(!liveness.is_live(OTHER), "nothing is known of it");
        assert_eq!(liveness.heard(OTHER, Some(7)), Heard { came_back: true, lost_its_ranges: false });
        assert!((0..10).all(|_| liveness.tick(10).is_empty()) && liveness.is_live(OTHER));
        assert_eq!(liveness.tick(10), [OTHER]);
        assert!(liveness.tick(10).is_empty(), "told once");
        assert!(!liveness.is_live(OTHER));
        assert_eq!(liveness.heard(OTHER, None), Heard { came_back: true, lost_its_ranges: false });
        assert!(liveness.is_same(OTHER, 7));
    }

    #[test]
    fn a_node_that_is_heard_and_hears_nothing_is_dead_after_as_long() {
        let mut liveness = Liveness::default();
        liveness.heard(OTHER, Some(7));
        let mut says = |hears| {
            liveness.heard(OTHER, Some(7));
            let came_back = liveness.hears_this_node(OTHER, hears);
            (liveness.tick(10), came_back)
        };
        assert!((0..10).all(|_| says(false).0.is_empty()));
        assert_eq!(says(false).0, [OTHER]);
        assert_eq!(says(false), (vec![], false), "told once");
        assert_eq!(says(true), (vec![], true));
        assert!((0..10).all(|_| says(false).0.is_empty()), "it is counted anew");
        assert!(liveness.is_live(OTHER));
    }

    #[test]
    fn another_boot_id_means_that_it_leads_nothing_any_more() {
        let mut liveness = Liveness::default();
        liveness.heard(OTHER, None);
        assert_eq!(liveness.heard(OTHER, Some(7)), Heard::default(), "the first one is no news");
        assert_eq!(liveness.heard(OTHER, Some(8)), Heard { came_back: false, lost_its_ranges: true });
        assert!(!liveness.is_same(OTHER, 7) && liveness.is_same(OTHER, 8));
    }

    #[test]
    fn one_that_stops_is_dead_until_it_comes_back_as_another() {
        let mut liveness = Liveness::default();
        liveness.heard(OTHER, Some(7));
        assert!(liveness.leaves(OTHER, 7).lost_its_ranges);
        assert!(!liveness.leaves(OTHER, 7).lost_its_ranges, "told once");
        liveness.heard(OTHER, Some(7));
        assert!(!liveness.is_live(OTHER), "what it still says is no sign of life");
        assert!(liveness.heard(OTHER, Some(8)).came_back);
        assert!(liveness.is_live(OTHER));
    }
}
