//! The network between nodes: each ordered pair of nodes is a link that delays, loses, doubles,
//! reorders, or is cut.
//!
//! A cut is counted: a link is open again once every partition that cut it has healed. What is on its
//! way when a link is cut still arrives: old messages after a partition are part of the game.

use crate::clock::{Nanos, ms};
use crate::knobs::NetworkKnobs;
use crate::rng::Rng;

#[derive(Clone, Debug, Default)]
struct Link {
    cuts: u32,
    /// Extra delay while the link is slow.
    slow: Nanos,
    /// Loss on top of what all links have.
    loss_per_mille: u64,
    /// When what was sent last arrives.
    last_arrival: Nanos,
}

/// What became of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives then, and perhaps a second time.
    Arrives(Nanos, Option<Nanos>),
    /// It is lost.
    Lost,
    /// There is no way; the sender may notice.
    Cut,
}

#[derive(Clone, Debug)]
pub(crate) struct Network {
    nodes: usize,
    links: Vec<Link>,
    knobs: NetworkKnobs,
    /// Loss on top of the knobs', while a storm is on.
    pub storm_loss_per_mille: u64,
    rng: Rng,
}

impl Network {
    pub(crate) fn new(nodes: usize, knobs: NetworkKnobs, rng: Rng) -> Self {
        Self { nodes, links: vec![Link::default(); nodes * nodes], knobs, storm_loss_per_mille: 0, rng }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.nodes + to]
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links[from * self.nodes + to].cuts > 0
    }

    pub(crate) fn cut(&mut self, links: &[(usize, usize)]) {
        for (from, to) in links {
            self.link(*from, *to).cuts += 1;
        }
    }

    pub(crate) fn heal(&mut self, links: &[(usize, usize)]) {
        for (from, to) in links {
            let link = self.link(*from, *to);
            link.cuts = link.cuts.saturating_sub(1);
        }
    }

    pub(crate) fn slow_down(&mut self, from: usize, to: usize, by: Nanos) {
        self.link(from, to).slow = by;
    }

    pub(crate) fn lose_of(&mut self, from: usize, to: usize, per_mille: u64) {
        self.link(from, to).loss_per_mille = per_mille;
    }

    /// Ends all that goes wrong, for good.
    pub(crate) fn become_calm(&mut self) {
        self.knobs = NetworkKnobs { delay: self.knobs.delay.min(ms(2)), ..NetworkKnobs::calm() };
        self.storm_loss_per_mille = 0;
        for link in &mut self.links {
            link.cuts = 0;
            link.slow = 0;
            link.loss_per_mille = 0;
        }
    }

    /// The way of one message from node to node; `extra` is the time its bytes take.
    pub(crate) fn send(&mut self, now: Nanos, from: usize, to: usize, extra: Nanos) -> Fate {
        if self.is_cut(from, to) {
            return Fate::Cut;
        }
        let of_link = self.link(from, to).loss_per_mille;
        if self.rng.chance(self.knobs.loss_per_mille + self.storm_loss_per_mille + of_link) {
            return Fate::Lost;
        }
        let arrival = self.arrival(now, from, to, extra);
        let mut again = self.rng.chance(self.knobs.duplicate_per_mille).then(|| self.arrival(now, from, to, extra));
        // Some come back when everything about them is long over, whatever order the link keeps.
        if self.knobs.ancient_per_mille > 0 && self.rng.chance(self.knobs.ancient_per_mille) {
            again = Some(now + self.rng.between(ms(1_000), ms(15_000)));
        }
        Fate::Arrives(arrival, again)
    }

    /// When something that a client and a node say to each other arrives.
    pub(crate) fn client_delay(&mut self) -> Nanos {
        self.rng.delay(self.knobs.delay.min(ms(2)))
    }

    pub(crate) fn loses_answer(&mut self) -> bool {
        self.rng.chance(self.knobs.answer_loss_per_mille)
    }

    fn arrival(&mut self, now: Nanos, from: usize, to: usize, extra: Nanos) -> Nanos {
        let mut arrival = now + self.rng.delay(self.knobs.delay) + extra + self.link(from, to).slow;
        if self.rng.chance(self.knobs.straggler_per_mille) {
            arrival += self.rng.below(self.knobs.straggler_delay);
        }
        let ordered = self.knobs.ordered;
        let link = self.link(from, to);
        if ordered {
            arrival = arrival.max(link.last_arrival + 1);
        }
        link.last_arrival = link.last_arrival.max(arrival);
        arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_when_all_its_cuts_have_healed() {
        let mut network = Network::new(3, NetworkKnobs::calm(), Rng::new(1, 1));
        network.cut(&[(0, 1), (1, 0)]);
        network.cut(&[(0, 1)]);
        network.heal(&[(0, 1), (1, 0)]);
        assert_eq!(network.send(0, 0, 1, 0), Fate::Cut);
        assert!(matches!(network.send(0, 1, 0, 0), Fate::Arrives(_, None)));
        network.heal(&[(0, 1)]);
        assert!(matches!(network.send(0, 0, 1, 0), Fate::Arrives(_, None)));
    }

    #[test]
    fn an_ordered_link_keeps_its_order() {
        let knobs = NetworkKnobs { straggler_per_mille: 300, straggler_delay: ms(100), ..NetworkKnobs::calm() };
        let mut network = Network::new(2, knobs, Rng::new(1, 1));
        let mut last = 0;
        for now in 0..200 {
            let Fate::Arrives(at, None) = network.send(now * 1_000, 0, 1, 0) else { panic!("nothing is lost here") };
            assert!(at > last);
            last = at;
        }
    }
}
