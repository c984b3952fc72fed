//! Tests of the handles on a fake library's devices: what each handle keeps, and for how long, whatever goes wrong.

mod fake;

use efa_sys::sys::*;
use efa_sys::*;
use fake::{ObjectCounts, contexts, object_counts, refuse};
use std::any::Any;
use std::fs::File;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// A subscriber that panics at every event.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        panic!("nothing may be logged in this test")
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Drops an object that cannot be destroyed, which logs an error. With `panics`, the subscriber panics at it. Returns
/// `true` if it panicked.
fn drop_under(panics: bool, what: impl Sized) -> bool {
    if !panics {
        drop(what);
        return false;
    }
    tracing::subscriber::with_default(Panics, || catch_unwind(AssertUnwindSafe(|| drop(what)))).is_err()
}

/// Returns memory, and a weak reference that shows whether it has been freed.
fn memory() -> (Arc<dyn Any + Send + Sync>, Weak<dyn Any + Send + Sync>) {
    let memory: Arc<dyn Any + Send + Sync> = Arc::new([0u64; 16]);
    let weak = Arc::downgrade(&memory);
    (memory, weak)
}

fn device() -> Arc<Context> {
    let [context, _] = contexts();
    Arc::new(context)
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

fn external_cq(context: &Arc<Context>, owner: Arc<dyn Any + Send + Sync>) -> Cq {
    let (null, owner) = (null(), Some(owner));
    let ring = ExternalRing { fd: null.as_fd(), offset: 0, len: 4096, buffer: None, owner };
    Cq::create(context, &CqAttr { entries: 128, external: Some(ring), ..CqAttr::default() }).unwrap()
}

fn qp_attr() -> QpAttr {
    let send_ops = IBV_QP_EX_WITH_SEND.into();
    QpAttr { send_wr: 8, recv_wr: 8, send_sge: 1, recv_sge: 1, send_ops, ..QpAttr::default() }
}

#[test]
fn what_is_dropped_is_destroyed_and_lets_go_of_what_it_was_made_of() {
    let context = device();
    let (ring, ring_is) = memory();
    let (word, word_is) = memory();
    let pd = Arc::new(Pd::alloc(&context).unwrap());
    let channel = Arc::new(CompChannel::create(&context).unwrap());
    let attr = CqAttr { entries: 128, channel: Some(&channel), ..CqAttr::default() };
    let (cq, external) = (Arc::new(Cq::create(&context, &attr).unwrap()), Arc::new(external_cq(&context, ring)));
    let counter = Arc::new(CompCounter::create_in(&context, null().as_fd(), 0, 64, Some(word)).unwrap());
    let qp = Qp::create(&pd, &cq, &external, &qp_attr()).unwrap();
    qp.attach_counter(&counter, IBV_QP_ATTACH_COMP_CNTR_OP_SEND).unwrap();
    let mr = Mr::register_dmabuf(&pd, null().as_fd(), 0, 4096, 0x10000, 0).unwrap();
    let ah = Ah::create(&pd, [1; 16]).unwrap();
    let all = ObjectCounts { pds: 1, mrs: 1, ahs: 1, cqs: 2, qps: 1, counters: 1, channels: 1, twice: 0 };
    // In the reverse order of what the kernel allows: each handle keeps what it uses.
    drop((pd, channel, cq, external, counter));
    assert_eq!(object_counts(&context), all);
    drop((mr, ah));
    assert_eq!(object_counts(&context), ObjectCounts { mrs: 0, ahs: 0, ..all });
    assert!(ring_is.upgrade().is_some() && word_is.upgrade().is_some());
    drop(qp);
    assert_eq!(object_counts(&context), ObjectCounts::default());
    assert!(ring_is.upgrade().is_none() && word_is.upgrade().is_none());
    assert_eq!(Arc::strong_count(&context), 1);
}

#[test]
fn what_cannot_be_destroyed_keeps_its_memory_and_its_device_for_good_even_if_logging_that_panics() {
    for panics in [false, true] {
        for errno in [libc::EBUSY, libc::EIO, libc::ENODEV] {
            let context = device();
            let (ring, ring_is) = memory();
            let (word, word_is) = memory();
            let (cq, counter) = (external_cq(&context, ring), {
                CompCounter::create_in(&context, null().as_fd(), 0, 64, Some(word)).unwrap()
            });
            refuse(&context, errno);
            assert_eq!([drop_under(panics, cq), drop_under(panics, counter)], [panics; 2]);
            assert!(ring_is.upgrade().is_some() && word_is.upgrade().is_some(), "the device may go on writing there");
            assert_eq!(object_counts(&context), ObjectCounts { cqs: 1, counters: 1, ..ObjectCounts::default() });
            assert_eq!(Arc::strong_count(&context), 3, "an open device is what they are made of");
        }
    }
}

#[test]
fn what_something_is_made_of_is_not_even_tried_to_be_destroyed_if_that_cannot_be() {
    for panics in [false, true] {
        let context = device();
        let (ring, ring_is) = memory();
        let (word, word_is) = memory();
        let (pd, cq) = (Arc::new(Pd::alloc(&context).unwrap()), Arc::new(external_cq(&context, ring)));
        let counter = CompCounter::create_in(&context, null().as_fd(), 0, 64, Some(word)).unwrap();
        let counter = Arc::new(counter);
        let qp = Qp::create(&pd, &cq, &cq, &qp_attr()).unwrap();
        qp.attach_counter(&counter, IBV_QP_ATTACH_COMP_CNTR_OP_SEND).unwrap();
        let parts = (Arc::downgrade(&pd), Arc::downgrade(&cq), Arc::downgrade(&counter));
        drop((pd, cq, counter));
        refuse(&context, libc::EIO);
        assert_eq!(drop_under(panics, qp), panics);
        let (pd, cq, counter) = parts;
        assert!(pd.upgrade().is_some() && cq.upgrade().is_some() && counter.upgrade().is_some());
        assert!(ring_is.upgrade().is_some() && word_is.upgrade().is_some());

        // The same holds for a region and an address handle; `deregister` reports the error.
        let context = device();
        let pd = Arc::new(Pd::alloc(&context).unwrap());
        let region = || Mr::register_dmabuf(&pd, null().as_fd(), 0, 4096, 0x10000, 0).unwrap();
        let (dropped, told, ah) = (region(), region(), Ah::create(&pd, [1; 16]).unwrap());
        refuse(&context, libc::EIO);
        assert_eq!([drop_under(panics, dropped), drop_under(panics, ah)], [panics; 2]);
        assert_eq!(told.deregister().unwrap_err().errno(), Some(libc::EIO));
        assert_eq!(Arc::strong_count(&pd), 4);
        drop(pd);
        assert_eq!(object_counts(&context), ObjectCounts { pds: 1, mrs: 2, ahs: 1, ..ObjectCounts::default() });
        refuse(&context, 0);
    }
}

#[test]
fn memory_is_registered_until_deregistering_is_over() {
    let context = device();
    let pd = Arc::new(Pd::alloc(&context).unwrap());
    let mut bytes = vec![0u8; 4096];
    let addr = NonNull::new(bytes.as_mut_ptr()).unwrap();
    // SAFETY: the bytes stay allocated until the end of the test, and nothing reads or writes them.
    let region = unsafe { Mr::register(&pd, addr, 4096, IBV_ACCESS_LOCAL_WRITE) }.unwrap();
    assert_eq!(object_counts(&context).mrs, 1);
    region.deregister().unwrap();
    assert_eq!((object_counts(&context).mrs, Arc::strong_count(&pd)), (0, 1));
}

#[test]
fn what_the_library_could_not_destroy_is_not_created() {
    let old: &'static Libraries = Box::leak(Box::new(fake::load(&["-DLACKS_DESTROY"])));
    let context = Arc::new(DeviceList::get(old).unwrap().iter().next().unwrap().open().unwrap());
    let (word, word_is) = memory();
    let error = CompCounter::create_in(&context, null().as_fd(), 0, 64, Some(word)).err().unwrap().to_string();
    assert!(error.contains("has no ibv_destroy_comp_cntr"), "{error}");
    assert_eq!(object_counts(&context).counters, 0);
    assert!(word_is.upgrade().is_none(), "nobody ever wrote there");
}

#[test]
fn objects_of_two_devices_are_not_brought_together() {
    let [a, b] = contexts().map(Arc::new);
    let [pd_a, pd_b] = [&a, &b].map(|context| Arc::new(Pd::alloc(context).unwrap()));
    let cq = |context| Arc::new(Cq::create(context, &CqAttr { entries: 128, ..CqAttr::default() }).unwrap());
    let (cq_a, cq_b) = (cq(&a), cq(&b));
    let refused = |error: Option<Error>, expected: &str| {
        let text = error.expect("it is refused").to_string();
        assert_eq!(text, format!("{expected}: make both of one open device"));
    };
    for qp_type in [QpType::Srd, QpType::Ud] {
        let call = if qp_type == QpType::Srd { "efadv_create_qp_ex" } else { "ibv_create_qp_ex" };
        let create = |pd, send, recv| Qp::create(pd, send, recv, &QpAttr { qp_type, ..qp_attr() }).err();
        let (domain, of) = ("the protection domain is of fake0", "completion queue of fake1");
        refused(create(&pd_a, &cq_b, &cq_a), &format!("{call}: {domain}, the send {of}"));
        refused(create(&pd_a, &cq_a, &cq_b), &format!("{call}: {domain}, the receive {of}"));
        assert!(create(&pd_b, &cq_a, &cq_a).is_some());
    }
    let driver = Qp::create_driver(&pd_a, &cq_a, &cq_b, &qp_attr()).err();
    let text = "efadv_create_driver_qp: the protection domain is of fake0, the receive completion queue of fake1";
    refused(driver, text);

    let channel = Arc::new(CompChannel::create(&b).unwrap());
    let attr = CqAttr { entries: 128, channel: Some(&channel), ..CqAttr::default() };
    let text = "efadv_create_cq: the completion queue is of fake0, the completion channel of fake1";
    refused(Cq::create(&a, &attr).err(), text);

    let counter = Arc::new(CompCounter::create(&b).unwrap());
    let qp = Qp::create(&pd_a, &cq_a, &cq_a, &qp_attr()).unwrap();
    let attached = qp.attach_counter(&counter, IBV_QP_ATTACH_COMP_CNTR_OP_SEND).err();
    refused(attached, "ibv_qp_attach_comp_cntr: the queue pair is of fake0, the completion counter of fake1");
    assert_eq!(Arc::strong_count(&counter), 1);

    // The objects of one device that is open twice cannot be combined either.
    let [again, _] = contexts();
    let again = Arc::new(again);
    let text = "efadv_create_qp_ex: the protection domain is of fake0, the send completion queue of fake0 (open twice)";
    refused(Qp::create(&pd_a, &cq(&again), &cq_a, &qp_attr()).err(), text);
    assert_eq!((object_counts(&a).qps, object_counts(&b).qps, object_counts(&again).qps), (1, 0, 0));
}
