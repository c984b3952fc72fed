//! A benchmark of the software device. Each figure stands beside the one that bounds it on the same machine, measured
//! in the same run.
//!
//! ```text
//! cargo bench -p efa-tests --bench soft
//! ```
//!
//! | figure | set-up | bound |
//! | --- | --- | --- |
//! | small writes | 8-byte RDMA writes, a posting thread and a device thread | a message from thread to thread |
//! | large writes | 1 MiB RDMA writes, the same | `memcpy` of the same bytes |
//! | large writes over UDP | two devices on loopback, each with its thread | the same bytes through bare UDP sockets |
//! | idle | a device on UDP that nobody uses, in each of its three modes | one core |

use efa_direct::*;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// The time for each figure in seconds.
const BUDGET: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    // `cargo bench … -- small` and similar arguments select figures.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let figures: [(&str, fn()); 4] =
        [("small", small_writes), ("large", large_writes), ("udp", writes_over_udp), ("idle", idle)];
    for (name, figure) in figures {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            figure();
        }
    }
}

fn small_writes() {
    let small = writes_per_second("soft30", "soft31", 8, 512);
    println!(
        "small writes, 8 B, in process     {:8.2} M/s   hand-off of a word between threads {:.2} M/s",
        small / 1e6,
        hand_offs() / 1e6
    );
}

fn large_writes() {
    let large = writes_per_second("soft32", "soft33", 1 << 20, 16) * f64::from(1 << 20);
    let copy = memcpy();
    println!(
        "large writes, 1 MiB, in process   {:8.2} GB/s  memcpy {:.2} GB/s: {:.0} %",
        large / 1e9,
        copy / 1e9,
        100.0 * large / copy
    );
}

fn writes_over_udp() {
    let over_udp = writes_per_second("soft:mtu=60000", "soft:mtu=60000", 1 << 20, 16) * f64::from(1 << 20);
    let bare = bare_udp(60_000);
    println!(
        "large writes, 1 MiB, UDP loopback {:8.2} GB/s  bare sockets {:.2} GB/s: {:.0} %",
        over_udp / 1e9,
        bare / 1e9,
        100.0 * over_udp / bare
    );
}

fn idle() {
    for mode in ["spin", "nap", "sleep"] {
        let _device = Device::open(&format!("soft:idle={mode}")).unwrap();
        let before = processor_time();
        std::thread::sleep(BUDGET);
        let share = (processor_time() - before).as_secs_f64() / BUDGET.as_secs_f64();
        println!("an idle device, {mode:5}             {:8.1} % of a core", 100.0 * share);
    }
}

/// Returns the processor time that this process has used, with a resolution of 10 ms.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
    // User and system time are fields 14 and 15, in hundredths of a second (proc(5)).
    let ticks: u64 = fields[12..14].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Measures RDMA writes of `size` bytes per second, with `depth` outstanding.
fn writes_per_second(from: &str, to: &str, size: u64, depth: u32) -> f64 {
    let (a, b) = (Device::open(from).unwrap(), Device::open(to).unwrap());
    let (pd_a, pd_b) = (a.alloc_pd().unwrap(), b.alloc_pd().unwrap());
    let (cq_a, cq_b) = (a.create_cq(CqConfig::new(2 * depth)).unwrap(), b.create_cq(CqConfig::new(16)).unwrap());
    let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(depth, 1)).unwrap().activate(1).unwrap();
    let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(1, 1)).unwrap().activate(2).unwrap();
    let (peer, _back) = (pd_a.peer(&qp_b.endpoint).unwrap(), pd_b.peer(&qp_a.endpoint).unwrap());
    let source = pd_a.allocate(size as usize, Access::LOCAL_READ).unwrap();
    let target = pd_b.allocate(size as usize, Access::REMOTE_WRITE).unwrap();
    let write = RdmaWrite::new(source.slice(..).unwrap(), target.remote().slice(..).unwrap());
    let (mut sq, mut cq) = (qp_a.send.into_cpu(), cq_a.into_cpu());
    let mut batch = [Completion::default(); 32];
    let (mut done, start) = (0u64, Instant::now());
    let mut last = start;
    while start.elapsed() < BUDGET {
        while sq.room() > 0 && sq.post(&peer, write, done).is_ok() {}
        sq.ring();
        let polled = cq.poll(&mut batch);
        assert!(batch[..polled].iter().all(|completion| completion.status.is_ok()));
        done += polled as u64;
        if polled > 0 {
            last = Instant::now();
        } else {
            assert!(last.elapsed() < PATIENCE, "nothing completes any more");
            std::thread::yield_now();
        }
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// Measures words that go to another thread and back through two shared counters, with 32 outstanding.
fn hand_offs() -> f64 {
    use std::sync::atomic::{AtomicU64, Ordering::*};
    let (there, back) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seen = 0;
            while seen != u64::MAX {
                let now = there.load(Acquire);
                if now != seen {
                    back.store(now, Release);
                    seen = now;
                } else {
                    std::hint::spin_loop();
                }
            }
        });
        let mut count = 0;
        while start.elapsed() < BUDGET / 4 {
            count += 32;
            there.store(count, Release);
            while back.load(Acquire) != count {
                std::hint::spin_loop();
            }
        }
        there.store(u64::MAX, Release);
        count as f64 / start.elapsed().as_secs_f64()
    })
}

/// Measures the bytes per second that `memcpy` copies, 1 MiB at a time.
fn memcpy() -> f64 {
    let (source, mut target) = (vec![1u8; 1 << 20], vec![0u8; 1 << 20]);
    let (mut bytes, start) = (0, Instant::now());
    while start.elapsed() < BUDGET / 4 {
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
        bytes += source.len();
    }
    bytes as f64 / start.elapsed().as_secs_f64()
}

/// Measures the bytes per second through two plain sockets, in datagrams of `size` bytes, with a few outstanding.
fn bare_udp(size: usize) -> f64 {
    let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    for socket in [&a, &b] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut buf, mut bytes) = (vec![0; size + 1], 0);
            while let Ok(len) = b.recv(&mut buf) {
                if len == 1 {
                    break;
                }
                bytes += len;
                let _ = b.send(&[0]);
            }
            bytes
        });
        let (buf, mut ack) = (vec![1; size], [0; 8]);
        let (mut outstanding, start) = (0, Instant::now());
        while start.elapsed() < BUDGET {
            while outstanding < 2 && a.send(&buf).is_ok() {
                outstanding += 1;
            }
            outstanding = if a.recv(&mut ack).is_ok() { outstanding - 1 } else { 0 };
        }
        let _ = a.send(&[0]);
        receiver.join().unwrap() as f64 / start.elapsed().as_secs_f64()
    })
}
