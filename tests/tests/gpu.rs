//! Traffic by kernels on a GPU, a million operations each: between two nodes on software devices, and on the NIC that
//! is a kernel itself. `cargo xtask gpu` compiles the kernels and runs these tests.

use efa_direct::cuda::Gpu;
use efa_direct::{Device, QpConfig};
use efa_tests::traffic::{KernelNic, Mix, Nodes, OnGpu, Place, Poster, Traffic, kernels};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Jobs of small and random sizes, and rarely one of a megabyte.
const MIX: Mix = Mix { jobs: 4096, rarely: 2000, long: 1 << 20 };
const AREA: usize = 24 << 20;
const POSTERS: [Poster; 3] = [Poster::Thread, Poster::Warp, Poster::Many(3, 3)];

/// Serializes the tests: each needs the GPU for itself.
fn gpu() -> (Gpu, MutexGuard<'static, ()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    (Gpu::open(0).expect("a GPU"), one)
}

/// Returns the number of operations of a test: a million, or the value of `EFA_GPU_OPS`.
fn operations() -> u64 {
    std::env::var("EFA_GPU_OPS").ok().and_then(|ops| ops.parse().ok()).unwrap_or(1_000_000)
}

fn run(traffic: &mut Traffic<'_>, posters: &[Poster], mix: Mix, operations: u64, what: &str) {
    let start = Instant::now();
    let (done, moved) = (traffic.done, traffic.moved);
    let mut round = 0;
    while traffic.done - done < operations {
        traffic.round(posters[round % posters.len()], mix);
        round += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what}: {} operations, {} MB, every byte as it should be, in {seconds:.1} s",
        traffic.done - done,
        (traffic.moved - moved) / 1_000_000
    );
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo xtask gpu"]
fn a_million_operations_between_software_devices() {
    let (gpu, _one) = gpu();
    let mut machine = OnGpu::new(&gpu, Duration::from_secs(20));
    let mut nodes =
        Nodes::new(["soft0", "soft1"], QpConfig::new(1024, 1024), [1024, 1024], AREA, Some(&gpu), Place::Host);
    let mut traffic = Traffic::new(&mut machine, nodes.ends(), 1);
    run(&mut traffic, &POSTERS, MIX, operations(), "software devices, packets reordered");
    let port = Device::open("soft0").unwrap().soft_device().expect("a software device");
    port.change_link(&mut |link| link.loss = 0.02);
    run(&mut traffic, &POSTERS, MIX, operations() / 20, "the same with 2% of the packets lost");
    port.change_link(&mut |link| link.loss = 0.0);
    nodes.take_back(&traffic.into_ends());
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo xtask gpu"]
fn wide_entries_between_software_devices() {
    let (gpu, _one) = gpu();
    let mut machine = OnGpu::new(&gpu, Duration::from_secs(20));
    let config = QpConfig::new(256, 256).wqe_128();
    let mut nodes = Nodes::new(["soft2", "soft3"], config, [256, 256], AREA, Some(&gpu), Place::Host);
    let mut traffic = Traffic::new(&mut machine, nodes.ends(), 2);
    run(&mut traffic, &[Poster::Wide], MIX, operations() / 10, "software devices, 128-byte WQEs");
    nodes.take_back(&traffic.into_ends());
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo xtask gpu"]
fn payload_in_gpu_memory_between_software_devices() {
    let (gpu, _one) = gpu();
    let mut machine = OnGpu::new(&gpu, Duration::from_secs(60));
    let mut nodes = Nodes::new(["soft4", "soft5"], QpConfig::new(64, 64), [64, 64], 1 << 20, Some(&gpu), Place::Gpu);
    let mut traffic = Traffic::new(&mut machine, nodes.ends(), 3);
    let mix = Mix { jobs: 500, rarely: 200, long: 100_000 };
    run(&mut traffic, &POSTERS, mix, operations() / 100, "software devices, payload in GPU memory");
    nodes.take_back(&traffic.into_ends());
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo xtask gpu"]
fn a_million_operations_through_the_nic_that_is_a_kernel() {
    let (gpu, _one) = gpu();
    let mut machine = OnGpu::new(&gpu, Duration::from_secs(20));
    let module = kernels(&gpu);
    for (seed, wide, share) in [(0, false, 2), (7, false, 2), (8, true, 10)] {
        let mut world = KernelNic::start([&gpu, &gpu], &module, seed, wide, [1024, 1024], AREA as u64);
        let mut traffic = Traffic::new(&mut machine, world.ends(), seed);
        let order = if seed == 0 { "in order" } else { "reordered" };
        let (posters, entries) = if wide { (&[Poster::Wide][..], 128) } else { (&POSTERS[..], 64) };
        run(&mut traffic, posters, MIX, operations() / share, &format!("NIC kernel, {entries}-byte WQEs, {order}"));
        // Freeing memory waits until all kernels have ended.
        let ends = traffic.into_ends();
        world.stop();
        drop(ends);
    }
}

#[test]
#[ignore = "needs two NVIDIA GPUs that reach each other: cargo xtask gpu"]
fn the_nic_moves_bytes_between_two_gpus() {
    let (gpu, _one) = gpu();
    let Ok(far) = Gpu::open(1) else { return println!("there is one GPU: not run") };
    gpu.enable_peer_access(&far).expect("they reach each other");
    let mut machine = OnGpu::new(&gpu, Duration::from_secs(20));
    let mut world = KernelNic::start([&gpu, &far], &kernels(&gpu), 9, false, [1024, 1024], AREA as u64);
    let mut traffic = Traffic::new(&mut machine, world.ends(), 9);
    run(&mut traffic, &POSTERS, MIX, operations() / 5, "NIC kernel, from one GPU to another and back");
    let ends = traffic.into_ends();
    world.stop();
    drop(ends);
}
