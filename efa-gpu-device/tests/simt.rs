//! The executor itself: lanes meet as on a GPU, or a fault says why not; seeds repeat runs; stores become visible as
//! fences say.

use efa_gpu_device::simt::{Executor, Fault, LaneId, Primitive, Stats, Waiting};
use efa_gpu_device::{globaltimer, mem, thread, warp};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

const SEEDS: u64 = 50;

/// A lane of launch 0, block 0.
fn lane(warp: u32, lane: u32) -> LaneId {
    LaneId { launch: 0, block: 0, warp, lane }
}

fn waiting(id: LaneId, primitive: Primitive, mask: u32) -> Waiting {
    Waiting { lane: id, primitive, mask }
}

/// What comes of one block that runs `kernel`, by each seed.
fn faults(threads: u32, kernel: impl Fn(u32)) -> Vec<Fault> {
    let run = |seed| Executor::new(seed).launch(1, threads, || kernel(thread::thread_idx_x())).run();
    (0..SEEDS).map(|seed| run(seed).expect_err("a fault")).collect()
}

fn ballot(mask: u32, vote: bool) -> u32 {
    // SAFETY: the executor says if the lanes do not come.
    unsafe { warp::warp_vote_ballot(mask, vote) }
}

fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    // SAFETY: as above.
    unsafe { warp::warp_shuffle_idx(mask, value, from) }
}

fn sync_warp(mask: u32) {
    // SAFETY: as above.
    unsafe { warp::sync_warp(mask) }
}

/// What a lane votes, says and asks in a round.
fn says(round: u32, lane: u32) -> (bool, u32) {
    let mixed = (round * 32 + lane + 1).wrapping_mul(0x9e37_79b9);
    (mixed >> 31 != 0, mixed >> 3)
}

fn sync_threads() {
    // SAFETY: the executor says if not all threads come.
    unsafe { thread::sync_threads() };
}

#[test]
fn ballots_and_shuffles_give_what_the_lanes_of_the_mask_have() {
    for seed in 0..SEEDS {
        let rounds = Cell::new(0);
        Executor::new(seed)
            .launch(2, 96, || {
                let me = warp::lane_id();
                for round in 0..20 {
                    // Another partition of the warp in each round.
                    let group = |lane: u32| says(round / 2, lane).1 % 3;
                    let mask = (0..32).filter(|&other| group(other) == group(me)).fold(0, |mask, i| mask | 1 << i);
                    let votes = (0..32).filter(|&i| mask >> i & 1 != 0 && says(round, i).0);
                    assert_eq!(ballot(mask, says(round, me).0), votes.fold(0, |votes, i| votes | 1 << i));
                    // Each wants another lane's.
                    let from =
                        (0..32).cycle().skip(says(round, me).1 as usize % 32).find(|i| mask >> i & 1 != 0).unwrap();
                    assert_eq!(shuffle(mask, says(round, me).1, from), says(round, from).1);
                    rounds.set(rounds.get() + 1);
                }
            })
            .run()
            .unwrap();
        assert_eq!(rounds.get(), 2 * 96 * 20);
    }
}

#[test]
fn lanes_of_one_mask_may_come_from_different_places_in_the_code_at_any_time() {
    for seed in 0..SEEDS {
        let result = Executor::new(seed).launch(1, 32, || {
            let me = warp::lane_id();
            // Pairs, in chains: each lane waits for its left neighbour first, then for its right one.
            if me > 0 {
                assert_eq!(ballot(0b11 << (me - 1), me & 1 == 0).count_ones(), 1);
            }
            if me < 31 {
                assert_eq!(ballot(0b11 << me, me & 1 == 0).count_ones(), 1);
            }
        });
        result.run().unwrap();
    }
}

#[test]
fn a_block_waits_for_all_of_its_threads_round_after_round() {
    for seed in 0..SEEDS {
        let arrived = [Cell::new(0), Cell::new(0)];
        let result = Executor::new(seed).launch(2, 70, || {
            let arrived = &arrived[thread::block_idx_x() as usize];
            for round in 1..=5 {
                arrived.set(arrived.get() + 1);
                sync_threads();
                assert_eq!(arrived.get(), round * 70);
                sync_threads();
            }
        });
        assert_eq!(result.run().unwrap().meetings, 2 * 10);
    }
}

#[test]
fn threads_know_their_place_and_a_last_warp_has_fewer_lanes() {
    let seen = RefCell::new(BTreeSet::new());
    let result = Executor::new(3).launch(3, 40, || {
        let place = [thread::block_idx_x(), thread::grid_dim_x(), thread::thread_idx_x(), thread::block_dim_x()];
        assert_eq!((place[1], place[3], warp::lane_id()), (3, 40, place[2] % 32));
        let mask = if place[2] < 32 { warp::ALL } else { 0xff };
        assert_eq!(ballot(mask, true), mask);
        seen.borrow_mut().insert(thread::index_1d());
    });
    result.run().unwrap();
    assert!(seen.into_inner().into_iter().eq(0..120));
}

#[test]
fn a_seed_repeats_a_run_and_others_differ() {
    let run = |seed| -> (Stats, Vec<u32>) {
        let (words, order) = ([const { AtomicU64::new(0) }; 2], RefCell::new(Vec::new()));
        let kernel = || {
            for i in 0..5 {
                // SAFETY: a word that lives long enough.
                unsafe { mem::store_release_system(words[0].as_ptr(), i) };
                order.borrow_mut().push(thread::index_1d());
                thread::nanosleep(100);
                warp::activemask();
                globaltimer();
            }
            sync_warp(warp::ALL);
        };
        let stats = Executor::new(seed).launch(2, 64, kernel).launch(1, 32, kernel).run().unwrap();
        (stats, order.into_inner())
    };
    let runs: Vec<_> = (0..SEEDS).map(run).collect();
    assert_eq!(runs, (0..SEEDS).map(run).collect::<Vec<_>>());
    assert_eq!(runs.iter().map(|(stats, _)| stats.schedule).collect::<BTreeSet<_>>().len(), SEEDS as usize);
    assert_eq!(runs.into_iter().map(|(_, order)| order).collect::<BTreeSet<_>>().len(), SEEDS as usize);
}

#[test]
fn activemask_gives_this_lane_and_others_that_get_the_same() {
    let sizes = RefCell::new(BTreeSet::new());
    for seed in 0..SEEDS {
        let result = Executor::new(seed).launch(1, 32, || {
            let mask = warp::activemask();
            assert!(mask >> warp::lane_id() & 1 != 0);
            // What people do with it.
            assert_eq!(ballot(mask, true), mask);
            assert_eq!(shuffle(mask, mask, mask.trailing_zeros()), mask);
            sizes.borrow_mut().insert(mask.count_ones());
        });
        result.run().unwrap();
    }
    assert!(sizes.borrow().contains(&1) && sizes.borrow().iter().any(|&size| size > 8), "{sizes:?}");
}

#[test]
fn a_lane_that_is_not_in_its_own_mask_is_a_fault() {
    for fault in faults(32, |i| _ = ballot(if i == 5 { 0b1 } else { 1 << i }, true)) {
        assert_eq!(fault, Fault::NotInMask(waiting(lane(0, 5), Primitive::Ballot, 1)));
        assert_eq!(
            fault.to_string(),
            "launch 0, block 0, warp 0, lane 5 at ballot of mask 0x00000001, which is not in it"
        );
    }
}

#[test]
fn lanes_that_the_warp_does_not_have_are_a_fault() {
    for fault in faults(40, |i| sync_warp(if i == 33 { warp::ALL } else { 1 << (i % 32) })) {
        let waiting = waiting(lane(1, 1), Primitive::SyncWarp, warp::ALL);
        assert_eq!(fault, Fault::NoSuchLanes { waiting, lanes: 0xff });
    }
}

#[test]
fn a_lane_that_has_returned_is_not_waited_for() {
    let mut orders = BTreeSet::new();
    for fault in faults(32, |i| {
        if i != 7 {
            _ = ballot(warp::ALL, true)
        }
    }) {
        let Fault::Exited { waiting, exited } = &fault else { panic!("{fault}") };
        assert_eq!((waiting.mask, waiting.primitive, *exited), (warp::ALL, Primitive::Ballot, lane(0, 7)));
        orders.insert(waiting.lane.lane);
    }
    assert!(orders.len() > 1, "whoever notices first");
}

#[test]
fn lanes_that_wait_for_each_other_in_different_places_are_a_fault() {
    for (mask, primitive) in [(0b111, Primitive::Shuffle), (0b11, Primitive::Ballot)] {
        let kernel = |i| match (i, primitive) {
            (0, Primitive::Shuffle) => _ = shuffle(mask, 0, 0),
            (0 | 1, _) => _ = ballot(if i == 0 { mask } else { 0b111 }, true),
            _ => {}
        };
        for fault in faults(2, kernel) {
            // Lane 2 is not there at all.
            assert!(matches!(fault, Fault::NoSuchLanes { .. }), "{fault}");
        }
        for fault in faults(3, kernel) {
            let Fault::Diverged { one, other } = fault else {
                assert!(matches!(fault, Fault::Exited { exited: LaneId { lane: 2, .. }, .. }), "{fault}");
                continue;
            };
            let mut both = [one, other];
            both.sort_by_key(|waiting| waiting.lane.lane);
            assert_eq!(both[0], waiting(lane(0, 0), primitive, mask));
            assert_eq!(both[1], waiting(lane(0, 1), Primitive::Ballot, 0b111));
        }
    }
}

#[test]
fn a_shuffle_from_outside_the_mask_is_a_fault() {
    for from in [2, 32] {
        for fault in faults(4, |i| {
            if i < 2 {
                _ = shuffle(0b11, 0, if i == 0 { from } else { 0 })
            }
        }) {
            let waiting = waiting(lane(0, 0), Primitive::Shuffle, 0b11);
            assert_eq!(fault, Fault::ShuffleFrom { waiting, from });
        }
    }
}

#[test]
fn a_block_barrier_that_a_thread_never_reaches_is_a_fault() {
    for fault in faults(64, |i| {
        if i != 40 {
            sync_threads()
        }
    }) {
        let Fault::Exited { waiting, exited } = &fault else { panic!("{fault}") };
        assert_eq!((waiting.primitive, *exited), (Primitive::SyncThreads, lane(1, 8)));
    }
    // Half a warp waits for the other half, which waits for the block.
    for fault in faults(64, |i| if i < 16 { sync_warp(warp::ALL) } else { sync_threads() }) {
        let Fault::Diverged { one, other } = fault else { panic!("{fault}") };
        let both = [one, other].map(|waiting| (waiting.primitive, waiting.lane.lane < 16 && waiting.lane.warp == 0));
        assert!(both.contains(&(Primitive::SyncWarp, true)) && both.contains(&(Primitive::SyncThreads, false)));
    }
}

#[test]
fn a_circle_of_lanes_that_wait_is_a_fault_even_if_others_go_on() {
    for seed in 0..SEEDS {
        let result = Executor::new(seed)
            .launch(1, 4, || match warp::lane_id() {
                3 => {}
                i => _ = ballot(1 << i | 1 << ((i + 1) % 3), true),
            })
            .launch(1, 1, || {
                loop {
                    thread::nanosleep(1000);
                }
            });
        let Err(Fault::Deadlock(circle)) = result.run() else { panic!("lanes wait in a circle") };
        assert_eq!(circle.len(), 3);
        for (i, waiting) in circle.iter().enumerate() {
            assert!(waiting.mask >> circle[(i + 1) % 3].lane.lane & 1 != 0, "{circle:?}");
        }
    }
}

#[test]
fn a_panic_of_a_lane_is_a_fault_and_all_others_are_unwound() {
    struct Counted<'a>(&'a Cell<u32>);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
            // What a destructor does together, it does alone now, and nobody waits.
            sync_warp(warp::ALL);
            sync_threads();
            thread::nanosleep(1000);
            let word = AtomicU32::new(1);
            // SAFETY: a word of its own.
            assert_eq!(unsafe { mem::fetch_add_device(word.as_ptr(), 1) }, 1);
            assert!(thread::thread_idx_x() < 64);
        }
    }
    for seed in 0..SEEDS {
        let alive = Cell::new(0);
        let result = Executor::new(seed).launch(2, 64, || {
            alive.set(alive.get() + 1);
            let _counted = Counted(&alive);
            thread::nanosleep(500);
            assert!(thread::index_1d() != 77, "this is lane {}", warp::lane_id());
            sync_threads();
        });
        let message = "this is lane 13".to_string();
        assert_eq!(result.run(), Err(Fault::Panicked { lane: LaneId { block: 1, ..lane(0, 13) }, message }));
        assert_eq!(alive.get(), 0);
    }
}

#[test]
fn a_run_that_takes_too_long_says_what_its_lanes_are_at() {
    let word = AtomicU64::new(0);
    let result = Executor::new(1)
        .timeout(Duration::from_millis(20))
        .launch(1, 32, || if warp::lane_id() != 0 { sync_warp(warp::ALL) } else { spin_until(&word, 1) })
        .launch(1, 2, || {});
    let Err(fault) = result.run() else { panic!("it goes on for ever") };
    assert_eq!(
        fault.to_string(),
        "not over after 20ms: launch 0: 1 lanes at a load; launch 0: 31 lanes at sync_warp; launch 1: 2 lanes at the end"
    );
}

fn spin_until(word: &AtomicU64, value: u64) {
    // SAFETY: a word that lives long enough.
    while unsafe { mem::load_acquire_system(word.as_ptr()) } < value {}
}

#[test]
fn other_threads_get_on_while_lanes_only_look() {
    for seed in 0..SEEDS {
        let words = [const { AtomicU64::new(0) }; 2];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..20 {
                    while words[0].load(Ordering::Acquire) != i {
                        std::thread::yield_now();
                    }
                    words[1].store(i, Ordering::Release);
                }
            });
            let result = Executor::new(seed).launch(2, 33, || {
                for i in 1..20 {
                    if thread::first() {
                        // SAFETY: a word that lives long enough.
                        unsafe { mem::store_release_system(words[0].as_ptr(), i) };
                    }
                    if thread::thread_idx_x() == 0 {
                        spin_until(&words[1], i);
                    }
                    sync_threads();
                }
            });
            result.run().unwrap();
        });
    }
}

#[test]
fn time_passes_without_being_waited_for() {
    let result = Executor::new(1).launch(1, 32, || {
        let start = globaltimer();
        for _ in 0..100 {
            thread::nanosleep(100_000);
        }
        assert!(globaltimer() - start >= 10_000_000);
    });
    assert!(result.run().unwrap().nanoseconds >= 10_000_000);
}

#[test]
fn an_executor_inside_a_kernel_is_refused() {
    let result = Executor::new(1).launch(1, 1, || _ = Executor::new(1).launch(1, 1, || {}).run());
    let Err(Fault::Panicked { message, .. }) = result.run() else { panic!("a run inside a run") };
    assert_eq!(message, "an executor cannot run inside a kernel");
    assert_eq!(Executor::new(1).run(), Ok(Stats::default()), "nothing to run is no fault");
}

#[test]
fn alone_on_a_thread_lane_0_is_all_there_is() {
    assert_eq!((thread::index_1d(), thread::block_dim_x(), warp::lane_id(), warp::activemask()), (0, 1, 0, 1));
    assert_eq!((ballot(1, true), shuffle(1, 7, 0)), (1, 7));
    sync_threads();
    let panic = std::panic::catch_unwind(|| sync_warp(warp::ALL)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("sync_warp of lanes 0xffffffff") && message.contains("simt::Executor"), "{message}");
}
