//! A child by `fork` and the devices that it inherits. One test, since it forks.

use efa_soft::driver::{DeviceHandle, IdleMode, LocalNetwork, Udp, UdpConfig};
use efa_soft::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls `f` in a child. Returns its exit status, or `None` if it had to be killed.
fn in_child(f: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child is a copy of this thread alone. It runs `f` and ends without unwinding, running destructors or
    // flushing what it inherited; the allocator is made usable in it by the C library.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(if ended.is_ok() { 0 } else { 7 }) };
    }
    assert!(child > 0, "no child");
    let (start, mut status) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(20) {
        // SAFETY: the child is this process's own, and `status` is there to be written.
        if unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == child {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: as above; it has not been waited for, so the number is still its own.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, &mut status, 0);
    }
    None
}

fn works(handle: &dyn DeviceHandle) -> bool {
    let mut works = false;
    handle.with(&mut |device| works = device.alloc_pd().is_ok());
    works
}

#[test]
fn a_device_is_gone_in_a_child_which_may_drop_it_while_the_parent_goes_on() {
    let network = LocalNetwork::start(LinkConfig::default(), IdleMode::Spin).unwrap();
    let local = network.add(DeviceConfig::new(Gid::local(0)));
    let start_udp =
        || Udp::start(&UdpConfig { idle: IdleMode::Spin, ..Default::default() }, DeviceConfig::new).unwrap();
    let udp: Arc<dyn DeviceHandle> = Arc::new(start_udp());
    // Many times: what the thread has locked at the moment of the fork differs.
    for _ in 0..20 {
        let (network, handles) = (&network, [&local, &udp]);
        let status = in_child(|| {
            for handle in handles {
                assert!(!works(&**handle));
                assert!(handle.set_waker(1, None).is_err() && handle.next_event().is_none());
                assert_eq!(handle.link_counters(), LinkCounters::default());
                handle.change_link(&mut |_| panic!("nobody's link"));
                // SAFETY: the parent's value is not touched: this process has a copy of its own, which is not used any
                // more.
                drop(unsafe { std::ptr::read(handle) });
            }
            assert!(!works(&*network.add(DeviceConfig::new(Gid::local(1)))));
            // SAFETY: as above.
            drop(unsafe { std::ptr::read(network) });
        });
        assert_eq!(status, Some(0));
        assert!(works(&*local) && works(&*udp));
    }
    let own = in_child(|| {
        let udp = start_udp();
        assert!(works(&udp));
        drop(udp);
        let network = LocalNetwork::start(LinkConfig::default(), IdleMode::Nap).unwrap();
        assert!(works(&*network.add(DeviceConfig::new(Gid::local(0)))));
    });
    assert_eq!(own, Some(0), "a child can have devices of its own");
}
