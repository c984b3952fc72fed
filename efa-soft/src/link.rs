//! A network that misbehaves on purpose, in the same way every time for one seed.

use crate::Time;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// The faults of one path of a network, which come on top of those of the whole network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PathConfig {
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Time that is added to every packet.
    pub delay: Duration,
    /// No packet gets through.
    pub cut: bool,
}

/// The faults of a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkConfig {
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets that arrive with a bit flipped.
    pub corrupt: f64,
    /// No packet gets through, and senders are not told: a partition, or a security group without the rule that lets
    /// peers in.
    pub cut: bool,
    /// No packet gets through for this long after the first one.
    pub outage: Duration,
    /// Packets that are due at the same moment arrive in random order. (Packets whose jitter differs overtake each
    /// other in any case.)
    pub reorder: bool,
    /// Time that every packet takes.
    pub delay: Duration,
    /// Most time that is added to a packet at random.
    pub jitter: Duration,
    /// The faults of each path. A packet of path 4 takes path 0, and so on.
    pub paths: [PathConfig; 4],
    /// Seed of the randomness.
    pub seed: u64,
}

impl Default for LinkConfig {
    /// Returns a network that loses nothing and takes no time, but reorders: SRD promises no order.
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            cut: false,
            outage: Duration::ZERO,
            reorder: true,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            paths: [PathConfig::default(); 4],
            seed: 1,
        }
    }
}

/// The counters of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets that were sent.
    pub packets: u64,
    /// Packets lost.
    pub lost: u64,
    /// Packets doubled.
    pub duplicated: u64,
    /// Packets damaged.
    pub corrupted: u64,
    /// Packets that arrived after one that was sent later.
    pub overtaken: u64,
}

/// A packet that arrives later: when, its order among those of one moment, and where it is meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Queued {
    due: Time,
    /// Random if packets are to be reordered.
    rank: u64,
    sequence: u64,
    place: usize,
}

/// A packet, as far as a link knows it.
pub(crate) trait Parcel: Clone {
    /// Returns the path that it takes.
    fn path(&self) -> u8;

    /// Returns the bytes that may be damaged on the way.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Packets on their way.
pub(crate) struct Link<T> {
    config: LinkConfig,
    first_at: Option<Time>,
    rng: fastrand::Rng,
    /// Packets that arrive later.
    queue: BinaryHeap<Reverse<Queued>>,
    /// Packets that arrived at once, by their place and sequence.
    arrived: VecDeque<(usize, u64)>,
    items: Slab<T>,
    /// The number of packets so far.
    sequence: u64,
    /// The highest sequence that has arrived.
    newest_out: u64,
    counters: LinkCounters,
}

impl<T: Parcel> Link<T> {
    /// Creates a link without packets.
    pub(crate) fn new(config: LinkConfig) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(config.seed),
            config,
            first_at: None,
            queue: BinaryHeap::new(),
            arrived: VecDeque::new(),
            items: Slab::new(),
            sequence: 0,
            newest_out: 0,
            counters: LinkCounters::default(),
        }
    }

    /// Returns what the link did so far.
    pub(crate) fn counters(&self) -> LinkCounters {
        self.counters
    }

    /// Returns the configuration, to be changed. A change applies to packets that are sent from here on: those under
    /// way stay as they are. The course of the randomness goes on.
    pub(crate) fn config_mut(&mut self) -> &mut LinkConfig {
        &mut self.config
    }

    /// Sends a packet. Returns it if it is lost, so that its memory can be used again.
    pub(crate) fn push(&mut self, now: Time, mut item: T) -> Option<T> {
        self.counters.packets += 1;
        let outage = now < *self.first_at.get_or_insert(now) + self.config.outage;
        let PathConfig { loss, cut, delay } = self.config.paths[usize::from(item.path()) % self.config.paths.len()];
        let lost = self.chance(self.config.loss) || self.chance(loss);
        if self.config.cut || cut || outage || lost {
            self.counters.lost += 1;
            return Some(item);
        }
        let at = now + self.config.delay + delay;
        if self.chance(self.config.duplicate) {
            self.counters.duplicated += 1;
            self.enqueue(now, at, item.clone());
        }
        if self.chance(self.config.corrupt) {
            let bytes = item.bytes_mut();
            if !bytes.is_empty() {
                let bit = self.rng.usize(..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                self.counters.corrupted += 1;
            }
        }
        self.enqueue(now, at, item);
        None
    }

    /// Returns `true` with this probability. A probability of 0 draws no random number.
    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.f64() < share
    }

    fn enqueue(&mut self, now: Time, at: Time, item: T) {
        let jitter = self.config.jitter.as_nanos() as u64;
        let extra = if jitter == 0 { 0 } else { self.rng.u64(0..=jitter) };
        let due = at + Duration::from_nanos(extra);
        self.sequence += 1;
        let place = self.items.insert(item);
        if due <= now {
            self.arrived.push_back((place, self.sequence));
        } else {
            let rank = if self.config.reorder { self.rng.u64(..) } else { 0 };
            self.queue.push(Reverse(Queued { due, rank, sequence: self.sequence, place }));
        }
    }

    /// Returns the next packet that arrives by `now`.
    pub(crate) fn pop(&mut self, now: Time) -> Option<T> {
        let (place, sequence) = match self.queue.peek() {
            // A packet that took its time was sent earlier than those that arrived at once, so it comes first if
            // packets keep their order.
            Some(Reverse(queued)) if queued.due <= now && (self.arrived.is_empty() || !self.config.reorder) => {
                let Reverse(Queued { place, sequence, .. }) = self.queue.pop()?;
                (place, sequence)
            }
            _ if self.config.reorder && self.arrived.len() > 1 => {
                let chosen = self.rng.usize(..self.arrived.len());
                self.arrived.swap_remove_back(chosen)?
            }
            _ => self.arrived.pop_front()?,
        };
        self.counters.overtaken += u64::from(sequence < self.newest_out);
        self.newest_out = self.newest_out.max(sequence);
        self.items.try_remove(place)
    }

    /// Returns when the next packet arrives.
    pub(crate) fn next_time(&self) -> Option<Time> {
        if !self.arrived.is_empty() {
            return Some(Time::ZERO);
        }
        self.queue.peek().map(|Reverse(queued)| queued.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<A: Clone> Parcel for (A, Vec<u8>) {
        fn path(&self) -> u8 {
            self.1.first().copied().unwrap_or(0)
        }

        fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.1
        }
    }

    fn run(config: LinkConfig) -> (Vec<u32>, LinkCounters) {
        let mut link = Link::new(config);
        for i in 0..1000 {
            link.push(Time::from_nanos(u64::from(i / 10)), (i, vec![0; 4]));
        }
        let out = std::iter::from_fn(|| link.pop(Time::from_nanos(u64::MAX))).map(|(i, _)| i).collect();
        (out, link.counters())
    }

    #[test]
    fn a_perfect_link_keeps_order_and_the_default_one_does_not() {
        let (out, counters) = run(LinkConfig { reorder: false, ..Default::default() });
        assert!(out.is_sorted() && out.len() == 1000 && counters.overtaken == 0);
        let (mut out, counters) = run(LinkConfig::default());
        assert!(!out.is_sorted() && counters.overtaken > 300);
        out.sort();
        assert_eq!(out, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn loss_and_duplication_come_in_the_shares_asked_for_and_the_same_for_the_same_seed() {
        let config = LinkConfig { loss: 0.2, duplicate: 0.1, seed: 42, ..Default::default() };
        let (out, counters) = run(config);
        assert!((150..250).contains(&counters.lost) && (50..120).contains(&counters.duplicated), "{counters:?}");
        assert_eq!(out.len() as u64, 1000 - counters.lost + counters.duplicated);
        assert_eq!(run(config), (out.clone(), counters));
        assert_ne!(run(LinkConfig { seed: 43, ..config }).0, out);
    }

    #[test]
    fn a_packet_arrives_after_its_delay_and_no_later_than_its_jitter() {
        let ms = Duration::from_millis;
        let mut link = Link::new(LinkConfig { delay: ms(5), jitter: ms(2), ..Default::default() });
        link.push(Time::ZERO, ((), vec![]));
        assert_eq!(link.pop(Time::ZERO + ms(4)), None);
        assert!(link.next_time().is_some_and(|t| t >= Time::ZERO + ms(5) && t <= Time::ZERO + ms(7)));
        assert!(link.pop(Time::ZERO + ms(7)).is_some());
    }

    #[test]
    fn a_cut_link_carries_nothing_until_it_is_mended_and_an_outage_ends_by_itself() {
        let ms = Duration::from_millis;
        let mut link = Link::new(LinkConfig { outage: ms(2), ..Default::default() });
        let packet = ((), vec![1]);
        assert!(link.push(Time::ZERO + ms(7), packet.clone()).is_some(), "the outage starts with the first packet");
        assert!(link.push(Time::ZERO + ms(8), packet.clone()).is_some());
        assert!(link.push(Time::ZERO + ms(9), packet.clone()).is_none());
        link.config_mut().cut = true;
        assert!(link.push(Time::ZERO + ms(10), packet.clone()).is_some());
        link.config_mut().cut = false;
        assert!(link.push(Time::ZERO + ms(11), packet).is_none());
        assert_eq!(link.counters().lost, 3);
    }

    #[test]
    fn a_damaged_packet_differs_in_one_bit() {
        let mut link = Link::new(LinkConfig { corrupt: 1.0, ..Default::default() });
        link.push(Time::ZERO, ((), vec![0; 100]));
        let (_, bytes) = link.pop(Time::ZERO).unwrap();
        assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        assert_eq!(link.counters().corrupted, 1);
    }

    #[test]
    fn each_path_has_its_own_latency_and_loss() {
        let mut paths = [PathConfig::default(); 4];
        paths[1].delay = Duration::from_millis(3);
        paths[2].cut = true;
        paths[3].loss = 0.5;
        let mut link = Link::new(LinkConfig { paths, ..Default::default() });
        let mut lost = [0; 4];
        for path in (0..400u32).map(|i| (i % 4) as u8) {
            lost[usize::from(path)] += u32::from(link.push(Time::ZERO, ((), vec![path])).is_some());
        }
        assert_eq!(lost[..3], [0, 0, 100]);
        assert!((30..70).contains(&lost[3]), "{lost:?}");
        let mut arrived = [0; 4];
        while let Some((_, packet)) = link.pop(Time::ZERO) {
            arrived[usize::from(packet[0])] += 1;
        }
        assert_eq!(arrived, [100, 0, 0, 100 - lost[3]]);
        assert_eq!(link.next_time(), Some(Time::ZERO + Duration::from_millis(3)));
    }
}
