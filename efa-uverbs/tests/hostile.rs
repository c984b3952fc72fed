//! Tests with hostile programs, which send messages to a node without the preloaded library, and send wrong ones. They
//! check the answers, and that other programs are not affected.
//!
//! Each test starts this executable again on a node. There it is the program.

#[allow(dead_code, reason = "another test uses the rest")]
mod command;

use command::Command as Valid;
use efa_soft::driver::SoftSpec;
use efa_uverbs::{Node, Quotas};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "EFA_TEST_PROGRAM";
/// A timeout that no passing test reaches.
const PATIENCE: Duration = Duration::from_secs(30);
const IOCTL: u64 = 1;
const DONE: u64 = 16;
const ASK: u64 = 18;
const ASK_MAPS: u64 = 19;
const HERE: u64 = 32;

type Message = [u64; 3];

/// Runs `program` on a node with these quotas.
fn on_a_node(quotas: &str, test: &str, program: impl FnOnce()) {
    if std::env::var_os(PROGRAM).is_some() {
        return program();
    }
    let node = Node::with_quotas(&[SoftSpec::default()], quotas.parse::<Quotas>().unwrap()).unwrap();
    let mut command: Command = node.command(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--quiet"]).env(PROGRAM, test);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
    // The node ends even if calls of the program are still waiting.
    drop(node);
}

fn send(to: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(50))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(to, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

fn receive(from: impl AsFd) -> Option<Message> {
    let mut bytes = [0; 24];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().for_each(drop);
    let word = |i: usize| u64::from_ne_bytes(bytes[8 * i..][..8].try_into().unwrap());
    (received.bytes == 24).then(|| [word(0), word(1), word(2)])
}

fn bytes(message: Message) -> Vec<u8> {
    message.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Opens a device without waiting for the greeting.
fn connect() -> OwnedFd {
    let path = format!("{}/uverbs0", std::env::var("EFA_NODE").unwrap());
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

fn open(path: &str, write: bool) -> OwnedFd {
    File::options().read(true).write(write).open(path).unwrap().into()
}

/// Sends the command at this address to a device, with this file as the caller's memory, and replies to every question
/// with `answer`. Returns the result as an error number, 0 for success. Returns `None` if the connection ends instead.
fn call(device: &OwnedFd, addr: u64, memory: &OwnedFd, answer: &dyn Fn(u64) -> Option<OwnedFd>) -> Option<i32> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&ours, timeout, Some(PATIENCE)).unwrap();
    if !send(device, &bytes([IOCTL, addr, 0]), &[theirs.as_fd(), memory.as_fd()]) {
        return None;
    }
    drop(theirs);
    loop {
        match receive(&ours)? {
            [DONE, result, _] => return Some(-(result as i64) as i32),
            [question @ (ASK | ASK_MAPS), ..] => match answer(question) {
                Some(fd) => assert!(send(&ours, &bytes([HERE, 0, 0]), &[fd.as_fd()])),
                None => assert!(send(&ours, &bytes([33, 0, 0]), &[])),
            },
            other => panic!("{other:?}"),
        }
    }
}

/// Opens the file that the preloaded library would send as the caller's memory.
fn memory() -> OwnedFd {
    open("/proc/thread-self/mem", true)
}

/// Replies to a question as the preloaded library would.
fn maps(_: u64) -> Option<OwnedFd> {
    Some(open("/proc/thread-self/maps", false))
}

/// A command's words, and the buffer that they point to.
struct Written {
    words: Vec<u64>,
    _said: Vec<u8>,
}

impl Written {
    fn addr(&self) -> u64 {
        self.words.as_ptr() as u64
    }

    fn new(object: u16, method: u16, attrs: &[(u16, u16, u64)]) -> Self {
        let head = |words: [u16; 4]| u64::from_ne_bytes(words_as_bytes(words));
        let count = attrs.len() as u16;
        let mut all = vec![head([24 + 16 * count, object, method, count]), 0, 17];
        for &(id, len, data) in attrs {
            all.extend([head([id, len, 0, 0]), data]);
        }
        Self { words: all, _said: Vec::new() }
    }

    fn get_context() -> Self {
        Self::new(0, 3, &[])
    }

    /// Creates an older command with these words as input and with room for an answer.
    fn older(number: u64, said: &[u64]) -> Self {
        let mut room: Vec<u8> = said.iter().flat_map(|word| word.to_ne_bytes()).collect();
        room.resize(256, 0);
        let at = room.as_ptr() as u64;
        let said = if said.len() == 1 { (0, 8, said[0]) } else { (0, 8 * said.len() as u16, at) };
        let attrs = [said, (1, 64, at + 128), (2, 8, number)];
        Self { _said: room, ..Self::new(0, 0, &attrs) }
    }

    fn alloc_pd() -> Self {
        Self::older(3, &[0])
    }

    fn reg_mr(addr: u64, len: u64) -> Self {
        Self::older(9, &[0, addr, len, addr, 0])
    }
}

fn words_as_bytes(words: [u16; 4]) -> [u8; 8] {
    let mut bytes = [0; 8];
    for (to, word) in bytes.chunks_exact_mut(2).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Opens a device and allocates protection domain 0.
fn set_up() -> OwnedFd {
    let device = connect();
    assert_eq!(call(&device, Written::get_context().addr(), &memory(), &maps), Some(0));
    assert_eq!(call(&device, Written::alloc_pd().addr(), &memory(), &maps), Some(0));
    device
}

/// Returns `true` if another program, which uses the preloaded library, gets what it asks for.
fn others_go_on() -> bool {
    // SAFETY: the only other thread is the test harness's, which waits and holds no lock. The child opens the device,
    // sends commands and exits.
    match unsafe { libc::fork() } {
        0 => {
            let device = File::options().read(true).write(true).open("/dev/infiniband/uverbs0").unwrap();
            let fine = Valid::GET_CONTEXT.run(&device).is_ok()
                && Valid::older(3).input(&[0; 8]).output(4).run(&device).is_ok();
            // SAFETY: `_exit` ends the child without running anything else of it.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            // SAFETY: `status` is a local to write to.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            status == 0
        }
    }
}

/// Returns the number of bytes of memory that the node has.
fn node_bytes() -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", std::os::unix::process::parent_id())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn node_descriptors() -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", std::os::unix::process::parent_id())).unwrap().count()
}

#[test]
fn maps_that_are_none_are_refused_whatever_they_are_and_cost_the_node_nothing() {
    on_a_node("", "maps_that_are_none_are_refused_whatever_they_are_and_cost_the_node_nothing", || {
        let (device, target) = (set_up(), [0u8; 64]);
        let (_keep, silent) = rustix::pipe::pipe().map(|(read, write)| (write, read)).unwrap();
        let before = node_bytes();
        let start = Instant::now();
        let reg = Written::reg_mr(target.as_ptr() as u64, 64);
        for path in
            ["/proc/self/pagemap", "/proc/self/mem", "/dev/zero", "/proc/kmsg", "/proc/self", "/proc/self/smaps"]
        {
            if let Ok(file) = File::open(path) {
                let file = OwnedFd::from(file);
                let lie = |_| Some(file.try_clone().unwrap());
                assert_eq!(call(&device, reg.addr(), &memory(), &lie), Some(libc::EFAULT), "{path}");
            }
        }
        let wait = |_| Some(silent.try_clone().unwrap());
        assert_eq!(call(&device, reg.addr(), &memory(), &wait), Some(libc::EFAULT), "a pipe that stays empty");
        assert_eq!(call(&device, reg.addr(), &memory(), &|_| None), Some(libc::EFAULT));
        assert_eq!(call(&device, reg.addr(), &memory(), &maps), Some(0), "the truth");
        assert!(start.elapsed() < PATIENCE && node_bytes() < before + (64 << 20), "{before} bytes before");
        assert!(others_go_on());
    });
}

#[test]
fn memory_that_is_no_process_memory_is_not_read() {
    on_a_node("", "memory_that_is_no_process_memory_is_not_read", || {
        let device = set_up();
        let command = Written::alloc_pd();
        for path in ["/dev/zero", "/proc/self/maps", "/proc/meminfo", "/proc/self", "/proc/kmsg", "/proc/self/pagemap"]
        {
            if let Ok(file) = File::open(path) {
                assert_eq!(call(&device, command.addr(), &file.into(), &maps), Some(libc::EBADF), "{path}");
            }
        }
        // A new open device: with the old one, the node has seen this process's writable memory already.
        let (device, read_only) = (connect(), open("/proc/self/mem", false));
        assert_eq!(call(&device, Written::get_context().addr(), &read_only, &maps), Some(0));
        assert_eq!(call(&device, command.addr(), &read_only, &maps), Some(libc::EFAULT), "the answer has no place");
        assert!(others_go_on());
    });
}

#[test]
fn a_program_that_leaves_questions_unanswered_waits_alone() {
    on_a_node("", "a_program_that_leaves_questions_unanswered_waits_alone", || {
        let reg = Written::reg_mr(8, 64);
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let device = set_up();
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                    .unwrap();
            assert!(send(&device, &bytes([IOCTL, reg.addr(), 0]), &[theirs.as_fd(), memory().as_fd()]));
            waiting.push((device, ours));
        }
        assert!(others_go_on());
        // A waiting call ends when its process ends, or when the socket for its answer is closed.
        let (device, ours) = waiting.pop().unwrap();
        drop(ours);
        assert_eq!(call(&device, Written::alloc_pd().addr(), &memory(), &maps), Some(0));
    });
}

#[test]
fn messages_that_are_no_calls_end_nothing_but_the_connection() {
    on_a_node("", "messages_that_are_no_calls_end_nothing_but_the_connection", || {
        let null = open("/dev/null", true);
        let before = node_descriptors();
        for len in [0, 1, 23, 25, 4096] {
            let device = connect();
            let _ = send(&device, &vec![1; len], &[null.as_fd()]);
        }
        let device = connect();
        for kind in [0, 2, 3, DONE, ASK, HERE, 48, u64::MAX] {
            for count in 0..3 {
                // The device itself is the first descriptor, so that the answer arrives as the device's next message.
                let fds = [device.as_fd(), null.as_fd(), null.as_fd()];
                assert!(send(&device, &bytes([kind, 1 << 63, u64::MAX]), &fds[..count]), "{kind} {count}");
            }
        }
        let many = vec![null.as_fd(); 50];
        assert!(send(&device, &bytes([IOCTL, 8, 0]), &many), "more than there is room for");
        assert_eq!(call(&device, Written::get_context().addr(), &memory(), &maps), Some(0));
        let start = Instant::now();
        while node_descriptors() > before + 5 {
            assert!(start.elapsed() < PATIENCE, "{before} descriptors before, {} now", node_descriptors());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(others_go_on());
    });
}

#[test]
fn connections_beyond_the_quota_are_closed_at_once() {
    on_a_node("opens=10", "connections_beyond_the_quota_are_closed_at_once", || {
        let before = node_descriptors();
        let held: Vec<_> = (0..500).map(|_| connect()).collect();
        // The greeting of the last one shows that all were handled.
        let greeting = receive(held.last().unwrap());
        assert_eq!(greeting, Some([49, libc::EMFILE as u64, 0]));
        assert!(node_descriptors() <= before + 20, "{before} descriptors before, {} now", node_descriptors());
        assert_eq!(call(&held[0], Written::get_context().addr(), &memory(), &maps), Some(0));
        assert!(others_go_on());
    });
}

#[test]
fn processes_that_take_turns_at_an_open_device_cost_it_one_descriptor_each() {
    on_a_node("", "processes_that_take_turns_at_an_open_device_cost_it_one_descriptor_each", || {
        let (device, target) = (set_up(), [0u8; 64]);
        let reg = Written::reg_mr(target.as_ptr() as u64, 64);
        // SAFETY: the child only sleeps until it is killed.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                std::thread::sleep(PATIENCE);
            }
        }
        let others = format!("/proc/{child}/mem");
        let before = node_descriptors();
        for i in 0..500 {
            // The child's memory is a copy of this process's. In between come this process's own memory, and the same
            // opened by another thread.
            let memory = match i % 3 {
                0 => open(&others, true),
                1 => memory(),
                _ => std::thread::spawn(memory).join().unwrap(),
            };
            assert_eq!(call(&device, reg.addr(), &memory, &maps), Some(0), "{i}");
        }
        let after = node_descriptors();
        // SAFETY: `kill` takes numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(child, libc::SIGKILL) };
        assert!(after < before + 20, "{before} descriptors before, {after} now");
    });
}

#[test]
fn address_handles_of_one_address_are_counted_too() {
    on_a_node("", "address_handles_of_one_address_are_counted_too", || {
        let device = set_up();
        // Protection domain, port and GID at their offsets in the command.
        let mut said = [0u64; 7];
        said[6] = 1 << 48;
        (said[3], said[4]) = (0x80fe, 1);
        let create = Written::older(5, &said);
        let outcomes: Vec<_> = (0..2000).map(|_| call(&device, create.addr(), &memory(), &maps)).collect();
        let good = outcomes.iter().filter(|outcome| **outcome == Some(0)).count();
        assert_eq!((good, outcomes.last()), (922, Some(&Some(libc::ENOMEM))), "nine tenths of what the device has");
        assert!(others_go_on() && device.as_raw_fd() >= 0);
    });
}
