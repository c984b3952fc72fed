//! The operations of the current lane, in a run or alone on its thread.

use super::fault::Primitive;
use super::machine::{Machine, Reach, State};
use super::memory::{self, Store};
use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*, fence};
use std::time::Instant;

thread_local! {
    /// The machine whose lane this thread runs.
    static MACHINE: Cell<*const Machine<'static>> = const { Cell::new(ptr::null()) };
}

/// Makes `machine` the one whose lanes this thread runs, until this is dropped.
pub(super) struct Entered(());

impl Entered {
    /// # Panics
    /// In a run.
    pub(super) fn new(machine: &Machine<'_>) -> Self {
        assert!(MACHINE.get().is_null(), "an executor cannot run inside a kernel");
        // The lifetime is erased: nobody uses it.
        MACHINE.set(ptr::from_ref(machine).cast());
        Self(())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        MACHINE.set(ptr::null());
    }
}

/// Returns the machine of the current lane, and the lane's number.
#[inline]
fn machine<'w>() -> Option<(&'w Machine<'static>, usize)> {
    let machine = MACHINE.get();
    // SAFETY: `run` set it, and keeps the machine alive until no lane runs any more (`Entered`); `'w` ends in the
    // function that asks.
    (!machine.is_null()).then(|| unsafe { (&*machine, (*machine).current.get()) })
}

/// Returns the machine of the current lane, and the lane's number, unless the lane is being unwound: then it must
/// neither wait for anybody nor give its turn away. A lane that caught its unwinding at the end of a run does not come
/// back from here: it is unwound again.
#[inline]
fn running<'w>() -> Option<(&'w Machine<'static>, usize)> {
    let (machine, lane) = machine().filter(|_| !std::thread::panicking())?;
    while machine.over.get() {
        suspend(machine, lane);
    }
    Some((machine, lane))
}

/// Gives the turn away.
fn suspend(machine: &Machine<'static>, lane: usize) {
    let yielder = machine.inner.borrow().lanes[lane].yielder;
    // SAFETY: the lane runs, so its coroutine is alive, which stored this address when it began (`Running::new`).
    unsafe { (*yielder).suspend(()) };
}

/// Notes that the lane is at an access, and may take its turn away.
fn access(machine: &Machine<'static>, lane: usize, at: Primitive) {
    let mut inner = machine.inner.borrow_mut();
    inner.lanes[lane].at = at;
    inner.now += 8;
    inner.record((lane as u64) << 8 | at as u64);
    inner.move_stores();
    let odds = inner.odds.turn;
    let turn = inner.chance(odds);
    drop(inner);
    if turn {
        suspend(machine, lane);
    }
}

/// Waits in `state`, and returns the answer of the lanes that met.
fn wait(machine: &Machine<'static>, lane: usize, at: Primitive, state: State) -> u32 {
    let mut inner = machine.inner.borrow_mut();
    inner.lanes[lane].at = at;
    inner.lanes[lane].state = state;
    if matches!(at, Primitive::SyncWarp | Primitive::SyncThreads) {
        inner.bring_fenced(lane);
    }
    inner.record((lane as u64) << 8 | at as u64);
    if let Err(fault) = inner.arrive(lane) {
        inner.fault = Some(fault);
    }
    drop(inner);
    suspend(machine, lane);
    machine.inner.borrow().lanes[lane].answer
}

/// Lends memory to the run until it is over, so that stores to it may be delayed. Outside of a run this does nothing.
///
/// # Safety
/// `size` bytes at `addr` are valid for writes, and accessed atomically, until the run is over.
pub unsafe fn lend(addr: u64, size: u64) {
    if let Some((machine, _)) = running() {
        machine.inner.borrow_mut().lent.add(addr as usize, size as usize);
    }
}

/// Loads `size` bytes. With `acquire`, what was stored before the value that this sees comes before what the lane does
/// from here on.
///
/// # Safety
/// They are valid for reads, aligned to their size, and accessed atomically.
pub(crate) unsafe fn load(addr: usize, size: usize, acquire: bool) -> u64 {
    match running() {
        Some((machine, lane)) => {
            access(machine, lane, Primitive::Load);
            let mut inner = machine.inner.borrow_mut();
            inner.look(lane);
            if acquire {
                inner.acquire(lane);
            }
            // SAFETY: the caller's promise.
            unsafe { inner.load(lane, addr, size) }
        }
        // SAFETY: the caller's promise.
        None => unsafe { memory::load(addr, size) },
    }
}

/// Stores `size` bytes. With `release`, what the lane stored before becomes visible before.
///
/// # Safety
/// They are valid for writes, aligned to their size, and accessed atomically.
pub(crate) unsafe fn store(addr: usize, size: usize, value: u64, release: bool) {
    let store = Store::new(addr, size, value);
    match running() {
        Some((machine, lane)) => {
            access(machine, lane, Primitive::Store);
            let mut inner = machine.inner.borrow_mut();
            if release {
                inner.bring_to_memory(lane);
            }
            inner.store(lane, store);
        }
        // SAFETY: the caller's promise.
        None => unsafe { memory::store(store) },
    }
}

/// The order of an atomic operation with other accesses, for its GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orders {
    Nothing,
    /// What was stored before the value that this sees comes before what the lane does after it.
    Acquire,
    /// An acquire, and what this lane stored before becomes visible before.
    AcquireAndRelease,
}

/// Does `operation` to a word of memory.
///
/// # Safety
/// The word is valid for reads and writes, aligned, and accessed atomically.
pub(crate) unsafe fn atomic(to: *mut u32, orders: Orders, operation: impl FnOnce(&AtomicU32) -> u32) -> u32 {
    before_atomic(to as usize, size_of::<u32>(), orders);
    // SAFETY: the caller's promise.
    operation(unsafe { AtomicU32::from_ptr(to) })
}

/// Does `operation` to 64 bits of memory.
///
/// # Safety
/// As [`atomic`].
pub(crate) unsafe fn atomic_u64(to: *mut u64, orders: Orders, operation: impl FnOnce(&AtomicU64) -> u64) -> u64 {
    before_atomic(to as usize, size_of::<u64>(), orders);
    // SAFETY: the caller's promise.
    operation(unsafe { AtomicU64::from_ptr(to) })
}

fn before_atomic(addr: usize, size: usize, orders: Orders) {
    if let Some((machine, lane)) = running() {
        access(machine, lane, Primitive::Atomic);
        let mut inner = machine.inner.borrow_mut();
        inner.bring_fenced(lane);
        if orders == Orders::AcquireAndRelease {
            inner.bring_to_gpu(lane);
        }
        inner.look(lane);
        if orders != Orders::Nothing {
            inner.acquire(lane);
        }
        inner.bring_these(lane, addr, size);
    }
}

/// Executes a fence of this GPU's scope, or of `system` scope.
pub(crate) fn order(system: bool) {
    match running() {
        Some((machine, lane)) => {
            access(machine, lane, Primitive::Fence);
            let mut inner = machine.inner.borrow_mut();
            inner.fence(lane, if system { Reach::System } else { Reach::Gpu });
        }
        None => fence(SeqCst),
    }
}

/// Waits for the lanes of `mask`, and returns the votes of a ballot, or the value of lane `from`.
///
/// # Panics
/// Outside a run, if there have to be other lanes than 0.
pub(crate) fn meet(primitive: Primitive, mask: u32, value: u32, from: u32) -> u32 {
    match running() {
        Some((machine, lane)) => wait(machine, lane, primitive, State::Warp { primitive, mask, value, from }),
        // While a lane is unwound nobody meets it. It gets no votes, and a value that no counter or index has, so that
        // its loops end.
        None if std::thread::panicking() => {
            if primitive == Primitive::Shuffle {
                u32::MAX
            } else {
                0
            }
        }
        None => {
            assert!(
                mask == 1,
                "{primitive} of lanes {mask:#010x}, where lane 0 is alone: run the kernel in a `simt::Executor`"
            );
            value
        }
    }
}

/// Waits for the block.
pub(crate) fn meet_block() {
    if let Some((machine, lane)) = running() {
        wait(machine, lane, Primitive::SyncThreads, State::Block);
    }
}

/// Returns the lanes that are here.
pub(crate) fn here() -> u32 {
    match running() {
        Some((machine, lane)) => wait(machine, lane, Primitive::Activemask, State::Asks),
        None => 1 << place().1,
    }
}

/// Lets time pass.
pub(crate) fn sleep(ns: u32) {
    match running() {
        Some((machine, lane)) => {
            let until = machine.inner.borrow().now + u64::from(ns.min(1_000_000));
            wait(machine, lane, Primitive::Nanosleep, State::Sleeps(until));
        }
        None => std::thread::yield_now(),
    }
}

/// Returns the time in nanoseconds.
pub(crate) fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    match running() {
        Some((machine, lane)) => {
            access(machine, lane, Primitive::Globaltimer);
            machine.inner.borrow().now
        }
        None => START.get_or_init(Instant::now).elapsed().as_nanos() as u64,
    }
}

/// Returns block, blocks, thread in the block, threads of a block; and the lane in its warp.
pub(crate) fn place() -> ([u32; 4], u32) {
    match machine() {
        Some((machine, lane)) => {
            let inner = machine.inner.borrow();
            (inner.lanes[lane].place, inner.lanes[lane].id.lane)
        }
        None => ([0, 1, 0, 1], 0),
    }
}
