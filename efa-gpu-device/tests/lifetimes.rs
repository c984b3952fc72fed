//! Lifetimes: the executor stores only to memory that is still there.

use efa_gpu_device::simt::{Executor, Fault};
use efa_gpu_device::{mem, thread, warp};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const SEEDS: u64 = 200;

#[test]
fn what_a_kernel_stores_to_memory_of_its_own_is_there_before_it_can_free_it() {
    for seed in 0..SEEDS {
        let result = Executor::new(seed).launch(1, 32, || {
            let words = Box::new([const { AtomicU32::new(0) }; 64]);
            let (byte, long) = (AtomicU8::new(0), AtomicU64::new(0));
            // SAFETY: valid for writes, aligned, only accessed atomically.
            unsafe {
                words.iter().for_each(|word| mem::store_relaxed_system_u32(word.as_ptr(), 7));
                mem::store_relaxed_system_u8(byte.as_ptr(), 8);
                mem::store_release_system(long.as_ptr(), 9);
            }
            assert!(words.iter().all(|word| word.load(Relaxed) == 7));
            assert_eq!((byte.load(Relaxed), long.load(Relaxed)), (8, 9));
        });
        result.run().unwrap();
    }
}

#[test]
fn what_was_lent_has_all_stores_after_the_run_and_those_in_front_of_a_system_fence_before_what_is_behind_it() {
    let late = Cell::new(0);
    for seed in 0..SEEDS {
        let words = [const { AtomicU32::new(0) }; 16];
        let result = Executor::new(seed).lends(&words).launch(1, 1, || {
            let sum = || words.iter().map(|word| word.load(Relaxed)).sum::<u32>();
            // SAFETY: words that were lent.
            words[..8].iter().for_each(|word| unsafe { mem::store_relaxed_system_u32(word.as_ptr(), 1) });
            late.set(late.get() + u32::from(sum() != 8));
            thread::system_fence();
            // SAFETY: as above.
            words[8..].iter().for_each(|word| unsafe { mem::store_relaxed_system_u32(word.as_ptr(), 1) });
            assert!(sum() >= 8);
        });
        result.run().unwrap();
        assert!(words.iter().all(|word| word.load(Relaxed) == 1));
    }
    assert!(late.get() > 20);
}

/// A lane whose stores are under way when a fault is found, and one that catches its unwinding and goes on.
fn stores_after_a_fault(seed: u64, timeout: Duration, fault: impl Fn()) -> Fault {
    /// Takes down what is in memory when it is unwound.
    struct Unwound<'a>(&'a [AtomicU32; 16], &'a Cell<u32>);
    impl Drop for Unwound<'_> {
        fn drop(&mut self) {
            self.1.set(self.0.iter().map(|word| word.load(Relaxed)).sum());
        }
    }
    let (words, found, stored) = ([const { AtomicU32::new(0) }; 16], Cell::new(u32::MAX), Cell::new(false));
    let result = Executor::new(seed).lends(&words).timeout(timeout).launch(1, 3, || match warp::lane_id() {
        0 => {
            let _unwound = Unwound(&words, &found);
            // SAFETY: words that were lent.
            words.iter().for_each(|word| unsafe { mem::store_relaxed_system_u32(word.as_ptr(), 1) });
            stored.set(true);
            loop {
                thread::nanosleep(1000);
            }
        }
        1 => {
            while catch_unwind(AssertUnwindSafe(|| thread::nanosleep(1000))).is_ok() {}
            for _ in 0..1000 {
                // SAFETY: a word of the test.
                let _ = catch_unwind(AssertUnwindSafe(|| unsafe { mem::load_relaxed_device(words[0].as_ptr()) }));
            }
        }
        _ => {
            while !stored.get() {
                thread::nanosleep(100);
            }
            fault();
        }
    });
    let fault = result.run().unwrap_err();
    assert_eq!(found.get(), words.iter().map(|word| word.load(Relaxed)).sum(), "seed {seed}: stored after the fault");
    fault
}

#[test]
fn nothing_is_stored_after_a_fault() {
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
    for seed in 0..40 {
        let panic = stores_after_a_fault(seed, long, || panic!("a fault"));
        assert!(matches!(panic, Fault::Panicked { .. }), "{panic}");
        // SAFETY: a lie, since the others do not come.
        let exited = stores_after_a_fault(seed, long, || unsafe { warp::sync_warp(0b1111) });
        assert!(matches!(exited, Fault::NoSuchLanes { .. }), "{exited}");
    }
    for seed in 0..20 {
        let timed_out = stores_after_a_fault(seed, short, || {
            loop {
                thread::nanosleep(1_000_000);
            }
        });
        assert!(matches!(timed_out, Fault::TimedOut { .. }), "{timed_out}");
    }
}

#[test]
fn a_lane_that_is_unwound_waits_for_the_threads_that_borrow_from_it() {
    for seed in 0..20 {
        let finished = AtomicU32::new(0);
        let result = Executor::new(seed).launch(2, 2, || {
            if thread::first() {
                (0..5).for_each(|_| thread::nanosleep(100));
                panic!("a fault");
            }
            let mut written = vec![0; 100];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::yield_now();
                    written.fill(1);
                    finished.fetch_add(written.iter().sum(), Relaxed);
                });
                loop {
                    thread::nanosleep(50);
                }
            });
        });
        assert!(matches!(result.run(), Err(Fault::Panicked { .. })));
        assert_eq!(finished.load(Relaxed) % 100, 0);
    }
}
