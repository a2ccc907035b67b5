//! What its leader last said of a range. Nearly always that is which of its replicas are level with it, and nothing else:
//! a bit for each.

use flotilla_proto::v1;

use super::compact::{Descriptor, Members};

/// See the file's head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Led {
    /// By the place of the replica in the descriptor that the table has.
    Bits { level: u16, silent: u16 },
    /// All that has no place there.
    Words(Box<Words>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Words {
    level_nodes: Vec<u64>,
    silent_nodes: Vec<u64>,
    order_id: u64,
    /// That order is fulfilled: the leader has nothing to do for it any more, and just has not said so yet.
    order_done: bool,
    order_waits: String,
    frozen: Option<Frozen>,
}

/// The range stands still, to be taken in by its left neighbour.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frozen {
    pub target: u64,
    /// Of the freeze in the range's log: with the range it names the merge.
    index: u64,
    /// In seconds.
    pub since_s: u32,
    pub waits: String,
}

impl Frozen {
    /// As a leader says; how long it lasts was told when it was first heard of.
    fn of(told: &v1::FrozenRange, before: Option<&Self>, now_s: u32) -> Self {
        let known = before.filter(|before| before.index == told.freeze_index).map(|before| before.since_s);
        let lasts = u32::try_from(told.frozen_ms / 1_000).unwrap_or(u32::MAX);
        Self {
            target: told.target_range_id,
            index: told.freeze_index,
            since_s: known.unwrap_or(now_s.saturating_sub(lasts)),
            waits: told.waits.clone(),
        }
    }
}

fn bits(descriptor: &Descriptor, nodes: &[u64]) -> Option<u16> {
    let place = |node: &u64| descriptor.members().position(|member| member.node_id == *node).filter(|at| *at < 16);
    nodes.iter().try_fold(0, |bits, node| Some(bits | (1 << place(node)?)))
}

fn nodes(descriptor: &Descriptor, bits: u16) -> impl Iterator<Item = u64> + '_ {
    descriptor.members().take(16).enumerate().filter(move |(at, _)| bits & (1 << at) != 0).map(|(_, of)| of.node_id)
}

impl Led {
    /// What a leader says at this time, in seconds; `before` is what one last said.
    pub fn of(descriptor: &Descriptor, report: &v1::RangeReport, before: Option<&Self>, now_s: u32) -> Self {
        let done = before.map_or(0, Self::done);
        let bits = |nodes| bits(descriptor, nodes);
        if report.order_id == 0
            && report.order_waits.is_empty()
            && report.frozen.is_none()
            && let (Some(level), Some(silent)) = (bits(&report.level_nodes), bits(&report.silent_nodes))
        {
            return Self::Bits { level, silent };
        }
        Self::Words(Box::new(Words {
            level_nodes: report.level_nodes.clone(),
            silent_nodes: report.silent_nodes.clone(),
            order_id: report.order_id,
            order_done: done != 0 && done == report.order_id,
            order_waits: report.order_waits.clone(),
            frozen: report.frozen.as_ref().map(|told| Frozen::of(told, before.and_then(Self::frozen), now_s)),
        }))
    }

    /// The same in words: the descriptor is about to change.
    pub fn in_words(self, descriptor: &Descriptor) -> Self {
        let (level, silent) = match self {
            Self::Bits { level, silent } => (level, silent),
            words => return words,
        };
        let (level_nodes, silent_nodes) = (nodes(descriptor, level).collect(), nodes(descriptor, silent).collect());
        Self::Words(Box::new(Words { level_nodes, silent_nodes, ..Words::default() }))
    }

    pub fn is_level(&self, descriptor: &Descriptor, node: u64) -> bool {
        match self {
            Self::Bits { level, .. } => nodes(descriptor, *level).any(|other| other == node),
            Self::Words(words) => words.level_nodes.contains(&node),
        }
    }

    pub fn is_silent(&self, descriptor: &Descriptor, node: u64) -> bool {
        match self {
            Self::Bits { silent, .. } => nodes(descriptor, *silent).any(|other| other == node),
            Self::Words(words) => words.silent_nodes.contains(&node),
        }
    }

    /// 0: none.
    pub fn order_id(&self) -> u64 {
        match self {
            Self::Bits { .. } => 0,
            Self::Words(words) => words.order_id,
        }
    }

    pub fn order_waits(&self) -> &str {
        match self {
            Self::Bits { .. } => "",
            Self::Words(words) => &words.order_waits,
        }
    }

    pub fn frozen(&self) -> Option<&Frozen> {
        match self {
            Self::Bits { .. } => None,
            Self::Words(words) => words.frozen.as_ref(),
        }
    }

    /// Whether the leader has an order to carry out.
    pub fn is_busy(&self) -> bool {
        self.order_id() != 0 && self.done() == 0
    }

    /// The order that is known to be fulfilled, or 0.
    pub fn done(&self) -> u64 {
        match self {
            Self::Words(words) if words.order_done => words.order_id,
            _ => 0,
        }
    }

    /// That order is fulfilled.
    pub fn set_done(&mut self, order_id: u64) {
        if let Self::Words(words) = self {
            words.order_done |= words.order_id == order_id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn descriptor(nodes: &[u64]) -> Descriptor {
        let replica = |node: &u64| v1::ReplicaDescriptor { replica_id: 7, node_id: *node, role: 0 };
        let told = v1::RangeDescriptor { replicas: nodes.iter().map(replica).collect(), ..Default::default() };
        Descriptor::of(&told, Arc::default(), Arc::default())
    }

    #[test]
    fn what_a_leader_said_stays_true_when_the_replicas_change() {
        let (before, after) = (descriptor(&[10, 20, 30]), descriptor(&[20, 30, 40]));
        let report = v1::RangeReport { level_nodes: vec![30, 10], silent_nodes: vec![20], ..Default::default() };
        let led = Led::of(&before, &report, None, 5);
        assert!(matches!(led, Led::Bits { .. }));
        let level = |led: &Led, of: &Descriptor| [10, 20, 30, 40].map(|node| led.is_level(of, node));
        assert_eq!(level(&led, &before), [true, false, true, false]);
        let words = led.in_words(&before);
        assert_eq!(level(&words, &after), [true, false, true, false]);
        assert!(words.is_silent(&after, 20) && !words.is_silent(&after, 30));
        // Of a node that the descriptor does not know, and of an order.
        assert!(matches!(Led::of(&after, &report, None, 5), Led::Words(_)));
        let report = v1::RangeReport { order_id: 3, ..Default::default() };
        let mut led = Led::of(&after, &report, None, 5);
        assert!(led.is_busy());
        led.set_done(4);
        assert!(led.is_busy());
        led.set_done(3);
        assert!(!led.is_busy() && Led::of(&after, &report, Some(&led), 6) == led);
    }

    #[test]
    fn a_standstill_lasts_since_it_was_first_heard_of() {
        let of = descriptor(&[10, 20, 30]);
        let frozen = |freeze_index, frozen_ms| v1::RangeReport {
            frozen: Some(v1::FrozenRange { target_range_id: 4, freeze_index, frozen_ms, ..Default::default() }),
            ..Default::default()
        };
        let since = |led: &Led| led.frozen().map(|frozen| frozen.since_s);
        let first = Led::of(&of, &frozen(7, 2_500), None, 10);
        assert_eq!(since(&first), Some(8));
        assert_eq!(since(&Led::of(&of, &frozen(7, 9_000), Some(&first), 30)), Some(8));
        assert_eq!(since(&Led::of(&of, &frozen(8, 0), Some(&first), 30)), Some(30));
        assert_eq!(since(&Led::of(&of, &v1::RangeReport::default(), Some(&first), 30)), None);
    }
}
