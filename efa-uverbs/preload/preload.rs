//! The library that is preloaded into a program, so that the program finds a node's software devices at
//! `/dev/infiniband`.
//!
//! It knows nothing about verbs. It answers `open` and `stat` of the device files, forwards `ioctl` and `mmap` of open
//! devices to the node, which does what the kernel would do, and hides the machine's real devices. All other calls go
//! to the C library. Its only state is a descriptor of `/proc`: the descriptor of an open device is a socket that is
//! connected to the node, so `dup`, `fork` and `close` work as usual.
//!
//! The library consists of this file and `talk.rs`, and uses only the standard library. The build script of
//! `efa-uverbs` compiles it with `rustc` alone, and the crate contains it as bytes.

#![deny(unsafe_op_in_unsafe_fn)]
#![allow(non_camel_case_types)]

mod talk;

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::mem::{transmute, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};
use talk::*;

// ── the parts of the C library that are used ──

type mode_t = c_uint;
type off_t = i64;

const AF_UNIX: c_int = 1;
const AF_NETLINK: c_int = 16;
const NETLINK_RDMA: c_int = 20;
const SOCK_SEQPACKET: c_int = 5;
const SOCK_CLOEXEC: c_int = 0o2000000;
const SOL_SOCKET: c_int = 1;
const SCM_RIGHTS: c_int = 1;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const S_IFMT: u32 = 0o170000;
const S_IFSOCK: u32 = 0o140000;
const S_IFCHR: u32 = 0o020000;
const EINTR: c_int = 4;
const EIO: c_int = 5;
const EAGAIN: c_int = 11;
const ENODEV: c_int = 19;
const EMFILE: c_int = 24;
const EPROTONOSUPPORT: c_int = 93;
const MAP_FAILED: *mut c_void = -1isize as *mut c_void;
const EACCES: c_int = 13;
const O_RDWR: c_int = 2;
const O_CLOEXEC: c_int = 0o2000000;
const O_PATH: c_int = 0o10000000;
const AT_FDCWD: c_int = -100;
const F_DUPFD_CLOEXEC: c_int = 1030;
const PR_GET_DUMPABLE: c_int = 3;
const PR_SET_DUMPABLE: c_int = 4;
/// The file system type of `/proc` (`linux/magic.h`).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

#[repr(C)]
struct sockaddr_un {
    family: u16,
    path: [u8; 108],
}

#[repr(C)]
struct iovec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct msghdr {
    name: *mut c_void,
    name_len: u32,
    iov: *mut iovec,
    iov_len: usize,
    control: *mut c_void,
    control_len: usize,
    flags: c_int,
}

/// A control message with up to two descriptors.
#[repr(C)]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; 2],
}

const RIGHTS_HEADER: usize = 16;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
    fn connect(fd: c_int, address: *const sockaddr_un, len: u32) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int;
    fn getpeername(fd: c_int, address: *mut sockaddr_un, len: *mut u32) -> c_int;
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> isize;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn fstatfs(fd: c_int, out: *mut [u64; 32]) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

/// Looks up the C library's own function of this name and type.
macro_rules! next {
    ($name:expr, $type:ty) => {{
        static FOUND: AtomicUsize = AtomicUsize::new(0);
        let mut found = FOUND.load(Relaxed);
        if found == 0 {
            // SAFETY: `concat!` ends the name with a zero.
            found = unsafe { dlsym(RTLD_NEXT, concat!($name, "\0").as_ptr().cast()) } as usize;
            FOUND.store(found, Relaxed);
        }
        if found == 0 {
            None
        } else {
            // SAFETY: the address is not null, and each use of the macro names the type with which the C library's
            // headers declare the function.
            Some(unsafe { transmute::<usize, $type>(found) })
        }
    }};
}

fn errno() -> c_int {
    // SAFETY: `__errno_location` returns the address of the calling thread's `errno`, which is always valid.
    unsafe { *__errno_location() }
}

/// Sets `errno` and returns -1, as system calls do on failure.
fn fail<T: From<i8>>(error: c_int) -> T {
    // SAFETY: `__errno_location` returns the address of the calling thread's `errno`, which is always valid.
    unsafe { *__errno_location() = error };
    T::from(-1)
}

/// The error (`ENOSYS`) of a function that this version of the C library does not have.
const MISSING: c_int = 38;

/// Disables cancellation of this thread as long as it lives. The messages are cancellation points; the functions that
/// are replaced, such as `ioctl` and `mmap`, are not.
struct Uncancelled(c_int);

impl Uncancelled {
    fn now() -> Self {
        let mut before = 0;
        // SAFETY: 1 is `PTHREAD_CANCEL_DISABLE`, and `before` is a local.
        unsafe { pthread_setcancelstate(1, &mut before) };
        Self(before)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: the state is one that `pthread_setcancelstate` returned; the second argument is a temporary.
        unsafe { pthread_setcancelstate(self.0, &mut 0) };
    }
}

// ── which file is a device ──

/// Returns the node's folder if this process runs on a node. The variable is read when the process starts, so the
/// program may change its environment later.
fn node() -> Option<&'static [u8]> {
    static NODE: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    NODE.get_or_init(|| std::env::var_os(NODE_VARIABLE).map(OsStringExt::into_vec)).as_deref()
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = {
    extern "C" fn look() {
        node();
    }
    look
};

/// Returns the number in a device file's name.
fn number_in(name: &[u8]) -> Option<u32> {
    let digits = name.strip_prefix(DEVICE_PREFIX.as_bytes())?;
    let is_number = !digits.is_empty() && digits.len() < 4 && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// Returns the number of the device file that a path names, if the node has this device.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn device_of_path(path: *const c_char) -> Option<u32> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller guarantees a C string, and it is not null.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let number = number_in(path.strip_prefix(b"/dev/infiniband/")?)?;
    let address = address_of(number)?;
    let socket = CStr::from_bytes_until_nul(&address.path).ok()?;
    std::fs::symlink_metadata(OsStr::from_bytes(socket.to_bytes())).is_ok().then_some(number)
}

/// Returns the address of the socket to which a program connects to open this device.
fn address_of(number: u32) -> Option<sockaddr_un> {
    let path = [node()?, format!("/{DEVICE_PREFIX}{number}").as_bytes()].concat();
    let mut address = sockaddr_un { family: AF_UNIX as u16, path: [0; 108] };
    // At most 107 bytes, so that a zero follows.
    address.path[..107].get_mut(..path.len())?.copy_from_slice(&path);
    Some(address)
}

/// Returns the number of the device that a descriptor has open. Allocates nothing, so that `fstat` stays safe to call
/// in a signal handler.
fn device_of_fd(fd: c_int) -> Option<u32> {
    let node = node()?;
    let mut address = sockaddr_un { family: 0, path: [0; 108] };
    let mut len = size_of::<sockaddr_un>() as u32;
    let before = errno();
    // SAFETY: both are locals to write to, and `len` is the size of `address`.
    let peer = unsafe { getpeername(fd, &mut address, &mut len) };
    if peer != 0 || address.family != AF_UNIX as u16 {
        fail::<i32>(before); // restores `errno`
        return None;
    }
    let path = CStr::from_bytes_until_nul(&address.path).ok()?.to_bytes();
    number_in(path.strip_prefix(node)?.strip_prefix(b"/")?)
}

/// Opens a device by connecting to its node.
fn open_device(number: u32) -> c_int {
    let _uncancelled = Uncancelled::now();
    let Some(address) = address_of(number) else { return fail(ENODEV) };
    let Some(socket) = next!("socket", unsafe extern "C" fn(c_int, c_int, c_int) -> c_int) else {
        return fail(MISSING);
    };
    // SAFETY: `socket` takes numbers only.
    let fd = unsafe { socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return -1;
    }
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the address is a local of the length that is passed.
    while unsafe { connect(fd.as_raw_fd(), &address, size_of::<sockaddr_un>() as u32) } != 0 {
        if errno() != EINTR {
            return fail(ENODEV); // the node is gone
        }
    }
    match receive(fd.as_raw_fd()) {
        Ok(([OPENED, ..], _)) => {}
        Ok(([REFUSED, error, _], _)) => return fail(error as c_int),
        _ => return fail(ENODEV), // the node is gone
    }
    keep_proc();
    std::os::fd::IntoRawFd::into_raw_fd(fd)
}

// ── files of `/proc` about this process ──

/// A descriptor of `/proc`, opened with the first device, for programs that change their root directory afterwards. -1
/// if there is none. Its number is high, so that it does not take a low number that a program may rely on.
static PROC: AtomicI32 = AtomicI32::new(-1);

/// Opens a file relative to a folder.
fn open_at(folder: c_int, path: &CStr, flags: c_int) -> Result<OwnedFd, c_int> {
    let Some(openat) = next!("openat", unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int) else {
        return Err(MISSING);
    };
    // SAFETY: a `CStr` is a C string; without `O_CREAT` there is no third argument.
    match unsafe { openat(folder, path.as_ptr(), flags | O_CLOEXEC) } {
        // SAFETY: the descriptor was just opened, and nothing else owns it.
        fd if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(errno()),
    }
}

/// Returns `true` if a descriptor still is `/proc`. The program may have closed it and opened something else with the
/// same number.
fn is_proc(fd: c_int) -> bool {
    let mut out = [0; 32];
    // SAFETY: `out` is a local of 256 bytes, and a `struct statfs` has 120. Its first word is the type.
    fd >= 0 && unsafe { fstatfs(fd, &mut out) } == 0 && out[0] == PROC_SUPER_MAGIC
}

/// Opens `/proc` for later, unless it is open already.
fn keep_proc() {
    if is_proc(PROC.load(Relaxed)) {
        return;
    }
    if let Ok(proc) = open_at(AT_FDCWD, c"/proc", O_PATH) {
        // The highest of these numbers that the program's limit allows.
        let dup = |least: &c_int| {
            // SAFETY: `F_DUPFD_CLOEXEC` takes a number.
            let fd = unsafe { fcntl(proc.as_raw_fd(), F_DUPFD_CLOEXEC, *least) };
            (fd >= 0).then_some(fd)
        };
        PROC.store([1000, 100, 3].iter().find_map(dup).unwrap_or(-1), Relaxed);
    }
}

/// Opens a file of `/proc` about this thread.
///
/// In a process that has changed its user or is not dumpable, such files belong to root. The process can open them
/// while it is dumpable, so it makes itself dumpable for the moment of opening.
fn of_this_thread(path: &CStr, flags: c_int) -> Result<OwnedFd, c_int> {
    let open = || match open_at(PROC.load(Relaxed), path, flags) {
        // There is no such descriptor, or the program has opened something else with its number.
        Err(error) if error != EACCES => {
            let path = [b"/proc/", path.to_bytes_with_nul()].concat();
            open_at(AT_FDCWD, CStr::from_bytes_with_nul(&path).map_err(|_| EIO)?, flags)
        }
        opened => opened,
    };
    let mut opened = open();
    // Repeated, because another thread in this function may make the process undumpable in between.
    for _ in 0..100 {
        if !matches!(opened, Err(EACCES)) {
            break;
        }
        // SAFETY: `PR_GET_DUMPABLE` has no further arguments.
        let before = unsafe { prctl(PR_GET_DUMPABLE) };
        // SAFETY: `PR_SET_DUMPABLE` takes a number.
        unsafe { prctl(PR_SET_DUMPABLE, 1 as c_ulong) };
        opened = open();
        if before != 1 {
            // SAFETY: `PR_SET_DUMPABLE` takes a number.
            unsafe { prctl(PR_SET_DUMPABLE, 0 as c_ulong) };
        }
    }
    opened
}

// ── messages to and from the node ──

/// Sends a message with descriptors.
fn send(over: RawFd, message: &Message, fds: &[RawFd]) -> Result<(), c_int> {
    let mut rights = Rights { len: RIGHTS_HEADER + 4 * fds.len(), level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [0; 2] };
    rights.fds[..fds.len()].copy_from_slice(fds);
    let mut iov = iovec { base: std::ptr::from_ref(message).cast_mut().cast(), len: MESSAGE_BYTES };
    // SAFETY: a `msghdr` consists of numbers and pointers, for which zero is valid.
    let mut header: msghdr = unsafe { zeroed() };
    (header.iov, header.iov_len) = (&mut iov, 1);
    if !fds.is_empty() {
        (header.control, header.control_len) = (std::ptr::from_mut(&mut rights).cast(), size_of::<Rights>());
    }
    loop {
        // SAFETY: the header points to locals of this function, with their sizes.
        match unsafe { sendmsg(over, &header, MSG_NOSIGNAL) } {
            n if n == MESSAGE_BYTES as isize => return Ok(()),
            _ if errno() == EINTR => {}
            // The program has made its descriptor non-blocking.
            _ if errno() == EAGAIN => std::thread::yield_now(),
            _ => return Err(EIO), // the node is gone; the kernel returns this for a disassociated device
        }
    }
}

/// Receives a message, and its descriptor if it has one.
fn receive(from: RawFd) -> Result<(Message, Option<OwnedFd>), c_int> {
    let mut message = Message::default();
    let mut rights = Rights { len: 0, level: 0, kind: 0, fds: [-1; 2] };
    let mut iov = iovec { base: message.as_mut_ptr().cast(), len: MESSAGE_BYTES };
    // SAFETY: a `msghdr` consists of numbers and pointers, for which zero is valid.
    let mut header: msghdr = unsafe { zeroed() };
    (header.iov, header.iov_len) = (&mut iov, 1);
    (header.control, header.control_len) = (std::ptr::from_mut(&mut rights).cast(), size_of::<Rights>());
    loop {
        // SAFETY: the header points to locals of this function, with their sizes.
        match unsafe { recvmsg(from, &mut header, MSG_CMSG_CLOEXEC) } {
            n if n == MESSAGE_BYTES as isize => break,
            -1 if errno() == EINTR => {}
            _ => return Err(EIO),
        }
    }
    let came = header.control_len >= RIGHTS_HEADER + 4 && rights.kind == SCM_RIGHTS && rights.level == SOL_SOCKET;
    // SAFETY: the kernel has just created this descriptor for the receiver, and nothing else owns it.
    Ok((message, came.then(|| unsafe { OwnedFd::from_raw_fd(rights.fds[0]) })))
}

/// Sends a request to the node and waits for the answer. Meanwhile replies to the node's questions, which only this
/// process can answer.
fn call(device: RawFd, kind: u64, value: u64) -> Result<(i64, u64, Option<OwnedFd>), c_int> {
    let _uncancelled = Uncancelled::now();
    let mut ends = [-1; 2];
    // SAFETY: `ends` is a local with room for two descriptors.
    if unsafe { socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.as_mut_ptr()) } != 0 {
        return Err(errno());
    }
    // SAFETY: both descriptors were just opened, and nothing else owns them.
    let [ours, theirs] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let memory = if kind == IOCTL { Some(of_this_thread(c"thread-self/mem", O_RDWR)) } else { None };
    match &memory {
        Some(Ok(memory)) => send(device, &[kind, value, 0], &[theirs.as_raw_fd(), memory.as_raw_fd()])?,
        // The node logs what the error means.
        Some(Err(error)) => send(device, &[kind, value, *error as u64], &[theirs.as_raw_fd()])?,
        None => send(device, &[kind, value, 0], &[theirs.as_raw_fd()])?,
    }
    drop((theirs, memory));
    let reply = |fd: Option<RawFd>| match fd {
        Some(fd) => send(ours.as_raw_fd(), &[HERE, 0, 0], &[fd]),
        None => send(ours.as_raw_fd(), &[NOT_HERE, 0, 0], &[]),
    };
    loop {
        let ([kind, a, b], fd) = receive(ours.as_raw_fd())?;
        match kind {
            DONE => return Ok((a as i64, b, fd)),
            GIVE => {
                // The descriptor is missing if this process can have no more.
                let fd = std::os::fd::IntoRawFd::into_raw_fd(fd.ok_or(EMFILE)?);
                // SAFETY: the node takes the address and the size from the command's attribute for this number. The
                // program that wrote the command is responsible for the address, as it is with the kernel; and the node
                // has just written to it, so something is mapped there.
                unsafe {
                    match b {
                        8 => (a as *mut i64).write_unaligned(fd.into()),
                        _ => (a as *mut i32).write_unaligned(fd),
                    }
                }
            }
            // Sending fails if the number is not a descriptor of this process.
            ASK => reply(Some(a as RawFd)).or_else(|_| reply(None))?,
            ASK_MAPS => reply(of_this_thread(c"thread-self/maps", 0).ok().as_ref().map(AsRawFd::as_raw_fd))?,
            _ => return Err(EIO),
        }
    }
}

// ── files ──

macro_rules! open {
    ($($name:ident)*) => { $(
        /// Opens a file.
        ///
        /// # Safety
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the caller passes a C string, as the C library's function requires.
            if let Some(number) = unsafe { device_of_path(path) } {
                return open_device(number);
            }
            match next!(stringify!($name), unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int) {
                // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
                Some(open) => unsafe { open(path, flags, mode) },
                None => fail(MISSING),
            }
        }
    )* };
}
macro_rules! openat {
    ($($name:ident)*) => { $(
        /// Opens a file relative to a folder.
        ///
        /// # Safety
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the caller passes a C string, as the C library's function requires.
            if let Some(number) = unsafe { device_of_path(path) } {
                return open_device(number);
            }
            match next!(stringify!($name), unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int) {
                // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
                Some(open) => unsafe { open(folder, path, flags, mode) },
                None => fail(MISSING),
            }
        }
    )* };
}
// On 64-bit Linux, x86-64 and aarch64 pass an optional argument in a register, so it can always be read and passed on.
open!(open open64 __open_2 __open64_2);
openat!(openat openat64 __openat_2 __openat64_2);

/// Fills in a device file's `struct stat`.
///
/// # Safety
/// `out` is valid for writes of a `struct stat`.
unsafe fn describe(number: u32, out: *mut u8) {
    // The offsets of the fields `st_nlink`, `st_mode` and `st_rdev`, and the size of the structure, in bytes.
    #[cfg(target_arch = "x86_64")]
    const STAT: [usize; 4] = [16, 24, 40, 144];
    #[cfg(not(target_arch = "x86_64"))]
    const STAT: [usize; 4] = [20, 16, 32, 128];
    let [links, mode, device, bytes] = STAT;
    // SAFETY: the caller guarantees that `out` is valid for a `struct stat`, and all offsets are in it and aligned for
    // their fields.
    unsafe {
        out.write_bytes(0, bytes);
        out.add(links).cast::<u32>().write(1);
        out.add(mode).cast::<u32>().write(S_IFCHR | 0o666);
        out.add(device).cast::<u64>().write(u64::from(MAJOR) << 8 | u64::from(BASE_MINOR + number));
    }
}

macro_rules! stat {
    ($($name:ident($($extra:ident: $type:ty)*))*) => { $(
        /// Describes the file at a path.
        ///
        /// # Safety
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($extra: $type,)* path: *const c_char, out: *mut u8) -> c_int {
            // SAFETY: the caller passes a C string, as the C library's function requires.
            if let Some(number) = unsafe { device_of_path(path) } {
                // SAFETY: the caller passes a `struct stat` to write to, as the C library's function requires.
                unsafe { describe(number, out) };
                return 0;
            }
            match next!(stringify!($name), unsafe extern "C" fn($($type,)* *const c_char, *mut u8) -> c_int) {
                // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
                Some(stat) => unsafe { stat($($extra,)* path, out) },
                None => fail(MISSING),
            }
        }
    )* };
}
macro_rules! fstat {
    ($($name:ident($($extra:ident: $type:ty)*))*) => { $(
        /// Describes an open file.
        ///
        /// # Safety
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($extra: $type,)* fd: c_int, out: *mut u8) -> c_int {
            let Some(stat) = next!(stringify!($name), unsafe extern "C" fn($($type,)* c_int, *mut u8) -> c_int) else {
                return fail(MISSING);
            };
            // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
            let result = unsafe { stat($($extra,)* fd, out) };
            let mode = if cfg!(target_arch = "x86_64") { 24 } else { 16 };
            // SAFETY: the call succeeded, so the C library has filled in the structure; `st_mode` is at this offset.
            if result == 0 && unsafe { out.add(mode).cast::<u32>().read() } & S_IFMT == S_IFSOCK {
                if let Some(number) = device_of_fd(fd) {
                    // SAFETY: the caller passes a `struct stat` to write to, as the C library's function requires.
                    unsafe { describe(number, out) };
                }
            }
            result
        }
    )* };
}
stat!(stat() stat64() lstat() lstat64() __xstat(version: c_int) __xstat64(version: c_int));
fstat!(fstat() fstat64() __fxstat(version: c_int) __fxstat64(version: c_int));

macro_rules! fstatat {
    ($($name:ident)*) => { $(
        /// Describes the file at a path relative to a folder, or an open file.
        ///
        /// # Safety
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(folder: c_int, path: *const c_char, out: *mut u8, flags: c_int) -> c_int {
            // SAFETY: the caller passes null or a C string, as the C library's function requires.
            if let Some(number) = unsafe { device_at(folder, path, flags) } {
                // SAFETY: the caller passes a `struct stat` to write to, as the C library's function requires.
                unsafe { describe(number, out) };
                return 0;
            }
            match next!(stringify!($name), unsafe extern "C" fn(c_int, *const c_char, *mut u8, c_int) -> c_int) {
                // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
                Some(stat) => unsafe { stat(folder, path, out, flags) },
                None => fail(MISSING),
            }
        }
    )* };
}
fstatat!(fstatat fstatat64);

/// Returns the number of the device at a path, or that of a descriptor if the path is empty and the flags allow it.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn device_at(folder: c_int, path: *const c_char, flags: c_int) -> Option<u32> {
    // SAFETY: the caller guarantees a C string, which has at least one byte, and it is not null.
    let is_empty = path.is_null() || unsafe { path.read() } == 0;
    if is_empty && flags & AT_EMPTY_PATH != 0 {
        return device_of_fd(folder);
    }
    // SAFETY: the caller guarantees that `path` is null or a C string.
    unsafe { device_of_path(path) }
}

/// Flag: an empty path means the descriptor itself.
const AT_EMPTY_PATH: c_int = 0x1000;

/// Describes a file with a `struct statx`.
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(folder: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut u8) -> c_int {
    // SAFETY: the caller passes null or a C string, as the C library's function requires.
    if let Some(number) = unsafe { device_at(folder, path, flags) } {
        // SAFETY: the caller passes a `struct statx` to write to. It has 256 bytes, and the offsets are those of
        // `stx_mask`, `stx_nlink`, `stx_mode` and `stx_rdev_major`.
        unsafe {
            out.write_bytes(0, 256);
            out.cast::<u32>().write(0x7); // type, mode, links
            out.add(16).cast::<u32>().write(1);
            out.add(28).cast::<u16>().write((S_IFCHR | 0o666) as u16);
            out.add(128).cast::<[u32; 2]>().write([MAJOR, BASE_MINOR + number]);
        }
        return 0;
    }
    match next!("statx", unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint, *mut u8) -> c_int) {
        // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
        Some(statx) => unsafe { statx(folder, path, flags, mask, out) },
        None => fail(MISSING),
    }
}

/// Checks whether the process may access a file.
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the caller passes a C string, as the C library's function requires.
    if unsafe { device_of_path(path) }.is_some() {
        return 0;
    }
    match next!("access", unsafe extern "C" fn(*const c_char, c_int) -> c_int) {
        // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
        Some(access) => unsafe { access(path, mode) },
        None => fail(MISSING),
    }
}

/// Checks whether the process may access a file relative to a folder.
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn faccessat(folder: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller passes a C string, as the C library's function requires.
    if unsafe { device_of_path(path) }.is_some() {
        return 0;
    }
    match next!("faccessat", unsafe extern "C" fn(c_int, *const c_char, c_int, c_int) -> c_int) {
        // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
        Some(access) => unsafe { access(folder, path, mode, flags) },
        None => fail(MISSING),
    }
}

/// Opens a socket. Sockets to the kernel's RDMA subsystem are refused, because it would report the machine's real
/// devices.
#[unsafe(no_mangle)]
pub extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if domain == AF_NETLINK && protocol == NETLINK_RDMA && node().is_some() {
        return fail(EPROTONOSUPPORT);
    }
    match next!("socket", unsafe extern "C" fn(c_int, c_int, c_int) -> c_int) {
        // SAFETY: `socket` takes numbers only.
        Some(socket) => unsafe { socket(domain, kind, protocol) },
        None => fail(MISSING),
    }
}

// ── calls on an open device ──

/// Sends a command to a device.
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel uses only the lower 32 bits.
    if request as u32 == RDMA_VERBS_IOCTL && device_of_fd(fd).is_some() {
        return match call(fd, IOCTL, argument as u64) {
            Ok((result, ..)) if result >= 0 => result as c_int,
            Ok((error, ..)) => fail(-error as c_int),
            Err(error) => fail(error),
        };
    }
    match next!("ioctl", unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int) {
        // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
        Some(ioctl) => unsafe { ioctl(fd, request, argument) },
        None => fail(MISSING),
    }
}

type Mmap = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, off_t) -> *mut c_void;

/// Maps a file. If it is a device, maps the memory that the node has at this offset.
///
/// # Safety
/// As for the C library's `mmap`.
unsafe fn map(
    mmap: Option<Mmap>,
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let Some(mmap) = mmap else {
        fail::<c_long>(MISSING);
        return MAP_FAILED;
    };
    // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
    let mapped = unsafe { mmap(at, len, protection, flags, fd, offset) };
    // The descriptor of a device is a socket, and mapping a socket fails with `ENODEV`.
    if mapped != MAP_FAILED || fd < 0 || errno() != ENODEV || device_of_fd(fd).is_none() {
        return mapped;
    }
    let error = match call(fd, MAP, offset as u64) {
        Ok((result, begin, Some(file))) if result >= 0 => {
            // SAFETY: address, length and flags are the caller's own, which fulfil this function's contract. The file
            // is open during the call.
            return unsafe { mmap(at, len, protection, flags, file.as_raw_fd(), begin as off_t) };
        }
        Ok((0, ..)) => EMFILE, // this process had no descriptor left for the file
        Ok((error, ..)) => -error as c_int,
        Err(error) => error,
    };
    fail::<c_long>(error);
    MAP_FAILED
}

macro_rules! mmap {
    ($($name:ident)*) => { $(
        /// Maps a file.
        ///
        /// # Safety
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: off_t,
        ) -> *mut c_void {
            let mmap = next!(stringify!($name), Mmap);
            // SAFETY: the arguments are the caller's own, which fulfil this function's contract.
            unsafe { map(mmap, at, len, protection, flags, fd, offset) }
        }
    )* };
}
mmap!(mmap mmap64);

const _: () = assert!(size_of::<Rights>() == RIGHTS_HEADER + 8);
