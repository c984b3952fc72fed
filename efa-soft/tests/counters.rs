//! Completion counters: what they count, where they are, and when they can be attached.

mod common;

use common::activate;
use common::world::*;
use efa_io::*;
use efa_memory::RingMemory;
use efa_soft::*;
use std::sync::Arc;

const KINDS: [CounterOps; 6] = [
    CounterOps::SEND,
    CounterOps::RECV,
    CounterOps::RDMA_READ,
    CounterOps::REMOTE_RDMA_READ,
    CounterOps::RDMA_WRITE,
    CounterOps::REMOTE_RDMA_WRITE,
];

struct Counter {
    id: u32,
    memory: Arc<RingMemory>,
    /// The places of its completions and its errors.
    offsets: [usize; 2],
}

/// Returns a counter's completions and errors.
fn value(counter: &Counter) -> (u64, u64) {
    let [completions, errors] = counter.offsets.map(|offset| counter.memory.load_word(offset));
    (completions, errors)
}

fn try_create(world: &mut World, host: usize, offsets: [usize; 2]) -> Result<Counter, ControlError> {
    let memory = RingMemory::zeroed(4096).unwrap();
    let [completions, errors] = offsets.map(|offset| CounterPlace::Shared(memory.clone(), offset));
    let id = world.device(host).create_counter(completions, errors)?;
    Ok(Counter { id, memory, offsets })
}

fn create(world: &mut World, host: usize) -> Counter {
    try_create(world, host, [0, 64]).unwrap()
}

/// Gives a host another first queue pair, with a counter for each of these sets of kinds.
fn attach<const N: usize>(world: &mut World, host: usize, ops: [CounterOps; N]) -> [Counter; N] {
    let qp = world.create_qp(host, |_| ());
    let counters = ops.map(|ops| {
        let counter = create(world, host);
        world.device(host).attach_counter(qp.qpn(), counter.id, ops).unwrap();
        counter
    });
    activate(world.device(host), qp.qpn());
    world.hosts[host].qp = qp;
    counters
}

#[test]
fn each_kind_is_counted_for_itself_and_errors_apart() {
    let mut world = World::with(|setup| setup.qp.rnr_retry = Some(0));
    let (a, b) = (attach(&mut world, A, KINDS), attach(&mut world, B, KINDS));
    let values = |counters: &[Counter; 6]| counters.each_ref().map(value);
    for _ in 0..3 {
        world.receive(B, 8);
    }
    let immediate = wqe(RdmaWrite::new(world.local(A, 8), world.remote(B)).imm(1), world.to(A, B));
    let no_key = RemoteBuf { rkey: world.remote(B).rkey ^ 1, ..world.remote(B) };
    let bad_write = wqe(RdmaWrite::new(world.local(A, 8), no_key), world.to(A, B));
    let bad_read = wqe(RdmaRead::new(world.local(A, 8), no_key), world.to(A, B));
    let good = [world.send(A, B, 8), world.write(A, B, 8), world.write(A, B, 8), world.read(A, B, 8), immediate];
    for wqe in good {
        assert_eq!(world.status_of(A, wqe), Status::Ok);
    }
    assert_eq!(values(&a), [(1, 0), (0, 0), (1, 0), (0, 0), (3, 0), (0, 0)]);
    assert_eq!(values(&b), [(0, 0), (2, 0), (0, 0), (1, 0), (0, 0), (3, 0)]);
    let too_long = world.send(A, B, 9); // for the receive that is left
    for wqe in [bad_write, bad_read, too_long] {
        assert!(!world.status_of(A, wqe).is_ok());
    }
    assert_eq!(values(&a), [(1, 1), (0, 0), (1, 1), (0, 0), (3, 1), (0, 0)]);
    // The device has no event for a peer's operation that it refuses.
    assert_eq!(values(&b), [(0, 0), (2, 1), (0, 0), (1, 0), (0, 0), (3, 0)]);
    assert_eq!(world.hosts[A].cq.drain().len() + world.hosts[B].cq.drain().len(), 3, "entries are written as ever");
}

#[test]
fn a_counter_of_several_kinds_and_queue_pairs_counts_all_of_them_together() {
    let mut world = World::pair();
    let counter = create(&mut world, A);
    let mut qps = [world.create_qp(A, |_| ()), world.create_qp(A, |_| ())];
    for qp in &qps {
        world.device(A).attach_counter(qp.qpn(), counter.id, CounterOps::RDMA_WRITE | CounterOps::RDMA_READ).unwrap();
        activate(world.device(A), qp.qpn());
    }
    let wqes = [world.write(A, B, 8), world.read(A, B, 8)];
    for qp in &mut qps {
        for wqe in wqes {
            qp.put(wqe);
        }
        qp.ring();
    }
    for _ in 0..4 {
        assert_eq!(world.completion(A).status, Status::Ok);
    }
    assert_eq!(value(&counter), (4, 0));
    let used = world.device(A).destroy_counter(counter.id);
    assert!(matches!(used, Err(ControlError::InUse { users: 4, .. })), "{used:?}");
    for qp in qps {
        assert!(world.device(A).destroy_counter(counter.id).is_err());
        world.device(A).destroy_qp(qp.qpn()).unwrap();
    }
    world.device(A).destroy_counter(counter.id).unwrap();
    assert!(matches!(world.device(A).destroy_counter(counter.id), Err(ControlError::NoSuch { .. })));
}

#[test]
fn a_counter_wraps_after_31_bits() {
    let mut world = World::pair();
    let [counter] = attach(&mut world, A, [CounterOps::RDMA_WRITE]);
    world.device(A).set_counter(counter.id, CounterValue::Completions, COUNTER_MAX).unwrap();
    world.device(A).set_counter(counter.id, CounterValue::Errors, COUNTER_MAX + 7).unwrap();
    assert_eq!(value(&counter), (COUNTER_MAX, 6));
    let write = world.write(A, B, 8);
    assert_eq!(world.status_of(A, write), Status::Ok);
    assert_eq!(value(&counter), (0, 6));
    world.device(A).add_to_counter(counter.id, CounterValue::Completions, COUNTER_MAX + 5).unwrap();
    assert_eq!(value(&counter), (4, 6));
}

#[test]
fn a_counter_is_attached_in_time_for_kinds_that_have_none() {
    let mut world = World::pair();
    let counter = create(&mut world, A);
    let attach = |world: &mut World, qp: &Qp, ops| world.device(A).attach_counter(qp.qpn(), counter.id, ops);
    let qp = world.create_qp(A, |_| ());
    for no_kinds in [0, 1 << 6, u32::MAX] {
        let refused = attach(&mut world, &qp, CounterOps::from_bits(no_kinds));
        assert!(matches!(refused, Err(ControlError::Invalid { .. })), "{no_kinds:#x}");
    }
    assert_eq!(attach(&mut world, &qp, CounterOps::SEND | CounterOps::RECV), Ok(()));
    let overlap = attach(&mut world, &qp, CounterOps::RECV | CounterOps::RDMA_READ);
    assert!(matches!(overlap, Err(ControlError::CounterAttached { kinds: 1, .. })));
    world.device(A).modify_qp(qp.qpn(), QpState::Init, Some(QKEY)).unwrap();
    assert_eq!(attach(&mut world, &qp, CounterOps::RDMA_READ), Ok(()), "what was refused changed nothing");
    world.device(A).modify_qp(qp.qpn(), QpState::ReadyToReceive, None).unwrap();
    let late = attach(&mut world, &qp, CounterOps::RDMA_WRITE);
    assert_eq!(
        late,
        Err(ControlError::TooLate { what: "counters are attached in Reset or Init", state: QpState::ReadyToReceive })
    );
    let nobody = world.device(A).attach_counter(qp.qpn(), counter.id + 1, CounterOps::RDMA_WRITE);
    assert!(matches!(nobody, Err(ControlError::NoSuch { kind: "completion counter", .. })));
}

#[test]
fn a_counter_is_kept_wherever_the_program_says() {
    let mut world = World::pair();
    for offsets in [[4, 8], [0, 12], [4096, 0], [0, 4096], [usize::MAX - 7, 0]] {
        let refused = try_create(&mut world, A, offsets).err();
        assert!(matches!(refused, Some(ControlError::Invalid { .. })), "{offsets:?}");
    }
    let counter = try_create(&mut world, A, [4088, 16]).unwrap();
    let memory = counter.memory.clone();
    let qp = world.create_qp(A, |_| ());
    world.device(A).attach_counter(qp.qpn(), counter.id, CounterOps::RDMA_WRITE).unwrap();
    activate(world.device(A), qp.qpn());
    world.hosts[A].qp = qp;
    memory.store_word(24, 99);
    let nowhere = Destination { ah: 0, ..world.to(A, B) };
    let [write, send]: [Wqe64; 2] =
        [wqe(RdmaWrite::new(world.local(A, 8), world.remote(B)), nowhere), wqe(SendInline::new(b"x"), nowhere)];
    for wqe in [write, send] {
        assert_eq!(world.status_of(A, wqe), Status::InvalidAh);
    }
    assert_eq!(value(&counter), (0, 1), "a send is not counted here");
    let write = world.write(A, B, 8);
    assert_eq!(world.status_of(A, write), Status::Ok);
    assert_eq!([16, 24, 4088].map(|offset| memory.load_word(offset)), [1, 99, 1]);
}

#[test]
fn a_device_has_so_many_counters_and_no_more() {
    let mut world = World::with(|setup| setup.device.attributes.max_counters = 2);
    let first = create(&mut world, A);
    create(&mut world, A);
    assert!(matches!(try_create(&mut world, A, [0, 64]), Err(ControlError::Limit { asked: 3, max: 2, .. })));
    world.device(A).destroy_counter(first.id).unwrap();
    assert_ne!(create(&mut world, A).id, first.id);
}
