//! The costs of posting one RDMA write and of polling one completion, beside the least that they can cost.
//!
//! The rings are in plain memory, without a device. Queues are created and used through the public interface, with all
//! its checks. One sample is a lap of a ring of 4096 entries. Between samples, untimed, the bench plays the device and
//! completes what was posted. The floor of a post stores the 64 bytes of a ready-made WQE in the next slot, and rings
//! the doorbell once per batch. The floor of a poll looks at the phase bit and loads the 32 bytes of the entry.
//!
//! ```text
//! cargo bench -p efa-direct --bench post_poll                      # divan's table, then ns each and ratios
//! cargo bench -p efa-direct --bench post_poll -- --instructions    # instructions each, counted by valgrind
//! ```
//!
//! Timed loops assert that they do not allocate. They assert no time, since machines differ.

#[allow(dead_code, reason = "another bench uses the rest")]
mod plain;

use divan::Bencher;
use divan::counter::ItemsCount;
use plain::{LAP, REQUESTS, Rig, Rings};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// Counts allocations.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all calls go to the system's allocator unchanged, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of this function, which is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of this function, which is that of the system's allocator.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A case that is measured.
struct Case {
    name: &'static str,
    /// `true` for a queue with 64-bit request ids.
    req_id_64: bool,
    /// `true` if the case starts with completions in the ring; otherwise it starts with an empty ring.
    polls: bool,
    /// Runs the case: this many times, in batches of this size.
    run: fn(&mut Rig, usize, usize),
}

const fn case(name: &'static str, req_id_64: bool, polls: bool, run: fn(&mut Rig, usize, usize)) -> Case {
    Case { name, req_id_64, polls, run }
}

fn rings() -> Rings {
    Rings::private().expect("memory")
}

fn post(rig: &mut Rig, count: usize, batch: usize) {
    rig.post(count, batch).expect("the ring was drained");
}

static FLOOR_8: Case = case("floor: 8 stores of 8 bytes", false, false, Rig::floor_8);
#[cfg(target_arch = "x86_64")]
static FLOOR_16: Case = case("floor: 4 stores of 16 bytes", false, false, Rig::floor_16);
static POST_16: Case = case("post, 16-bit request ids", false, false, post);
static POST_64: Case = case("post, 64-bit request ids", true, false, post);
static POLL_FLOOR: Case = case("floor: 4 loads of 8 bytes", false, true, |rig, count, _| rig.poll_floor(count));
static POLL_ONE: Case = case("poll_one, 16-bit request ids", false, true, |rig, count, _| rig.poll_one(count));
static POLL_32: Case = case("poll of 32, 16-bit request ids", false, true, |rig, count, _| rig.poll_32(count));
static POLL_32_64: Case = case("poll of 32, 64-bit request ids", true, true, |rig, count, _| rig.poll_32(count));

/// The cases in the order of the tables. Floors come first; ratios are to the first one.
static POSTS: &[&Case] = &[
    &FLOOR_8,
    #[cfg(target_arch = "x86_64")]
    &FLOOR_16,
    &POST_16,
    &POST_64,
];
static POLLS: &[&Case] = &[&POLL_FLOOR, &POLL_ONE, &POLL_32, &POLL_32_64];

impl Case {
    fn prepare(&self, rig: &mut Rig) {
        if self.polls { rig.refill() } else { rig.drain() }
    }

    /// Runs one lap, which must not allocate.
    fn lap(&self, rig: &mut Rig, batch: usize) {
        let before = ALLOCATIONS.load(Relaxed);
        (self.run)(rig, LAP, batch);
        assert_eq!(ALLOCATIONS.load(Relaxed), before, "{}: it allocates", self.name);
    }

    fn bench(&self, bencher: Bencher<'_, '_>, batch: usize) {
        let rig = RefCell::new(Rig::new(self.req_id_64, rings()));
        bencher
            .counter(ItemsCount::new(LAP))
            .with_inputs(|| self.prepare(&mut rig.borrow_mut()))
            .bench_local_values(|()| self.lap(&mut rig.borrow_mut(), batch));
    }
}

macro_rules! benches {
    ($($name:ident: $case:expr, $batches:expr;)*) => {$(
        #[divan::bench(args = $batches, sample_size = 1, sample_count = 500)]
        fn $name(bencher: Bencher<'_, '_>, batch: usize) {
            $case.bench(bencher, batch);
        }
    )*};
}

benches! {
    post_floor: FLOOR_8, [1, 8, 32];
    post_16_bit_ids: POST_16, [1, 8, 32];
    post_64_bit_ids: POST_64, [1, 8, 32];
    poll_floor: POLL_FLOOR, [1];
    poll_one: POLL_ONE, [1];
    poll_slice: POLL_32, [32];
    poll_slice_64_bit_ids: POLL_32_64, [32];
}

/// Measures cases in turn, so that other load on the machine affects all of them. Returns median and minimum of each in
/// ns.
fn measure(cases: &[&Case], batch: usize, samples: usize) -> Vec<[f64; 2]> {
    let mut rigs = [false, true].map(|req_id_64| Rig::new(req_id_64, rings()));
    let mut times = vec![Vec::with_capacity(samples); cases.len()];
    for _ in 0..samples {
        for (case, times) in cases.iter().zip(&mut times) {
            let rig = &mut rigs[usize::from(case.req_id_64)];
            case.prepare(rig);
            let start = Instant::now();
            case.lap(rig, batch);
            times.push(start.elapsed());
        }
    }
    let each = |time: Duration| time.as_nanos() as f64 / LAP as f64;
    for times in &mut times {
        times.sort_unstable();
    }
    times.iter().map(|times| [each(times[times.len() / 2]), each(times[0])]).collect()
}

fn summary(samples: usize) {
    println!("\nns each: median (minimum) of {samples} samples of {LAP}, and the median's ratio to the first floor");
    for (what, cases, batches) in [("post", POSTS, &[1, 8, 32][..]), ("poll", POLLS, &[REQUESTS])] {
        let columns: Vec<_> = batches.iter().map(|&batch| measure(cases, batch, samples)).collect();
        let heads = batches.iter().map(|batch| format!("{:>22}", format!("batch of {batch}")));
        println!("\n{what:<32}{}", heads.collect::<String>());
        for (i, case) in cases.iter().enumerate() {
            let cell = |column: &Vec<[f64; 2]>| {
                let ([median, min], floor) = (column[i], column[0][0]);
                format!("{:>22}", format!("{median:.2} ({min:.2}) {:.2}x", median / floor))
            };
            println!("{:<32}{}", case.name, columns.iter().map(cell).collect::<String>());
        }
    }
    println!("\nThe peer of this comparison, libefa, needs its device: it comes with the verbs provider.");
}

/// Returns the instructions of a whole run of this program that runs `case` this many times.
fn count(case: &Case, times: usize) -> Result<u64, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(exe).args(["--only", case.name]);
    let output = command.arg(times.to_string()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr);
    let number = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    number.filter(|_| output.status.success()).ok_or(format!("valgrind says:\n{text}"))
}

/// Counts instructions: those of a run of `LAP` less those of a run of half as many, so that start and end cancel out.
fn instructions() -> Result<(), String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("Instructions are counted by valgrind, which is not installed here.");
        return Ok(());
    }
    println!("instructions each, in batches of {REQUESTS}, and the ratio to the first floor");
    for (what, cases) in [("post", POSTS), ("poll", POLLS)] {
        println!("\n{what}");
        let mut floor = None;
        for case in cases {
            let each = (count(case, LAP)? - count(case, LAP / 2)?) as f64 / (LAP / 2) as f64;
            println!("{:<32}{each:>8.1}{:>8.2}x", case.name, each / *floor.get_or_insert(each));
        }
    }
    Ok(())
}

/// Runs one case this many times and nothing else, for [`count`].
fn only(name: &str, times: usize) {
    for case in POSTS.iter().chain(POLLS).filter(|case| case.name == name) {
        let mut rig = Rig::new(case.req_id_64, rings());
        case.prepare(&mut rig);
        (case.run)(&mut rig, times, REQUESTS);
    }
}

fn main() -> Result<(), String> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let given = |flag: &str| args.iter().any(|arg| arg == flag);
    if let [flag, name, times] = &args[..]
        && flag == "--only"
    {
        only(name, times.parse().map_err(|e| format!("{times}: {e}"))?);
    } else if given("--instructions") {
        instructions()?;
    } else {
        divan::main();
        if !given("--list") {
            summary(if given("--test") { 1 } else { 1000 });
        }
    }
    Ok(())
}
