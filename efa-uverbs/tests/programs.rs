//! Tests with programs that use a node's devices by system calls, without libibverbs. They check the answers, and that
//! no program leaves anything behind.
//!
//! Each test starts this executable again on a node. There it is the program.

mod command;

use command::{Command, Error, MR, PD, QP, errno};
use efa_soft::driver::SoftSpec;
use efa_uverbs::{Node, Quotas};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Child, Stdio};

const DEVICE: &str = "/dev/infiniband/uverbs0";
/// The number of protection domains that one program may have: 90 percent of a device's 256.
const MAX_PD: usize = 231;

/// The environment variable that is set if this executable is a program on a node.
const PROGRAM: &str = "EFA_TEST_PROGRAM";

fn node(devices: usize) -> Node {
    Node::start(&vec![SoftSpec::default(); devices]).unwrap()
}

/// Starts the test of this name as a program on `node`.
fn start(node: &Node, test: &str) -> Child {
    let mut command = node.command(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--quiet"]).env(PROGRAM, test);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a program and asserts that it succeeded.
fn passes(program: Child) {
    let output = program.wait_with_output().unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
}

fn is_program() -> bool {
    std::env::var_os(PROGRAM).is_some()
}

/// The log of all nodes.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// A writer that appends to the log.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `program` on a node with this many devices.
fn on_a_node(devices: usize, test: &str, program: impl FnOnce()) {
    if is_program() {
        return program();
    }
    passes(start(&node(devices), test));
}

/// Runs `program` on a node with one device and these quotas. Returns what the node has logged.
fn on_a_node_with(quotas: &str, test: &str, program: impl FnOnce()) -> String {
    if is_program() {
        program();
        return String::new();
    }
    let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).try_init();
    passes(start(&Node::with_quotas(&[SoftSpec::default()], quotas.parse::<Quotas>().unwrap()).unwrap(), test));
    String::from_utf8(LOG.lock().clone()).unwrap()
}

/// Calls a function in a child of this process and returns its result.
fn in_a_child(what: impl FnOnce() -> bool) -> bool {
    // SAFETY: the only other thread is the test harness's, which waits and holds no lock. The child calls `what`, which
    // makes system calls, and exits.
    match unsafe { libc::fork() } {
        0 => {
            let fine = what();
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

/// Registers this many bytes of the program's own memory.
fn reg_mr(device: &File, pd: u32, addr: *const u8, len: usize) -> Result<u32, Error> {
    let words = [0, addr as u64, len as u64, addr as u64, pd.into()].map(u64::to_ne_bytes);
    Command::older(9).input(words.as_flattened()).output(12).run(device)
}

/// Registers bytes of a file.
fn reg_fd(device: &File, pd: u32, fd: &impl AsRawFd, len: u64) -> Result<u32, Error> {
    let command = Command::new(MR, 4).handle(0).number(1, pd.into()).number(2, 0).number(3, len);
    let command = command.number(4, 0).number(5, fd.as_raw_fd() as u64).number(6, 1);
    command.output_at(7, 4).output_at(8, 4).run(device)
}

/// Creates a memory file that cannot shrink. Returns `None` if the kernel does not support the flags.
fn memory_file(flags: u32, len: u64) -> Option<File> {
    // SAFETY: the name is a C string literal.
    let fd = unsafe { libc::memfd_create(c"buffer".as_ptr(), libc::MFD_ALLOW_SEALING | flags) };
    // SAFETY: the descriptor was just created, and nothing else owns it.
    let file = File::from((fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })?);
    file.set_len(len).unwrap();
    // SAFETY: `F_ADD_SEALS` takes a number.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) }, 0);
    Some(file)
}

/// Creates a completion channel and returns its descriptor.
fn create_channel(device: &File) -> Result<OwnedFd, Error> {
    let fd = Command::older(17).input(&[0; 8]).output(4).run(device)?;
    // SAFETY: the command has just created this descriptor for the program, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until a condition holds. Returns `false` after 20 s. The node learns of closed descriptors with a delay.
fn by_and_by(what: impl Fn() -> bool) -> bool {
    let start = std::time::Instant::now();
    while !what() {
        if start.elapsed() > std::time::Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    true
}

fn open() -> File {
    File::options().read(true).write(true).open(DEVICE).unwrap()
}

/// Opens a device and sets up its context.
fn context() -> File {
    let device = open();
    Command::GET_CONTEXT.run(&device).unwrap();
    device
}

fn alloc_pd(device: &File) -> Result<u32, Error> {
    Command::older(3).input(&0u64.to_ne_bytes()).output(4).run(device)
}

#[test]
fn a_device_is_a_character_device_and_what_does_not_exist_does_not() {
    on_a_node(2, "a_device_is_a_character_device_and_what_does_not_exist_does_not", || {
        let by_path = std::fs::metadata("/dev/infiniband/uverbs1").unwrap();
        assert!(by_path.file_type().is_char_device());
        assert_eq!((libc::major(by_path.rdev()), libc::minor(by_path.rdev())), (231, 193));
        let opened = open().metadata().unwrap();
        assert!(opened.file_type().is_char_device());
        assert_eq!(libc::minor(opened.rdev()), 192);
        for missing in ["/dev/infiniband/uverbs2", "/dev/infiniband/uverbs", "/dev/infiniband/uverbs0x"] {
            assert_eq!(File::open(missing).unwrap_err().kind(), io::ErrorKind::NotFound, "{missing}");
        }
        let dev = std::env::var("SYSFS_PATH").unwrap() + "/class/infiniband_verbs/uverbs1/dev";
        assert_eq!(std::fs::read_to_string(dev).unwrap(), "231:193\n");
        // Other files, sockets and mappings work as usual.
        let (mut a, mut b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        b.read_exact(&mut [0]).unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().file_type().is_file());
        // SAFETY: `socket` takes numbers only.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 20) };
        assert_eq!((socket, errno()), (-1, libc::EPROTONOSUPPORT), "real devices are hidden");
    });
}

#[test]
fn what_is_not_implemented_is_refused_as_the_kernel_does() {
    on_a_node(1, "what_is_not_implemented_is_refused_as_the_kernel_does", || {
        let device = open();
        assert_eq!(Command::new(0, 2).number(0, 1).run(&device), Err(libc::EINVAL), "no context yet");
        Command::GET_CONTEXT.run(&device).unwrap();
        assert_eq!(Command::GET_CONTEXT.run(&device), Err(libc::EINVAL), "only once");
        for (object, method) in [(5, 0), (9, 0), (20, 0), (0x1000, 0), (3, 9)] {
            assert_eq!(Command::new(object, method).run(&device), Err(libc::EPROTONOSUPPORT), "{object} {method}");
        }
        for older in [19, 14, 32, 30, 0x8000_0000 | 50, 0x8000_0000 | 26, 99] {
            assert_eq!(Command::older(older).run(&device), Err(libc::EOPNOTSUPP), "{older}");
        }
        assert_eq!(
            Command::older(1).run(&device),
            Err(libc::ENOSPC),
            "how libibverbs asks whether there are older commands"
        );
        assert_eq!(Command::new(PD, 0).number(0, 7).run(&device), Err(libc::ENOENT));
        assert_eq!(Command::new(PD, 0).run(&device), Err(libc::EINVAL), "which one?");
        let pd = alloc_pd(&device).unwrap();
        assert_eq!(Command::new(MR, 1).number(0, pd.into()).run(&device), Err(libc::EINVAL), "that is no region");
        assert_eq!(Command::older(3).input(&[0; 8]).run(&device), Err(libc::ENOSPC), "no room for the answer");
        assert_eq!(Command::new(QP, 2).number(0, 0).number(9, 1).run(&device), Err(libc::EPROTONOSUPPORT));
        assert_eq!(Command::new(0, 2).number(0, 2).output_at(1, 48).run(&device), Err(libc::EINVAL), "port 2");
        assert_eq!(command::raw(&device, std::ptr::null_mut()), Err(libc::EFAULT));
        let mut header = [0u16; 12];
        assert_eq!(command::raw(&device, header.as_mut_ptr().cast()), Err(libc::EINVAL), "no length");
        header[0] = 24;
        header[4] = 1;
        assert_eq!(command::raw(&device, header.as_mut_ptr().cast()), Err(libc::EPROTONOSUPPORT), "reserved");
        // SAFETY: without `MAP_FIXED`, the kernel chooses an unused address.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), 4096, 3, libc::MAP_SHARED, device.as_raw_fd(), 4096) };
        assert_eq!((map, errno()), (libc::MAP_FAILED, libc::EINVAL));
        // SAFETY: the command fails on this descriptor before it uses its argument.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TCGETS, 0) };
        assert_eq!(result, -1, "it is no terminal");
    });
}

#[test]
fn a_command_that_is_not_implemented_is_named_in_one_line_of_the_log() {
    const NAME: &str = "a_command_that_is_not_implemented_is_named_in_one_line_of_the_log";
    if is_program() {
        let device = context();
        let _ = Command::older(19).run(&device);
        let _ = Command::new(5, 1).run(&device);
        let _ = Command::new(PD, 0).number(0, 4711).run(&device);
        return;
    }
    let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).try_init();
    passes(start(&node(1), NAME));
    let log = String::from_utf8(LOG.lock().clone()).unwrap();
    for (line, device) in [
        ("RESIZE_CQ failed: not implemented", "rdmap79s0"),
        ("method 0x1 of SRQ failed: not implemented", "rdmap79s0"),
        ("PD_DESTROY failed: there is nothing with handle 4711", "rdmap79s0"),
    ] {
        let lines: Vec<_> = log.lines().filter(|logged| logged.contains(line)).collect();
        assert!(matches!(lines[..], [line] if line.contains(device) && line.contains("errno")), "{line}:\n{log}");
    }
}

#[test]
fn memory_is_registered_if_it_is_there_and_allows_it() {
    on_a_node(1, "memory_is_registered_if_it_is_there_and_allows_it", || {
        let device = context();
        let pd = alloc_pd(&device).unwrap();
        let reg = |addr: usize, len: usize, access: u32| {
            let words = [0, addr as u64, len as u64, addr as u64, u64::from(pd) | u64::from(access) << 32];
            let bytes = words.map(u64::to_ne_bytes);
            Command::older(9).input(bytes.as_flattened()).output(12).run(&device)
        };
        const LOCAL_WRITE: u32 = 1;
        let mut bytes = vec![0u8; 1 << 20];
        let at = bytes.as_mut_ptr() as usize;
        assert!(reg(at, bytes.len(), 0).is_ok() && reg(at + 17, 1, 7).is_ok());
        assert!(reg(at, 100, 7 | 1 << 20).is_ok(), "what is optional is ignored");
        assert_eq!(reg(at, 0, 0), Err(libc::EINVAL));
        assert_eq!(reg(at, 100, 2), Err(libc::EINVAL), "remote writes need local ones");
        assert_eq!(reg(at, 100, 8 | LOCAL_WRITE), Err(libc::EOPNOTSUPP), "atomics");
        assert_eq!(reg(8, 100, 0), Err(libc::EFAULT));
        assert_eq!(reg(at, usize::MAX / 2, 0), Err(libc::EFAULT));
        assert_eq!(reg(usize::MAX - 10, 100, 0), Err(libc::EINVAL));
        let code = errno as *const () as usize;
        assert!(reg(code, 100, 0).is_ok());
        assert_eq!(reg(code, 100, LOCAL_WRITE), Err(libc::EFAULT), "it can only be read");
        assert_eq!(Command::new(PD, 0).number(0, pd.into()).run(&device), Err(libc::EBUSY));
    });
}

#[test]
fn registered_memory_costs_a_node_no_descriptors() {
    const NAME: &str = "registered_memory_costs_a_node_no_descriptors";
    const REGIONS: usize = 2000;
    on_a_node(1, NAME, || {
        let device = context();
        let pd = alloc_pd(&device).unwrap();
        let bytes = [0u8; 100];
        // SAFETY: `getppid` has no arguments and never fails.
        let node = unsafe { libc::getppid() };
        let descriptors = || std::fs::read_dir(format!("/proc/{node}/fd")).unwrap().count();
        let before = descriptors();
        for _ in 0..REGIONS {
            let words = [0, bytes.as_ptr() as u64, 100, bytes.as_ptr() as u64, pd.into()].map(u64::to_ne_bytes);
            Command::older(9).input(words.as_flattened()).output(12).run(&device).unwrap();
        }
        // Other tests have nodes in that process.
        assert!(descriptors() < before + REGIONS / 4, "{before} before, {} after", descriptors());
    });
}

#[test]
fn a_child_uses_what_it_inherited_with_memory_of_its_own() {
    on_a_node(1, "a_child_uses_what_it_inherited_with_memory_of_its_own", || {
        let device = context();
        let first = alloc_pd(&device).unwrap();
        // SAFETY: the only other thread is the test harness's, which waits and holds no lock. The child makes system
        // calls and exits.
        match unsafe { libc::fork() } {
            0 => {
                let second = alloc_pd(&device);
                let other = open();
                let fine = second.is_ok_and(|second| second != first) && Command::GET_CONTEXT.run(&other).is_ok();
                // SAFETY: `_exit` ends the child without running anything else of it.
                unsafe { libc::_exit(if fine { 0 } else { 1 }) }
            }
            child => {
                let mut status = -1;
                // SAFETY: `status` is a local to write to.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
        // The objects that the child created belong to the context, which still exists.
        assert_eq!(alloc_pd(&device), Ok(first + 2));
        for pd in [first, first + 1, first + 2] {
            assert_eq!(Command::new(PD, 0).number(0, pd.into()).run(&device), Ok(0));
        }
    });
}

#[test]
fn a_device_can_be_open_several_times_and_each_has_its_own_objects() {
    on_a_node(1, "a_device_can_be_open_several_times_and_each_has_its_own_objects", || {
        let (a, b) = (context(), context());
        let copy = a.try_clone().unwrap();
        let pd = alloc_pd(&a).unwrap();
        assert_eq!(Command::new(PD, 0).number(0, pd.into()).run(&b), Err(libc::ENOENT));
        drop(a);
        assert_eq!(
            Command::new(PD, 0).number(0, pd.into()).run(&copy),
            Ok(0),
            "a copy of a descriptor is the same open device"
        );
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let device = copy.try_clone().unwrap();
                std::thread::spawn(move || (0..50).map(|_| alloc_pd(&device).unwrap()).collect::<Vec<_>>())
            })
            .collect();
        let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 200, "calls of several threads do not get each other's answers");
    });
}

#[test]
fn a_program_that_is_killed_leaves_nothing_behind() {
    const NAME: &str = "a_program_that_is_killed_leaves_nothing_behind";
    if is_program() {
        let device = context();
        let all = (0..MAX_PD).all(|_| alloc_pd(&device).is_ok());
        assert!(all, "someone has left protection domains behind");
        assert_eq!(alloc_pd(&device), Err(libc::ENOMEM));
        println!("all mine");
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    let node = node(1);
    for _ in 0..3 {
        let mut program = start(&node, NAME);
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        assert!(lines.any(|line| line == "all mine"));
        program.kill().unwrap();
        program.wait().unwrap();
        // The node learns of it when the program's socket is closed.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn no_command_brings_a_node_down() {
    on_a_node(1, "no_command_brings_a_node_down", || {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut memory = [0u8; 512];
        let mut outcomes = std::collections::BTreeMap::<_, u32>::new();
        for _ in 0..100 {
            let device = context();
            for _ in 0..150 {
                let objects = [0, 1, 2, 3, 4, 6, 7, 16, 19];
                let mut command = match rng.u8(..3) {
                    0 => Command::older([1, 2, 3, 5, 9, 17, 25, 26, 0x8000_0001][rng.usize(..9)]),
                    _ => Command::new(objects[rng.usize(..objects.len())], rng.u16(..9)),
                };
                rng.fill(&mut memory[..64]);
                if rng.bool() {
                    // Mostly zeros, so that there are small numbers, as in real commands.
                    for byte in memory[..256].iter_mut().filter(|_| rng.u8(..8) != 0) {
                        *byte = 0;
                    }
                }
                for _ in 0..rng.usize(..14) {
                    let id = if rng.u8(..6) == 0 { 0x1000 + rng.u16(..6) } else { rng.u16(..16) };
                    command = match rng.u8(..4) {
                        0 => command.number(id, rng.u64(..4)),
                        1 => command.number(id, memory.as_ptr() as u64),
                        2 => command.input_at(id, &memory[..rng.usize(..512)]),
                        _ => command.output_at(id, rng.usize(..64)),
                    };
                }
                let errno = command.run(&device).err().unwrap_or(0);
                *outcomes.entry(errno).or_default() += 1;
                assert_ne!(errno, libc::EIO, "the node has stopped answering");
            }
        }
        // A part of the commands was executed.
        assert!(outcomes.get(&0).is_some_and(|&count| count > 20), "{outcomes:?}");
        alloc_pd(&context()).unwrap();
    });
}

#[test]
fn a_dma_buf_is_memory_that_cannot_shrink() {
    on_a_node(1, "a_dma_buf_is_memory_that_cannot_shrink", || {
        let device = context();
        let pd = alloc_pd(&device).unwrap();
        let memory = |sealed: bool| {
            // SAFETY: the name is a C string literal.
            let fd = unsafe { libc::memfd_create(c"buffer".as_ptr(), libc::MFD_ALLOW_SEALING) };
            // SAFETY: the descriptor was just created, and nothing else owns it.
            let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
            file.set_len(8192).unwrap();
            if sealed {
                // SAFETY: `F_ADD_SEALS` takes a number.
                assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) }, 0);
            }
            file
        };
        let reg = |fd: i32, offset: u64, len: u64| {
            let command = Command::new(MR, 4).handle(0).number(1, pd.into()).number(2, offset).number(3, len);
            command.number(4, offset).number(5, fd as u64).number(6, 1).output_at(7, 4).output_at(8, 4).run(&device)
        };
        let sealed = memory(true);
        assert!(reg(sealed.as_raw_fd(), 0, 8192).is_ok() && reg(sealed.as_raw_fd(), 4096, 100).is_ok());
        assert_eq!(reg(sealed.as_raw_fd(), 4096, 4097), Err(libc::EINVAL), "past its end");
        assert_eq!(reg(memory(false).as_raw_fd(), 0, 8192), Err(libc::EINVAL), "it could shrink");
        assert_eq!(reg(device.as_raw_fd(), 0, 100), Err(libc::EINVAL));
        assert_eq!(reg(-1, 0, 100), Err(libc::EBADF));
        assert_eq!(reg(i32::MAX, 0, 100), Err(libc::EBADF));
    });
}

#[test]
fn a_program_that_takes_all_it_can_get_leaves_some_to_others() {
    on_a_node(1, "a_program_that_takes_all_it_can_get_leaves_some_to_others", || {
        let device = context();
        assert!((0..MAX_PD).all(|_| alloc_pd(&device).is_ok()));
        assert_eq!(alloc_pd(&device), Err(libc::ENOMEM), "as the driver says it when the device has no more");
        assert_eq!(alloc_pd(&context()), Err(libc::ENOMEM), "opening it again does not help");
        assert!(in_a_child(|| alloc_pd(&context()).is_ok()), "another program has its own");
    });
}

#[test]
fn open_devices_of_a_program_are_counted_and_open_says_so() {
    const NAME: &str = "open_devices_of_a_program_are_counted_and_open_says_so";
    let log = on_a_node_with("opens=5", NAME, || {
        let mut devices: Vec<_> = (0..5).map(|_| context()).collect();
        let refused = || File::open(DEVICE).err().and_then(|error| error.raw_os_error());
        assert_eq!(refused(), Some(libc::EMFILE));
        assert!(in_a_child(|| alloc_pd(&context()).is_ok()), "another program has its own");
        devices.pop();
        assert!(by_and_by(|| refused().is_none()));
        assert!(alloc_pd(&devices[0]).is_ok());
    });
    if !is_program() {
        assert!(log.contains("has 5 open devices and asks for 1 more: one program may have 5 (--quota)"), "{log}");
    }
}

#[test]
fn descriptors_that_a_program_costs_the_node_are_counted_and_come_back() {
    const NAME: &str = "descriptors_that_a_program_costs_the_node_are_counted_and_come_back";
    let log = on_a_node_with("descriptors=20", NAME, || {
        let device = context();
        let channels: Vec<_> = (0..16).map(|_| create_channel(&device).unwrap()).collect();
        assert_eq!(create_channel(&device).err(), Some(libc::EMFILE));
        assert_eq!(Command::new(16, 0).output_at(0, 8).run(&device).err(), Some(libc::EMFILE), "asynchronous events");
        let pd = alloc_pd(&device).unwrap();
        assert_eq!(reg_mr(&device, pd, [0u8; 100].as_ptr(), 100), Err(libc::EMFILE), "its memory takes one");
        let file = memory_file(0, 4096).unwrap();
        assert_eq!(reg_fd(&device, pd, &file, 4096), Err(libc::EMFILE));
        drop(channels);
        for _ in 0..100 {
            assert!(create_channel(&device).is_ok(), "those that are closed do not count");
        }
    });
    if !is_program() {
        let sentence = "has 20 descriptors of the node and asks for 1 more: one program may have 20 (--quota)";
        assert!(log.contains(sentence), "{log}");
    }
}

#[test]
fn memory_that_a_program_registers_is_counted_and_comes_back() {
    on_a_node_with("mapped=1m,registered=64k", "memory_that_a_program_registers_is_counted_and_comes_back", || {
        let device = context();
        let pd = alloc_pd(&device).unwrap();
        let file = memory_file(0, 8 << 40).unwrap();
        assert_eq!(reg_fd(&device, pd, &file, 8 << 40), Err(libc::ENOMEM));
        assert_eq!(reg_fd(&device, pd, &file, (1 << 20) + 1), Err(libc::ENOMEM));
        for _ in 0..10 {
            assert!(reg_fd(&device, pd, &file, 1 << 20).is_ok());
            assert_eq!(reg_fd(&device, pd, &file, 1), Err(libc::ENOMEM));
            let destroyed = (0..10).any(|handle| Command::new(MR, 1).number(0, handle).run(&device).is_ok());
            assert!(destroyed);
        }
        let bytes = vec![0u8; 64 << 10];
        assert!(reg_mr(&device, pd, bytes.as_ptr(), 64 << 10).is_ok());
        assert_eq!(reg_mr(&device, pd, bytes.as_ptr(), 1), Err(libc::ENOMEM));
    });
}

#[test]
fn a_memory_file_of_huge_pages_is_refused_for_what_it_is() {
    on_a_node(1, "a_memory_file_of_huge_pages_is_refused_for_what_it_is", || {
        let Some(file) = memory_file(libc::MFD_HUGETLB, 2 << 20) else {
            return println!("skipped: this kernel has no huge pages");
        };
        let device = context();
        let pd = alloc_pd(&device).unwrap();
        for len in [4096, 2 << 20] {
            assert_eq!(reg_fd(&device, pd, &file, len), Err(libc::EOPNOTSUPP), "holes in it could not be filled again");
        }
    });
}

/// Returns `true` if commands on an open device succeed, registering memory among them.
fn works(device: &File) -> bool {
    let bytes = [0u8; 100];
    alloc_pd(device).is_ok_and(|pd| reg_mr(device, pd, bytes.as_ptr(), 100).is_ok())
}

#[test]
fn a_program_that_changes_its_user_or_is_not_to_be_dumped_goes_on() {
    on_a_node(1, "a_program_that_changes_its_user_or_is_not_to_be_dumped_goes_on", || {
        let device = context();
        // SAFETY: these calls take numbers only.
        unsafe {
            if libc::geteuid() == 0 {
                assert_eq!((libc::setgid(65534), libc::setuid(65534)), (0, 0));
            }
            assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 0u64), 0);
        }
        assert!(works(&device), "what was open before");
        assert!(works(&context()), "what is opened after");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let device = device.try_clone().unwrap();
                std::thread::spawn(move || (0..50).all(|_| works(&device)))
            })
            .collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()), "several threads at once");
        assert!(in_a_child(|| works(&device)));
        // SAFETY: `PR_GET_DUMPABLE` has no further arguments.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, 0, "it still is not to be dumped");
    });
}

#[test]
fn a_program_that_clears_its_environment_still_has_the_device() {
    on_a_node(1, "a_program_that_clears_its_environment_still_has_the_device", || {
        let device = context();
        // SAFETY: no other thread of this program reads or changes the environment.
        unsafe { libc::clearenv() };
        assert!(works(&device) && works(&context()));
    });
}

/// Makes an empty folder the root directory. Returns `None` if this user may not.
fn change_root() -> Option<()> {
    let folder = std::env::temp_dir().join(format!("efa-empty-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let path = std::ffi::CString::new(folder.to_str().unwrap()).unwrap();
    // SAFETY: both paths are C strings that live until the call returns.
    let changed = unsafe {
        if libc::geteuid() != 0 {
            libc::unshare(libc::CLONE_NEWUSER);
        }
        libc::chroot(path.as_ptr()) == 0 && libc::chdir(c"/".as_ptr()) == 0
    };
    if !changed {
        println!("skipped: this user can make no root directory");
    }
    changed.then_some(())
}

#[test]
fn a_program_that_changes_its_root_goes_on_with_what_it_has_opened_and_opens_nothing_more() {
    const NAME: &str = "a_program_that_changes_its_root_goes_on_with_what_it_has_opened_and_opens_nothing_more";
    let log = on_a_node_with("", NAME, || {
        let before = context();
        assert!(in_a_child(|| {
            let Some(()) = change_root() else { return true };
            let absent = File::open(DEVICE).err().and_then(|error| error.raw_os_error());
            works(&before) && absent == Some(libc::ENOENT)
        }));
        // A program that has also closed the library's `/proc` cannot be reached, and gets an error.
        assert!(in_a_child(|| {
            let Some(()) = change_root() else { return true };
            // SAFETY: the child uses none of the closed descriptors afterwards.
            (3..70_000).filter(|&fd| fd != before.as_raw_fd()).for_each(|fd| unsafe { _ = libc::close(fd) });
            alloc_pd(&before) == Err(libc::ENOENT)
        }));
        assert!(works(&before), "nor has that harmed the device");
        // The folders are removed only here, because a root directory cannot be removed from inside.
        for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("efa-empty-") {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    });
    if !is_program() {
        let sentence = "the program cannot open its own /proc/thread-self/mem";
        assert!(!is_root() || log.contains(sentence), "{log}");
    }
}

/// Returns `true` if this user can certainly change root directories.
fn is_root() -> bool {
    // SAFETY: `geteuid` has no arguments and never fails.
    unsafe { libc::geteuid() == 0 }
}
