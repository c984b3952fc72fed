//! The scheduler: it gives lanes their turns until all have returned, or a fault ends the run.

use super::current::Entered;
use super::fault::{Fault, LaneId, Primitive};
use super::machine::{Block, Inner, Lane, Machine, Odds, State, Stats, WARP};
use super::memory::{Buffer, Lent, Watch};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Bytes of a lane's stack: a panic's message is made there.
const STACK: usize = 256 << 10;
/// Stacks that a thread keeps for its next run.
const KEPT: usize = 1024;
/// Turns between two looks at the real clock.
const LOOK: u64 = 64;

thread_local! {
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// A kernel to run.
pub(super) struct Launch<'env> {
    pub(super) gpu: u32,
    pub(super) blocks: u32,
    pub(super) threads: u32,
    pub(super) kernel: Box<dyn Fn() + 'env>,
}

/// A lane's coroutine: it is unwound when this is dropped, with the lane as the current one.
struct Running<'w, 'env> {
    machine: &'w Machine<'env>,
    lane: usize,
    coroutine: Option<Coroutine<(), (), ()>>,
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        if let Some(mut coroutine) = self.coroutine.take() {
            self.machine.current.set(self.lane);
            coroutine.force_unwind();
            let stack = coroutine.into_stack();
            STACKS.with_borrow_mut(|stacks| {
                if stacks.len() < KEPT {
                    stacks.push(stack);
                }
            });
        }
    }
}

impl<'w, 'env> Running<'w, 'env> {
    fn new(machine: &'w Machine<'env>, lane: usize, kernel: &'w dyn Fn()) -> Self {
        let stack = STACKS
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| DefaultStack::new(STACK).expect("memory for a lane's stack"));
        let run = move |yielder: &corosensei::Yielder<(), ()>, ()| {
            machine.inner.borrow_mut().lanes[lane].yielder = yielder;
            kernel();
        };
        // SAFETY: the coroutine borrows `machine` and `kernel` for `'w`. It ends with this value, whose type has that
        // lifetime, and `Drop` unwinds it to its end.
        let coroutine = unsafe { Coroutine::with_stack_unchecked(stack, run) };
        Self { machine, lane, coroutine: Some(coroutine) }
    }

    /// Gives the lane a turn. Returns `true` if it has returned, or what it panicked with.
    fn turn(&mut self) -> Result<bool, Box<dyn Any + Send>> {
        let Some(coroutine) = &mut self.coroutine else { return Ok(true) };
        self.machine.current.set(self.lane);
        let result = catch_unwind(AssertUnwindSafe(|| coroutine.resume(())))?;
        Ok(matches!(result, CoroutineResult::Return(())))
    }
}

/// Ends a run before its lanes are unwound.
struct End<'w, 'env>(&'w Machine<'env>);

impl Drop for End<'_, '_> {
    fn drop(&mut self) {
        self.0.over.set(true);
    }
}

/// The scheduler's next step.
enum Next {
    Lane(usize),
    /// No lane can go on at this moment.
    Nobody,
    Over,
}

impl<'env> Machine<'env> {
    fn new(seed: u64, launches: &[Launch<'_>], watches: Vec<Watch<'env>>, lent: Lent) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut draw = |from: &[u32]| from[rng.usize(..from.len())];
        let odds = Odds {
            turn: draw(&[1, 2, 4, 16, 64]),
            store: [draw(&[1, 4, 16, 128]), draw(&[1, 4, 16])],
            nap: draw(&[64, 512, 4096, u32::MAX]),
            linger: draw(&[16, 128, 1024, u32::MAX]),
            lazy: draw(&[0, 1]) == 1,
        };
        let mut gpus: Vec<u32> = launches.iter().map(|launch| launch.gpu).collect();
        gpus.sort_unstable();
        gpus.dedup();
        let (mut lanes, mut blocks) = (Vec::new(), Vec::new());
        for (number, launch) in launches.iter().enumerate() {
            let Launch { gpu, blocks: count, threads, .. } = *launch;
            for block in 0..count {
                let (first, at) = (lanes.len(), blocks.len());
                lanes.extend((0..threads as usize).map(|thread| Lane {
                    id: LaneId {
                        launch: number as u32,
                        block,
                        warp: (thread / WARP) as u32,
                        lane: (thread % WARP) as u32,
                    },
                    place: [block, count, thread as u32, threads],
                    block: at,
                    warp: first + thread / WARP * WARP,
                    state: State::Runs,
                    at: Primitive::Start,
                    answer: 0,
                    stores: Buffer::default(),
                    seen: 0,
                    knows: 0,
                    fence: None,
                    yielder: std::ptr::null(),
                }));
                let threads = threads as usize;
                let gpu = gpus.binary_search(&gpu).unwrap_or_default();
                blocks.push(Block { first, threads, gpu, stores: Buffer::default() });
            }
        }
        let inner = Inner {
            rng,
            odds,
            ready: (0..lanes.len()).collect(),
            lanes,
            blocks,
            gpus: gpus.iter().map(|_| Buffer::default()).collect(),
            arrived: 0,
            storing: Default::default(),
            asleep: Default::default(),
            now: 0,
            progress: 0,
            fault: None,
            watches,
            lent,
            stats: Stats::default(),
        };
        Self { inner: RefCell::new(inner), current: Cell::new(0), over: Cell::new(false) }
    }
}

impl Inner<'_> {
    /// Draws the next lane.
    fn next(&mut self) -> Next {
        if self.fault.is_some() {
            return Next::Over;
        }
        if self.stats.lanes as usize == self.lanes.len() {
            self.finish();
            return Next::Over;
        }
        self.stats.turns += 1;
        self.now += 20 + self.rng.u64(..40);
        while let Some(&Reverse((until, lane))) = self.asleep.peek()
            && until <= self.now
        {
            self.asleep.pop();
            self.ready.push(lane);
        }
        self.move_stores();
        if self.ready.is_empty() {
            let Some(&Reverse((until, _))) = self.asleep.peek() else {
                self.fault = Some(Fault::Deadlock((0..self.lanes.len()).filter_map(|l| self.waiting(l)).collect()));
                return Next::Over;
            };
            // Slowly enough for other threads, which live by a real clock, and may do what is waited for.
            self.now = self.now.max(until.min(self.now + 1000));
            return Next::Nobody;
        }
        let lane = self.ready.swap_remove(self.rng.usize(..self.ready.len()));
        if !self.ready.is_empty() && self.chance(self.odds.nap) {
            let until = self.now + self.long();
            self.asleep.push(Reverse((until, lane)));
            return self.next();
        }
        match self.lanes[lane].state {
            State::Asks => self.tell_who_is_here(lane),
            State::Sleeps(_) => self.lanes[lane].state = State::Runs,
            _ => {}
        }
        Next::Lane(lane)
    }

    /// Puts a lane that has given its turn away among those that are ready, or asleep.
    fn put_back(&mut self, lane: usize) {
        match self.lanes[lane].state {
            State::Runs | State::Asks => self.ready.push(lane),
            State::Sleeps(until) => self.asleep.push(Reverse((until, lane))),
            State::Warp { .. } | State::Block | State::Done => {}
        }
    }
}

/// The real time of a run: its limit, and when to yield to other threads.
struct Patience {
    start: Instant,
    most: Duration,
    progress: u64,
    /// Looks since the last progress.
    idle: u32,
}

impl Patience {
    /// Yields the thread if there was no progress. Returns `true` if there is time left.
    fn look(&mut self, progress: u64) -> bool {
        self.idle = if progress == self.progress { self.idle + 1 } else { 0 };
        self.progress = progress;
        match self.idle {
            0 => {}
            1..64 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(20)),
        }
        self.start.elapsed() < self.most
    }
}

fn schedule(machine: &Machine<'_>, lanes: &mut [Running<'_, '_>], most: Duration) -> Result<(), Fault> {
    let mut patience = Patience { start: Instant::now(), most, progress: 0, idle: 0 };
    let mut looked = 0;
    let panicked = |panic: Box<dyn Any + Send>| {
        let message = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => (*text).into(),
            (_, Some(text)) => text.clone(),
            _ => "something that is no text".into(),
        };
        Fault::Panicked { lane: machine.inner.borrow().lanes[machine.current.get()].id, message }
    };
    loop {
        // A watch may panic, here and below.
        let next = catch_unwind(AssertUnwindSafe(|| machine.inner.borrow_mut().next())).map_err(panicked)?;
        match next {
            Next::Over => return machine.inner.borrow_mut().fault.take().map_or(Ok(()), Err),
            Next::Nobody => std::thread::yield_now(),
            Next::Lane(lane) => {
                let ended = lanes[lane].turn().map_err(panicked)?;
                let after = |inner: &mut Inner<'_>| if ended { inner.end(lane) } else { inner.put_back(lane) };
                catch_unwind(AssertUnwindSafe(|| after(&mut machine.inner.borrow_mut()))).map_err(panicked)?;
            }
        }
        let inner = machine.inner.borrow();
        if inner.stats.turns - looked >= LOOK {
            looked = inner.stats.turns;
            if !patience.look(inner.progress) {
                return Err(Fault::TimedOut { after: most, doing: inner.doing() });
            }
        }
    }
}

/// Runs all launches to their end.
pub(super) fn run(
    seed: u64,
    timeout: Duration,
    launches: &[Launch<'_>],
    watches: Vec<Watch<'_>>,
    lent: Lent,
) -> Result<Stats, Fault> {
    let machine = Machine::new(seed, launches, watches, lent);
    let _entered = Entered::new(&machine);
    let lanes = machine.inner.borrow().lanes.iter().map(|lane| lane.id.launch as usize).collect::<Vec<_>>();
    let mut lanes: Vec<_> = lanes
        .into_iter()
        .enumerate()
        .map(|(lane, launch)| Running::new(&machine, lane, &launches[launch].kernel))
        .collect();
    // The run is over before its lanes are unwound.
    let end = End(&machine);
    schedule(&machine, &mut lanes, timeout)?;
    drop(end);
    let inner = machine.inner.borrow();
    Ok(Stats { nanoseconds: inner.now, ..inner.stats })
}
