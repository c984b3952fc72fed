//! Traffic by kernels in the executor: sends, writes, reads and immediates between two nodes, posted by a thread, a
//! warp or many warps.

use efa_direct::cuda::Mappable;
use efa_direct::{GpuSendQueue, QpConfig};
use efa_io::{SendRingHandle, SendWqe, Wqe};
use efa_tests::traffic::{Mix, Nodes, OnExecutor, Place, Poster, Traffic};

const MIX: Mix = Mix { jobs: 120, rarely: 50, long: 40_000 };

fn rounds<const W: usize>(devices: [&str; 2], config: QpConfig<W>, poster: Poster, seed: u64)
where
    Wqe<W>: SendWqe,
    GpuSendQueue<W>: Mappable<Handle = SendRingHandle>,
{
    let mut nodes = Nodes::new(devices, config, [64, 32], 200_000, None, Place::Host);
    let mut machine = OnExecutor::new(seed);
    let mut traffic = Traffic::new(&mut machine, nodes.ends(), seed);
    // Enough rounds for the ring to wrap several times.
    for _ in 0..40 {
        traffic.round(poster, MIX);
    }
    println!("{poster:?}: {} operations, {} bytes", traffic.done, traffic.moved);
    nodes.take_back(&traffic.into_ends());
}

#[test]
fn what_a_thread_posts_arrives() {
    rounds(["soft80", "soft81"], QpConfig::new(64, 32), Poster::Thread, 1);
}

#[test]
fn what_a_thread_posts_in_wide_entries_arrives() {
    rounds(["soft82", "soft83"], QpConfig::new(64, 32).wqe_128(), Poster::Wide, 2);
}

#[test]
fn what_a_warp_posts_arrives() {
    rounds(["soft84", "soft85"], QpConfig::new(64, 32), Poster::Warp, 3);
}

#[test]
fn what_many_warps_post_to_one_queue_arrives() {
    rounds(["soft86", "soft87"], QpConfig::new(64, 32), Poster::Many(2, 2), 4);
}
