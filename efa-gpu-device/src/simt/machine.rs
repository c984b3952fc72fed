//! The simulated machine of a run: lanes, blocks, GPUs, and the stores between them.

use super::fault::{Doing, Fault, LaneId, Primitive, Waiting};
use super::memory::{self, Buffer, Lent, Store, Watch};
use corosensei::Yielder;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Statistics of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lanes that have run.
    pub lanes: u32,
    /// Turns that lanes had.
    pub turns: u64,
    /// Operations of several lanes together.
    pub meetings: u64,
    /// Stores that were delayed.
    pub stores: u64,
    /// Nanoseconds that passed by the run's clock.
    pub nanoseconds: u64,
    /// A number made of everything that was decided, in order: equal for equal runs.
    pub schedule: u64,
}

/// Lanes of a warp.
pub(super) const WARP: usize = 32;
/// Stores that a lane, a block and a GPU have on their way, at most.
const ROOM: [usize; 3] = [64, 256, 512];

/// The state of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It can go on.
    Runs,
    /// It can go on when this moment has come.
    Sleeps(u64),
    /// It asks which lanes are here, and can go on.
    Asks,
    /// It waits for lanes of its warp.
    Warp { primitive: Primitive, mask: u32, value: u32, from: u32 },
    /// It waits for its block.
    Block,
    /// It has returned.
    Done,
}

pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) place: [u32; 4],
    /// Number of its block, over all launches, and of its warp's first lane.
    pub(super) block: usize,
    pub(super) warp: usize,
    pub(super) state: State,
    /// Where it was last.
    pub(super) at: Primitive,
    /// What it gets from the others when it goes on.
    pub(super) answer: u32,
    pub(super) stores: Buffer,
    /// The number of stores that had reached the GPU when the lane last looked at memory; and that number at the last
    /// look which is ordered before what it does now: by a fence of its own, or by meeting a lane of which this is
    /// true.
    pub(super) seen: u64,
    pub(super) knows: u64,
    /// A fence that has not taken effect yet.
    pub(super) fence: Option<Reach>,
    pub(super) yielder: *const Yielder<(), ()>,
}

pub(super) struct Block {
    /// Its lanes are those from here on.
    pub(super) first: usize,
    pub(super) threads: usize,
    pub(super) gpu: usize,
    pub(super) stores: Buffer,
}

/// The probabilities of a run, drawn once from the seed.
pub(super) struct Odds {
    /// A lane loses its turn at one of so many accesses.
    pub(super) turn: u32,
    /// Stores get further at one of so many accesses, and then so many.
    pub(super) store: [u32; 2],
    /// A lane falls asleep at one of so many turns.
    pub(super) nap: u32,
    /// One of so many stores lingers.
    pub(super) linger: u32,
    /// A fence takes effect when the lane stores again, and not at once.
    pub(super) lazy: bool,
}

/// The scope of a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Gpu,
    System,
}

/// The machine: what lanes and the scheduler share. Nobody borrows `inner` while a lane gives its turn away.
pub(super) struct Machine<'env> {
    pub(super) inner: RefCell<Inner<'env>>,
    /// The lane that runs.
    pub(super) current: Cell<usize>,
    /// The run is over: delayed stores are dropped, and lanes that have not returned are unwound.
    pub(super) over: Cell<bool>,
}

pub(super) struct Inner<'env> {
    pub(super) rng: fastrand::Rng,
    pub(super) odds: Odds,
    pub(super) lanes: Vec<Lane>,
    pub(super) blocks: Vec<Block>,
    /// Stores that have come as far as a GPU.
    pub(super) gpus: Vec<Buffer>,
    /// How many stores have come so far.
    pub(super) arrived: u64,
    /// Lanes and blocks that may have stores on their way.
    pub(super) storing: [Vec<usize>; 2],
    pub(super) ready: Vec<usize>,
    pub(super) asleep: BinaryHeap<Reverse<(u64, usize)>>,
    /// Nanoseconds.
    pub(super) now: u64,
    /// Grows when a lane does something that others may wait for.
    pub(super) progress: u64,
    pub(super) fault: Option<Fault>,
    pub(super) watches: Vec<Watch<'env>>,
    pub(super) lent: Lent,
    pub(super) stats: Stats,
}

impl Inner<'_> {
    /// Adds a decision to the schedule's number.
    pub(super) fn record(&mut self, what: u64) {
        self.stats.schedule = (self.stats.schedule.rotate_left(5) ^ what).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Draws: `true` once in `in_so_many` times on average.
    pub(super) fn chance(&mut self, in_so_many: u32) -> bool {
        in_so_many <= 1 || self.rng.u32(..in_so_many) == 0
    }

    /// Draws a long time in nanoseconds.
    pub(super) fn long(&mut self) -> u64 {
        1 << self.rng.u32(8..16)
    }

    /// Returns what the lane waits for, if it waits.
    pub(super) fn waiting(&self, lane: usize) -> Option<Waiting> {
        let Lane { id, state, block, warp, .. } = self.lanes[lane];
        let (primitive, mask) = match state {
            State::Warp { primitive, mask, .. } => (primitive, mask),
            State::Block => (Primitive::SyncThreads, self.warp_mask(block, warp)),
            _ => return None,
        };
        Some(Waiting { lane: id, primitive, mask })
    }

    /// Returns the lanes that a warp has.
    pub(super) fn warp_mask(&self, block: usize, warp: usize) -> u32 {
        let Block { first, threads, .. } = self.blocks[block];
        u32::MAX >> (WARP - (first + threads - warp).min(WARP))
    }

    /// Returns the lanes' operations, by launch.
    pub(super) fn doing(&self) -> Vec<Doing> {
        let mut counts = BTreeMap::new();
        for lane in &self.lanes {
            *counts.entry((lane.id.launch, lane.at)).or_insert(0) += 1;
        }
        counts.into_iter().map(|((launch, primitive), lanes)| Doing { launch, primitive, lanes }).collect()
    }

    /// A lane executes a fence.
    pub(super) fn fence(&mut self, lane: usize, reach: Reach) {
        self.acquire(lane);
        self.lanes[lane].fence = self.lanes[lane].fence.max(Some(reach));
        if !self.odds.lazy {
            self.bring_fenced(lane);
        }
    }

    /// Lets a lane's pending fence take effect.
    pub(super) fn bring_fenced(&mut self, lane: usize) {
        match self.lanes[lane].fence.take() {
            None => {}
            Some(Reach::Gpu) => self.bring_to_gpu(lane),
            Some(Reach::System) => self.bring_to_memory(lane),
        }
    }

    /// A lane stores.
    pub(super) fn store(&mut self, lane: usize, mut store: Store) {
        self.bring_fenced(lane);
        if !self.lent.covers(store.addr, store.size) {
            // The memory may be gone as soon as the lane goes on. Earlier stores to it come first.
            self.bring_these(lane, store.addr, store.size);
            return self.put_in_memory(store);
        }
        store.block = self.lanes[lane].block;
        if self.chance(self.odds.linger) {
            store.until = self.now + self.long();
        }
        self.progress += 1;
        self.stats.stores += 1;
        self.put_in_lane(lane, store);
    }

    fn put_in_lane(&mut self, lane: usize, store: Store) {
        let stores = &mut self.lanes[lane].stores;
        if stores.len() == 0 {
            self.storing[0].push(lane);
        }
        stores.push(store);
        if stores.len() > ROOM[0]
            && let Some(store) = stores.take_any(&mut self.rng, u64::MAX)
        {
            self.put_in_block(self.lanes[lane].block, store);
        }
    }

    fn put_in_block(&mut self, block: usize, store: Store) {
        let Block { stores, gpu, .. } = &mut self.blocks[block];
        if stores.len() == 0 {
            self.storing[1].push(block);
        }
        stores.push(store);
        let gpu = *gpu;
        if stores.len() > ROOM[1]
            && let Some(store) = stores.take_any(&mut self.rng, u64::MAX)
        {
            self.put_in_gpu(gpu, store);
        }
    }

    fn put_in_gpu(&mut self, gpu: usize, mut store: Store) {
        self.arrived += 1;
        store.arrived = self.arrived;
        self.gpus[gpu].push(store);
        if self.gpus[gpu].len() > ROOM[2]
            && let Some(store) = self.gpus[gpu].take_any(&mut self.rng, u64::MAX)
        {
            self.put_in_memory(store);
        }
    }

    fn put_in_memory(&mut self, store: Store) {
        self.progress += 1;
        // SAFETY: valid and aligned, by the contract of `current::store`, whose caller keeps it for this moment: a
        // store to memory that was not lent comes here at once. Lent memory stays until the run is over, by the
        // contract of `lend` or by the borrow of `Executor::lends`, and after that nobody comes here (`running`).
        unsafe { memory::store(store) };
        for watch in self.watches.iter_mut().filter(|watch| watch.addr == store.addr) {
            (watch.seen)(store.value as u32);
        }
    }

    /// Moves some delayed stores on, or none.
    pub(super) fn move_stores(&mut self) {
        let [odds, moves] = self.odds.store;
        if self.chance(odds) {
            (0..moves).for_each(|_| self.move_a_store(self.now));
        }
    }

    /// Moves one delayed store one step on, unless it lingers.
    fn move_a_store(&mut self, now: u64) {
        let level = self.rng.usize(..3);
        if level == 2 {
            let gpu = self.rng.usize(..self.gpus.len());
            if let Some(store) = self.gpus[gpu].take_any(&mut self.rng, now) {
                self.put_in_memory(store);
            }
            return;
        }
        while !self.storing[level].is_empty() {
            let i = self.rng.usize(..self.storing[level].len());
            let from = self.storing[level][i];
            let stores = if level == 0 { &mut self.lanes[from].stores } else { &mut self.blocks[from].stores };
            let store = stores.take_any(&mut self.rng, now);
            let is_empty = stores.len() == 0;
            if is_empty {
                self.storing[level].swap_remove(i);
            }
            match store {
                Some(store) if level == 0 => return self.put_in_block(self.lanes[from].block, store),
                Some(store) => return self.put_in_gpu(self.blocks[from].gpu, store),
                None if is_empty => {}
                None => return,
            }
        }
    }

    /// Brings all stores of a lane to its block.
    pub(super) fn bring_to_block(&mut self, lane: usize) {
        for store in self.lanes[lane].stores.take_all() {
            self.put_in_block(self.lanes[lane].block, store);
        }
    }

    /// Brings all stores of a lane and its block to the GPU.
    pub(super) fn bring_to_gpu(&mut self, lane: usize) {
        self.bring_to_block(lane);
        self.bring_block(self.lanes[lane].block);
    }

    fn bring_block(&mut self, block: usize) {
        for store in self.blocks[block].stores.take_all() {
            self.put_in_gpu(self.blocks[block].gpu, store);
        }
    }

    /// Brings them to memory, with the stores of other blocks that the lane has acquired.
    pub(super) fn bring_to_memory(&mut self, lane: usize) {
        self.bring_to_gpu(lane);
        let Lane { block, knows, .. } = self.lanes[lane];
        for store in self.gpus[self.blocks[block].gpu].take_known(block, knows) {
            self.put_in_memory(store);
        }
    }

    /// A lane has looked at memory.
    pub(super) fn look(&mut self, lane: usize) {
        self.lanes[lane].seen = self.arrived;
    }

    /// Orders what a lane has seen before what it does from now on.
    pub(super) fn acquire(&mut self, lane: usize) {
        let Lane { seen, knows, .. } = &mut self.lanes[lane];
        *knows = (*knows).max(*seen);
    }

    /// Lets all of these lanes know what one of them knows.
    pub(super) fn share(&mut self, lanes: impl Iterator<Item = usize> + Clone) {
        let most = lanes.clone().map(|lane| self.lanes[lane].knows).max().unwrap_or(0);
        lanes.for_each(|lane| self.lanes[lane].knows = most);
    }

    /// Brings all delayed stores to memory: the run is over.
    pub(super) fn finish(&mut self) {
        while self.storing.iter().any(|storing| !storing.is_empty()) || self.gpus.iter().any(|gpu| gpu.len() > 0) {
            self.move_a_store(u64::MAX);
        }
    }

    /// Brings the stores to these bytes that a lane can see to memory.
    pub(super) fn bring_these(&mut self, lane: usize, addr: usize, size: usize) {
        let block = self.lanes[lane].block;
        let gpu = self.blocks[block].gpu;
        let mut stores = self.gpus[gpu].take_overlapping(addr, size);
        stores.extend(self.blocks[block].stores.take_overlapping(addr, size));
        stores.extend(self.lanes[lane].stores.take_overlapping(addr, size));
        for store in stores {
            self.put_in_memory(store);
        }
    }

    /// Returns what a lane sees at these bytes, in memory or on its way there.
    ///
    /// # Safety
    /// They are valid for reads, aligned to their size, and accessed atomically.
    pub(super) unsafe fn load(&self, lane: usize, addr: usize, size: usize) -> u64 {
        let Lane { block, stores, .. } = &self.lanes[lane];
        let block = &self.blocks[*block];
        // SAFETY: the caller's promise.
        let value = unsafe { memory::load(addr, size) };
        [&self.gpus[block.gpu], &block.stores, stores]
            .iter()
            .fold(value, |value, stores| stores.over(addr, size, value))
    }

    /// A lane has returned.
    pub(super) fn end(&mut self, lane: usize) {
        self.progress += 1;
        self.stats.lanes += 1;
        self.lanes[lane].state = State::Done;
        self.lanes[lane].at = Primitive::End;
        self.bring_fenced(lane);
        self.bring_to_block(lane);
        self.fault = self.fault.take().or_else(|| self.missed(lane));
    }
}
