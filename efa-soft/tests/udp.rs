//! Devices on UDP: whom they hear, and whom they refuse.

mod common;

use common::{activate, limits, put_raw, qp, stamp};
use efa_io::*;
use efa_soft::driver::{DeviceHandle, Key, SoftSpec, Udp, UdpConfig};
use efa_soft::wire::{Body, Envelope, Hello, Packet};
use efa_soft::*;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(60);

fn device(key: Option<&[u8]>, patience: Duration) -> Udp {
    let config = UdpConfig { key: key.map(|key| Key::new(key).unwrap()), ..Default::default() };
    Udp::start(&config, |gid| DeviceConfig { peer_timeout: patience, ..DeviceConfig::new(gid) }).unwrap()
}

fn gid(handle: &dyn DeviceHandle) -> Gid {
    let mut gid = None;
    handle.with(&mut |device| gid = Some(device.gid()));
    gid.unwrap()
}

/// Sends to a queue pair that the peer does not have, and returns the status.
fn ends(from: &dyn DeviceHandle, to: Gid) -> Status {
    let mut made = None;
    from.with(&mut |device| {
        let pd = device.alloc_pd().unwrap();
        let ah = device.create_ah(pd, to).unwrap();
        let cq = device.create_cq(CqAttributes { entries: 16, entry_size: CqeSize::Large, events: false }).unwrap();
        let qp = qp(device, pd, cq.cqn, 4);
        activate(device, qp.qpn);
        made = Some((cq, qp, ah));
    });
    let (cq, qp, ah) = made.unwrap();
    let send = SendInline::new(b"hi").encode(&limits(), Destination { ah, qpn: 200, qkey: 7 }).unwrap();
    put_raw::<8>(&qp, 0, stamp(&qp, 0, send));
    qp.sq.doorbell.store_doorbell(qp.sq.doorbell_offset, 1);
    let start = Instant::now();
    loop {
        let entry = Cqe32::from_words(cq.ring.load_entry(0));
        if entry.phase() {
            return entry.decode().unwrap().status;
        }
        assert!(start.elapsed() < MOST, "it ends in some way");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn refused(handle: &dyn DeviceHandle) -> u64 {
    handle.counters().refused_pkts
}

#[test]
fn devices_hear_each_other_with_the_same_key_and_otherwise_count_what_they_refuse() {
    let (one, other): (&[u8], &[u8]) = (b"0123456789abcdef", b"fedcba9876543210");
    for (a, b) in [(None, None), (Some(one), Some(one)), (Some(one), Some(other)), (Some(one), None), (None, Some(one))]
    {
        // Whoever is heard answers long before that.
        let patience = if a == b { Duration::from_secs(50) } else { Duration::from_millis(300) };
        let [a_port, b_port] = [a, b].map(|key| device(key, patience));
        let status = ends(&a_port, gid(&b_port));
        if a == b {
            assert_eq!((status, refused(&a_port), refused(&b_port)), (Status::RemoteBadDestQpn, 0, 0));
        } else {
            assert_eq!((status, refused(&a_port)), (Status::UnreachableRemote, 0));
            let counters = b_port.counters();
            assert!(counters.refused_pkts > 0 && counters.rx_drops == counters.refused_pkts, "{counters:?}");
            assert_eq!(counters.tx_pkts, 0, "it gives no answer");
        }
    }
}

#[test]
fn a_name_gives_a_key_by_its_file_and_shows_it_nowhere() {
    let path = std::env::temp_dir().join(format!("efa-soft-udp-key-{}", std::process::id()));
    std::fs::write(&path, "a secret of many letters\n").unwrap();
    let spec: SoftSpec = format!("keyfile={}", path.display()).parse().unwrap();
    let keyed = spec.start(false).unwrap();
    let same = device(Some(b"a secret of many letters"), Duration::from_secs(50));
    assert_eq!(ends(&keyed, gid(&same)), Status::RemoteBadDestQpn);
    assert!(!format!("{spec:?}").contains("letters"));
    std::fs::write(&path, "short").unwrap();
    let error = spec.start(false).err().unwrap().to_string();
    assert!(error.contains("efa-soft-udp-key") && error.contains("16 to 4096"), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(spec.start(false).err().unwrap().kind(), std::io::ErrorKind::NotFound);
}

/// Returns a socket, and the GID of its address.
fn stranger() -> (UdpSocket, Gid) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = socket.local_addr().unwrap() else { panic!("an IPv4 address") };
    (socket, Gid::of_udp(addr))
}

/// Sends a device a hello with a challenge, in the name of `src`.
fn ask(socket: &UdpSocket, src: Gid, device: &dyn DeviceHandle) {
    let dst = gid(device);
    let mut packet = Vec::new();
    let envelope = Envelope { src, dst, src_incarnation: 1, dst_incarnation: 0, path: 0 };
    assert!(Packet { envelope, body: Body::Hello(Hello { challenge: 5, echo: 0 }) }.emit(&mut packet));
    socket.send_to(&packet, dst.to_udp().unwrap()).unwrap();
}

#[test]
fn who_speaks_in_the_name_of_another_address_is_not_answered_and_no_life_is_called_the_same_twice() {
    let handle = device(None, Duration::from_secs(5));
    let [(thief, thiefs), (victim, victims)] = [stranger(), stranger()];
    for socket in [&thief, &victim] {
        socket.set_read_timeout(Some(MOST)).unwrap();
    }
    let foreign = Gid::local(5); // no address on this network
    for name in
        [victims, victims.in_subnet(1), foreign, gid(&handle), Gid::of_udp(SocketAddrV4::new([127, 0, 0, 1].into(), 1))]
    {
        ask(&thief, name, &handle);
    }
    let start = Instant::now();
    while refused(&handle) < 5 {
        assert!(start.elapsed() < MOST);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(handle.counters().tx_pkts, 0);
    let told = [(&thief, thiefs), (&victim, victims)].map(|(socket, name)| {
        ask(socket, name, &handle);
        let mut answer = [0; 1000];
        let (len, _) = socket.recv_from(&mut answer).unwrap();
        let Packet { envelope, body } = Packet::parse(&answer[..len]).unwrap();
        assert!(matches!(body, Body::Hello(Hello { challenge: 0, echo: 5 })), "{body:?}");
        assert_eq!((envelope.src, envelope.dst, envelope.dst_incarnation), (gid(&handle), name, 1));
        envelope.src_incarnation
    });
    assert_ne!(told[0], told[1]);
}
