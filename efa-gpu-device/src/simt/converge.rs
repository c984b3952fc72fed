//! Operations of several lanes: they wait until all have come.

use super::fault::{Fault, Primitive};
use super::machine::{Inner, State, WARP};

impl Inner<'_> {
    /// Notes that a lane waits for others, as its state says. If it was the last, they all go on.
    pub(super) fn arrive(&mut self, lane: usize) -> Result<(), Fault> {
        match self.lanes[lane].state {
            State::Warp { primitive, mask, from, .. } => self.arrive_in_warp(lane, primitive, mask, from)?,
            State::Block => self.arrive_in_block(lane)?,
            _ => return Ok(()),
        }
        if self.lanes[lane].state == State::Runs { Ok(()) } else { self.circle(lane).map_or(Ok(()), Err) }
    }

    fn arrive_in_warp(&mut self, lane: usize, primitive: Primitive, mask: u32, from: u32) -> Result<(), Fault> {
        let Some(waiting) = self.waiting(lane) else { return Ok(()) };
        let first = self.lanes[lane].warp;
        let lanes = self.warp_mask(self.lanes[lane].block, first);
        if mask >> (lane - first) & 1 == 0 {
            return Err(Fault::NotInMask(waiting));
        }
        if mask & !lanes != 0 {
            return Err(Fault::NoSuchLanes { waiting, lanes });
        }
        if primitive == Primitive::Shuffle && (from >= WARP as u32 || mask >> from & 1 == 0) {
            return Err(Fault::ShuffleFrom { waiting, from });
        }
        let all = (0..WARP).filter(|i| mask >> i & 1 != 0).map(|i| first + i);
        if let Some(gone) = all.clone().find(|&other| self.lanes[other].state == State::Done) {
            return Err(Fault::Exited { waiting, exited: self.lanes[gone].id });
        }
        if all.clone().any(|other| !self.meet(lane, other)) {
            return Ok(());
        }
        let values: [(u32, u32); WARP] = std::array::from_fn(|i| match self.lanes.get(first + i).map(|l| l.state) {
            Some(State::Warp { value, from, .. }) if mask >> i & 1 != 0 => (value, from),
            _ => (0, 0),
        });
        if primitive == Primitive::SyncWarp {
            self.share(all.clone());
        }
        let votes = (0..WARP).fold(0, |votes, i| votes | u32::from(values[i].0 != 0) << i);
        for other in all {
            self.lanes[other].answer = match primitive {
                Primitive::Ballot => votes,
                Primitive::Shuffle => values[values[other - first].1 as usize].0,
                _ => 0,
            };
            if primitive == Primitive::SyncWarp {
                self.bring_to_block(other);
            }
            self.go_on(other, lane);
        }
        self.stats.meetings += 1;
        Ok(())
    }

    fn arrive_in_block(&mut self, lane: usize) -> Result<(), Fault> {
        let Some(waiting) = self.waiting(lane) else { return Ok(()) };
        let all = self.block_of(lane);
        if let Some(gone) = all.clone().find(|&other| self.lanes[other].state == State::Done) {
            return Err(Fault::Exited { waiting, exited: self.lanes[gone].id });
        }
        if all.clone().all(|other| self.lanes[other].state == State::Block) {
            self.share(all.clone());
            for other in all {
                self.bring_to_block(other);
                self.go_on(other, lane);
            }
            self.stats.meetings += 1;
        }
        Ok(())
    }

    fn block_of(&self, lane: usize) -> std::ops::Range<usize> {
        let block = &self.blocks[self.lanes[lane].block];
        block.first..block.first + block.threads
    }

    /// Lets a lane go on. The one that came last still has its turn.
    fn go_on(&mut self, lane: usize, last: usize) {
        self.lanes[lane].state = State::Runs;
        if lane != last {
            self.ready.push(lane);
        }
    }

    /// Returns `true` if two lanes wait at the same operation.
    fn meet(&self, one: usize, other: usize) -> bool {
        match (self.lanes[one].state, self.lanes[other].state) {
            (State::Warp { primitive: p, mask: m, .. }, State::Warp { primitive, mask, .. }) => {
                (p, m) == (primitive, mask)
            }
            (State::Block, State::Block) => true,
            _ => false,
        }
    }

    /// Returns the lanes that a lane waits for and that have not come.
    fn awaited(&self, lane: usize) -> impl Iterator<Item = usize> {
        let (lanes, mask) = match self.lanes[lane].state {
            State::Warp { mask, .. } => {
                let first = self.lanes[lane].warp;
                (first..(first + WARP).min(self.block_of(lane).end), mask)
            }
            State::Block => (self.block_of(lane), u32::MAX),
            _ => (0..0, 0),
        };
        let first = lanes.start;
        lanes.filter(move |&other| mask >> ((other - first) % WARP) & 1 != 0 && !self.meet(lane, other))
    }

    /// Finds a circle of lanes, each of which waits for the next. It comes about when its last lane arrives.
    fn circle(&self, last: usize) -> Option<Fault> {
        let first = self.block_of(last).start;
        // From whom each lane of the block was found. Breadth first, for the shortest circle.
        let mut found = vec![None; self.block_of(last).len()];
        let mut queue = std::collections::VecDeque::from([last]);
        while let Some(lane) = queue.pop_front() {
            for other in self.awaited(lane) {
                if other == last {
                    return Some(self.fault_of_circle(last, lane, |lane| found[lane - first]));
                }
                if found[other - first].is_none() && self.waiting(other).is_some() {
                    found[other - first] = Some(lane);
                    queue.push_back(other);
                }
            }
        }
        None
    }

    fn fault_of_circle(&self, last: usize, end: usize, found: impl Fn(usize) -> Option<usize>) -> Fault {
        let back = std::iter::successors(Some(end), |&lane| found(lane));
        let mut waiting: Vec<_> = back.filter_map(|lane| self.waiting(lane)).collect();
        debug_assert_eq!(waiting.last(), self.waiting(last).as_ref());
        waiting.reverse();
        match waiting[..] {
            [one, other] => Fault::Diverged { one, other },
            _ => Fault::Deadlock(waiting),
        }
    }

    /// Returns the fault of a lane that waits for one that has returned.
    pub(super) fn missed(&self, gone: usize) -> Option<Fault> {
        let waiter = self.block_of(gone).find(|&lane| self.awaited(lane).any(|other| other == gone))?;
        let waiting = self.waiting(waiter)?;
        Some(Fault::Exited { waiting, exited: self.lanes[gone].id })
    }

    /// Answers a lane that asks which lanes are here: some of those that ask, and these get the same answer.
    pub(super) fn tell_who_is_here(&mut self, lane: usize) {
        let first = self.lanes[lane].warp;
        let end = (first + WARP).min(self.block_of(lane).end);
        // All of those that ask, or some, or none.
        let odds = [1, 2, u32::MAX][self.rng.usize(..3)];
        let mut mask = 0;
        for other in first..end {
            if other == lane || self.lanes[other].state == State::Asks && self.chance(odds) {
                mask |= 1 << (other - first);
            }
        }
        for other in (first..end).filter(|&other| mask >> (other - first) & 1 != 0) {
            // A lane that asks is in `ready` already.
            self.lanes[other].state = State::Runs;
            self.lanes[other].answer = mask;
        }
        self.record(mask.into());
    }
}
