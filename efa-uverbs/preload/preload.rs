//! The library that is preloaded into a program so that it finds a node's software devices at `/dev/infiniband`.
//!
//! It knows nothing of verbs. It answers `open` and `stat` of the device files, takes `ioctl` and `mmap` of what it opened to the node,
//! which does what the kernel would, and hides the machine's real devices. Everything else goes on to the C library. It keeps no state
//! but `/proc`: what an open device is says its descriptor, a socket connected to the node, so that `dup`, `fork` and `close` mean what they always
//! mean.
//!
//! One file and its neighbour `talk.rs`, the standard library and nothing else: the build script of `efa-uverbs` compiles it with `rustc`
//! alone and puts it into the crate as bytes.

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

// ── the C library, as far as it is needed ──

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
/// What `/proc` says it is (`linux/magic.h`).
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

/// A control message with descriptors; there are never more than two.
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

/// The C library's own function of a name, as this type.
macro_rules! next {
    ($name:expr, $type:ty) => {{
        static FOUND: AtomicUsize = AtomicUsize::new(0);
        let mut found = FOUND.load(Relaxed);
        if found == 0 {
            // SAFETY: the name is a C string.
            found = unsafe { dlsym(RTLD_NEXT, concat!($name, "\0").as_ptr().cast()) } as usize;
            FOUND.store(found, Relaxed);
        }
        if found == 0 {
            None
        } else {
            // SAFETY: the C library declares the function with this type.
            Some(unsafe { transmute::<usize, $type>(found) })
        }
    }};
}

fn errno() -> c_int {
    // SAFETY: it is this thread's.
    unsafe { *__errno_location() }
}

/// Fails as system calls do.
fn fail<T: From<i8>>(error: c_int) -> T {
    // SAFETY: it is this thread's.
    unsafe { *__errno_location() = error };
    T::from(-1)
}

/// A function that the C library lacks, which only one of another version can call.
const MISSING: c_int = 38; // ENOSYS

/// As long as this lives, the thread is not cancelled: what is called here can be cancelled, what it stands for cannot.
struct Uncancelled(c_int);

impl Uncancelled {
    fn now() -> Self {
        let mut before = 0;
        // SAFETY: `before` is valid for writes; 1 is PTHREAD_CANCEL_DISABLE.
        unsafe { pthread_setcancelstate(1, &mut before) };
        Self(before)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: it was the state before.
        unsafe { pthread_setcancelstate(self.0, &mut 0) };
    }
}

// ── which file is a device ──

/// The node's folder, if this process is on one: what the environment said at its start, whatever the program has made of that since.
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

/// The number in a device's name.
fn number_in(name: &[u8]) -> Option<u32> {
    let digits = name.strip_prefix(DEVICE_PREFIX.as_bytes())?;
    let is_number = !digits.is_empty() && digits.len() < 4 && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// The number of the device file that a path names, if a node has it.
///
/// # Safety
/// `path` must be null or a C string.
unsafe fn device_of_path(path: *const c_char) -> Option<u32> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let number = number_in(path.strip_prefix(b"/dev/infiniband/")?)?;
    let address = address_of(number)?;
    let socket = CStr::from_bytes_until_nul(&address.path).ok()?;
    std::fs::symlink_metadata(OsStr::from_bytes(socket.to_bytes())).is_ok().then_some(number)
}

/// Where the node listens for programs that open this device.
fn address_of(number: u32) -> Option<sockaddr_un> {
    let path = [node()?, format!("/{DEVICE_PREFIX}{number}").as_bytes()].concat();
    let mut address = sockaddr_un { family: AF_UNIX as u16, path: [0; 108] };
    // With a zero behind it.
    address.path[..107].get_mut(..path.len())?.copy_from_slice(&path);
    Some(address)
}

/// The number of the device that a descriptor has open. Allocates nothing, so that it does no harm where `fstat` does none.
fn device_of_fd(fd: c_int) -> Option<u32> {
    let node = node()?;
    let mut address = sockaddr_un { family: 0, path: [0; 108] };
    let mut len = size_of::<sockaddr_un>() as u32;
    let before = errno();
    // SAFETY: both are valid for writes, and `len` is the first one's length.
    let peer = unsafe { getpeername(fd, &mut address, &mut len) };
    if peer != 0 || address.family != AF_UNIX as u16 {
        fail::<i32>(before); // as it was
        return None;
    }
    let path = CStr::from_bytes_until_nul(&address.path).ok()?.to_bytes();
    number_in(path.strip_prefix(node)?.strip_prefix(b"/")?)
}

/// Opens a device: connects to its node.
fn open_device(number: u32) -> c_int {
    let _uncancelled = Uncancelled::now();
    let Some(address) = address_of(number) else { return fail(ENODEV) };
    let Some(socket) = next!("socket", unsafe extern "C" fn(c_int, c_int, c_int) -> c_int) else {
        return fail(MISSING);
    };
    // SAFETY: a system call on numbers.
    let fd = unsafe { socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return -1;
    }
    // SAFETY: it was just opened, and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the address is one, of this length.
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

// ── this process, whatever becomes of it ──

/// `/proc` as it was when a device was opened, for programs that change their root directory afterwards; -1: none was. It has a high number, out of
/// the way of programs that count on low ones.
static PROC: AtomicI32 = AtomicI32::new(-1);

/// Opens a file relative to a folder.
fn open_at(folder: c_int, path: &CStr, flags: c_int) -> Result<OwnedFd, c_int> {
    let Some(openat) = next!("openat", unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int) else {
        return Err(MISSING);
    };
    // SAFETY: the path is a C string.
    match unsafe { openat(folder, path.as_ptr(), flags | O_CLOEXEC) } {
        // SAFETY: it was just opened, and is nobody else's.
        fd if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(errno()),
    }
}

/// Whether a descriptor still is `/proc`, and not something that the program has opened since in its place.
fn is_proc(fd: c_int) -> bool {
    let mut out = [0; 32];
    // SAFETY: there is more room than a `struct statfs` needs; its first word is the kind.
    fd >= 0 && unsafe { fstatfs(fd, &mut out) } == 0 && out[0] == PROC_SUPER_MAGIC
}

/// Keeps `/proc` for later.
fn keep_proc() {
    if is_proc(PROC.load(Relaxed)) {
        return;
    }
    if let Ok(proc) = open_at(AT_FDCWD, c"/proc", O_PATH) {
        // As high as the program may have one.
        let dup = |least: &c_int| {
            // SAFETY: a system call on numbers.
            let fd = unsafe { fcntl(proc.as_raw_fd(), F_DUPFD_CLOEXEC, *least) };
            (fd >= 0).then_some(fd)
        };
        PROC.store([1000, 100, 3].iter().find_map(dup).unwrap_or(-1), Relaxed);
    }
}

/// Opens a file of `/proc` that is about this thread.
///
/// Such files are root's in a process that has changed its user, or has said that it is not to be dumped. They can be opened while it says
/// that it is; so it does, for as long as that takes.
fn of_this_thread(path: &CStr, flags: c_int) -> Result<OwnedFd, c_int> {
    let open = || match open_at(PROC.load(Relaxed), path, flags) {
        // None was kept, or the program has something else there by now.
        Err(error) if error != EACCES => {
            let path = [b"/proc/", path.to_bytes_with_nul()].concat();
            open_at(AT_FDCWD, CStr::from_bytes_with_nul(&path).map_err(|_| EIO)?, flags)
        }
        opened => opened,
    };
    let mut opened = open();
    // Again, since another thread that does the same may take back what this one has said.
    for _ in 0..100 {
        if !matches!(opened, Err(EACCES)) {
            break;
        }
        // SAFETY: system calls on numbers.
        let before = unsafe { prctl(PR_GET_DUMPABLE) };
        // SAFETY: as above.
        unsafe { prctl(PR_SET_DUMPABLE, 1 as c_ulong) };
        opened = open();
        if before != 1 {
            // SAFETY: as above.
            unsafe { prctl(PR_SET_DUMPABLE, 0 as c_ulong) };
        }
    }
    opened
}

// ── the conversation ──

fn send(over: RawFd, message: &Message, fds: &[RawFd]) -> Result<(), c_int> {
    let mut rights = Rights { len: RIGHTS_HEADER + 4 * fds.len(), level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [0; 2] };
    rights.fds[..fds.len()].copy_from_slice(fds);
    let mut iov = iovec { base: std::ptr::from_ref(message).cast_mut().cast(), len: MESSAGE_BYTES };
    // SAFETY: zeros are an empty header.
    let mut header: msghdr = unsafe { zeroed() };
    (header.iov, header.iov_len) = (&mut iov, 1);
    if !fds.is_empty() {
        (header.control, header.control_len) = (std::ptr::from_mut(&mut rights).cast(), size_of::<Rights>());
    }
    loop {
        // SAFETY: everything that the header points to lives until the call returns.
        match unsafe { sendmsg(over, &header, MSG_NOSIGNAL) } {
            n if n == MESSAGE_BYTES as isize => return Ok(()),
            _ if errno() == EINTR => {}
            // The program has made its descriptor one that does not wait.
            _ if errno() == EAGAIN => std::thread::yield_now(),
            _ => return Err(EIO), // the node is gone: what a disassociated device answers
        }
    }
}

fn receive(from: RawFd) -> Result<(Message, Option<OwnedFd>), c_int> {
    let mut message = Message::default();
    let mut rights = Rights { len: 0, level: 0, kind: 0, fds: [-1; 2] };
    let mut iov = iovec { base: message.as_mut_ptr().cast(), len: MESSAGE_BYTES };
    // SAFETY: zeros are an empty header.
    let mut header: msghdr = unsafe { zeroed() };
    (header.iov, header.iov_len) = (&mut iov, 1);
    (header.control, header.control_len) = (std::ptr::from_mut(&mut rights).cast(), size_of::<Rights>());
    loop {
        // SAFETY: everything that the header points to lives until the call returns.
        match unsafe { recvmsg(from, &mut header, MSG_CMSG_CLOEXEC) } {
            n if n == MESSAGE_BYTES as isize => break,
            -1 if errno() == EINTR => {}
            _ => return Err(EIO),
        }
    }
    let came = header.control_len >= RIGHTS_HEADER + 4 && rights.kind == SCM_RIGHTS && rights.level == SOL_SOCKET;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((message, came.then(|| unsafe { OwnedFd::from_raw_fd(rights.fds[0]) })))
}

/// Has the node do something, and does for it what only this process can.
fn call(device: RawFd, kind: u64, value: u64) -> Result<(i64, u64, Option<OwnedFd>), c_int> {
    let _uncancelled = Uncancelled::now();
    let mut ends = [-1; 2];
    // SAFETY: room for two.
    if unsafe { socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.as_mut_ptr()) } != 0 {
        return Err(errno());
    }
    // SAFETY: they were just opened, and are nobody else's.
    let [ours, theirs] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let memory = if kind == IOCTL { Some(of_this_thread(c"thread-self/mem", O_RDWR)) } else { None };
    match &memory {
        Some(Ok(memory)) => send(device, &[kind, value, 0], &[theirs.as_raw_fd(), memory.as_raw_fd()])?,
        // The node says in its log what that means.
        Some(Err(error)) => send(device, &[kind, value, *error as u64], &[theirs.as_raw_fd()])?,
        None => send(device, &[kind, value, 0], &[theirs.as_raw_fd()])?,
    }
    drop((theirs, memory));
    let answer = |there: Option<RawFd>| match there {
        Some(fd) => send(ours.as_raw_fd(), &[HERE, 0, 0], &[fd]),
        None => send(ours.as_raw_fd(), &[NOT_HERE, 0, 0], &[]),
    };
    loop {
        let ([kind, a, b], fd) = receive(ours.as_raw_fd())?;
        match kind {
            DONE => return Ok((a as i64, b, fd)),
            GIVE => {
                // It does not come along where this process can have no more of them.
                let fd = std::os::fd::IntoRawFd::into_raw_fd(fd.ok_or(EMFILE)?);
                // SAFETY: the command names the address as a place for a number of this size, which whoever wrote the command vouches for; the node
                // has found something mapped there.
                unsafe {
                    match b {
                        8 => (a as *mut i64).write_unaligned(fd.into()),
                        _ => (a as *mut i32).write_unaligned(fd),
                    }
                }
            }
            // A number that is no descriptor cannot be sent, and the node is told so.
            ASK => answer(Some(a as RawFd)).or_else(|_| answer(None))?,
            ASK_MAPS => answer(of_this_thread(c"thread-self/maps", 0).ok().as_ref().map(AsRawFd::as_raw_fd))?,
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
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the caller's promise.
            if let Some(number) = unsafe { device_of_path(path) } {
                return open_device(number);
            }
            match next!(stringify!($name), unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int) {
                // SAFETY: the caller's promise.
                Some(open) => unsafe { open(path, flags, mode) },
                None => fail(MISSING),
            }
        }
    )* };
}
macro_rules! openat {
    ($($name:ident)*) => { $(
        /// Opens a file.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the caller's promise.
            if let Some(number) = unsafe { device_of_path(path) } {
                return open_device(number);
            }
            match next!(stringify!($name), unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int) {
                // SAFETY: the caller's promise.
                Some(open) => unsafe { open(folder, path, flags, mode) },
                None => fail(MISSING),
            }
        }
    )* };
}
// Arguments that may be missing are in registers in either calling convention of Linux on 64 bits, so taking them always is fine.
open!(open open64 __open_2 __open64_2);
openat!(openat openat64 __openat_2 __openat64_2);

/// A device file's `struct stat`.
///
/// # Safety
/// `out` must be valid for writes of a `struct stat`.
unsafe fn describe(number: u32, out: *mut u8) {
    // Offsets of the fields, and the size.
    #[cfg(target_arch = "x86_64")]
    const STAT: [usize; 4] = [16, 24, 40, 144];
    #[cfg(not(target_arch = "x86_64"))]
    const STAT: [usize; 4] = [20, 16, 32, 128];
    let [links, mode, device, bytes] = STAT;
    // SAFETY: all of it is inside the structure.
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
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($extra: $type,)* path: *const c_char, out: *mut u8) -> c_int {
            // SAFETY: the caller's promise.
            if let Some(number) = unsafe { device_of_path(path) } {
                // SAFETY: the caller's promise.
                unsafe { describe(number, out) };
                return 0;
            }
            match next!(stringify!($name), unsafe extern "C" fn($($type,)* *const c_char, *mut u8) -> c_int) {
                // SAFETY: the caller's promise.
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
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($extra: $type,)* fd: c_int, out: *mut u8) -> c_int {
            let Some(stat) = next!(stringify!($name), unsafe extern "C" fn($($type,)* c_int, *mut u8) -> c_int) else {
                return fail(MISSING);
            };
            // SAFETY: the caller's promise.
            let result = unsafe { stat($($extra,)* fd, out) };
            let mode = if cfg!(target_arch = "x86_64") { 24 } else { 16 };
            // SAFETY: the C library has filled the structure in.
            if result == 0 && unsafe { out.add(mode).cast::<u32>().read() } & S_IFMT == S_IFSOCK {
                if let Some(number) = device_of_fd(fd) {
                    // SAFETY: the caller's promise.
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
        /// Describes the file at a path below a folder, or an open file.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(folder: c_int, path: *const c_char, out: *mut u8, flags: c_int) -> c_int {
            // SAFETY: the caller's promise.
            if let Some(number) = unsafe { device_at(folder, path, flags) } {
                // SAFETY: the caller's promise.
                unsafe { describe(number, out) };
                return 0;
            }
            match next!(stringify!($name), unsafe extern "C" fn(c_int, *const c_char, *mut u8, c_int) -> c_int) {
                // SAFETY: the caller's promise.
                Some(stat) => unsafe { stat(folder, path, out, flags) },
                None => fail(MISSING),
            }
        }
    )* };
}
fstatat!(fstatat fstatat64);

/// The number of the device at a path, or behind a descriptor if the path is empty and that is allowed.
///
/// # Safety
/// `path` must be null or a C string.
unsafe fn device_at(folder: c_int, path: *const c_char, flags: c_int) -> Option<u32> {
    // SAFETY: the caller's promise.
    let is_empty = path.is_null() || unsafe { path.read() } == 0;
    if is_empty && flags & AT_EMPTY_PATH != 0 {
        return device_of_fd(folder);
    }
    // SAFETY: the caller's promise.
    unsafe { device_of_path(path) }
}

/// An empty path means the descriptor itself.
const AT_EMPTY_PATH: c_int = 0x1000;

/// Describes a file, in the newer way.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(folder: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut u8) -> c_int {
    // SAFETY: the caller's promise.
    if let Some(number) = unsafe { device_at(folder, path, flags) } {
        // SAFETY: the caller's promise; the offsets are those of `struct statx`.
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
        // SAFETY: the caller's promise.
        Some(statx) => unsafe { statx(folder, path, flags, mask, out) },
        None => fail(MISSING),
    }
}

/// Whether a file may be accessed.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { device_of_path(path) }.is_some() {
        return 0;
    }
    match next!("access", unsafe extern "C" fn(*const c_char, c_int) -> c_int) {
        // SAFETY: the caller's promise.
        Some(access) => unsafe { access(path, mode) },
        None => fail(MISSING),
    }
}

/// Whether a file below a folder may be accessed.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn faccessat(folder: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { device_of_path(path) }.is_some() {
        return 0;
    }
    match next!("faccessat", unsafe extern "C" fn(c_int, *const c_char, c_int, c_int) -> c_int) {
        // SAFETY: the caller's promise.
        Some(access) => unsafe { access(folder, path, mode, flags) },
        None => fail(MISSING),
    }
}

/// Opens a socket. None to the kernel's RDMA subsystem: it would tell of the machine's real devices.
#[unsafe(no_mangle)]
pub extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if domain == AF_NETLINK && protocol == NETLINK_RDMA && node().is_some() {
        return fail(EPROTONOSUPPORT);
    }
    match next!("socket", unsafe extern "C" fn(c_int, c_int, c_int) -> c_int) {
        // SAFETY: a system call on numbers.
        Some(socket) => unsafe { socket(domain, kind, protocol) },
        None => fail(MISSING),
    }
}

// ── what is done to an open device ──

/// Commands a device.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel takes 32 bits of it.
    if request as u32 == RDMA_VERBS_IOCTL && device_of_fd(fd).is_some() {
        return match call(fd, IOCTL, argument as u64) {
            Ok((result, ..)) if result >= 0 => result as c_int,
            Ok((error, ..)) => fail(-error as c_int),
            Err(error) => fail(error),
        };
    }
    match next!("ioctl", unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int) {
        // SAFETY: the caller's promise.
        Some(ioctl) => unsafe { ioctl(fd, request, argument) },
        None => fail(MISSING),
    }
}

type Mmap = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, off_t) -> *mut c_void;

/// Maps a file; where that is a device, what the node has at this offset.
///
/// # Safety
/// As the C library's.
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
    // SAFETY: the caller's promise.
    let mapped = unsafe { mmap(at, len, protection, flags, fd, offset) };
    // A socket cannot be mapped: only then can it be a device.
    if mapped != MAP_FAILED || fd < 0 || errno() != ENODEV || device_of_fd(fd).is_none() {
        return mapped;
    }
    let error = match call(fd, MAP, offset as u64) {
        Ok((result, begin, Some(file))) if result >= 0 => {
            // SAFETY: the caller's promise.
            return unsafe { mmap(at, len, protection, flags, file.as_raw_fd(), begin as off_t) };
        }
        Ok((0, ..)) => EMFILE, // the file was not let in
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
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: off_t,
        ) -> *mut c_void {
            let mmap = next!(stringify!($name), Mmap);
            // SAFETY: the caller's promise.
            unsafe { map(mmap, at, len, protection, flags, fd, offset) }
        }
    )* };
}
mmap!(mmap mmap64);

const _: () = assert!(size_of::<Rights>() == RIGHTS_HEADER + 8);
