//! A node: software devices, the folder in which programs find them, and the threads that answer programs.

use crate::caller::{Caller, Memories, Received, receive, tell};
use crate::commands;
use crate::context::Context;
use crate::device::SoftDevice;
use crate::errno::Outcome;
use crate::quota::{Account, Accounts, Charge, Item, Quotas};
use crate::sysfs::{self, CounterFiles};
use crate::talk::{self, DEVICE_PREFIX, NODE_VARIABLE};
use efa_soft::driver::SoftSpec;
use efa_types::Gid;
use rustix::fs::{FlockOperation, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// The preloaded library, which every program of a node gets.
const PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libefa_preload.so"));
/// The prefix of the name of a node's folder.
const FOLDER: &str = "efa-node-";
/// The file in a node's folder that the node keeps locked as long as it lives.
const LOCK: &str = "lock";
/// The interval at which counters are written to their files.
const COUNTING: Duration = Duration::from_millis(100);
/// The age from which on a folder without a lock file belongs to no node. A younger one may belong to a node that is
/// starting.
const YOUNG: Duration = Duration::from_secs(60);

/// The reason why a node could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The number of devices is invalid.
    #[error("{0} devices asked for: a node has 1 to 32")]
    Devices(usize),
    /// The dynamic loader would not load the preloaded library from the folder for temporary files.
    #[error("{} {problem}: set TMPDIR to another folder", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        problem: &'static str,
    },
    /// An operation of the operating system failed.
    #[error("{doing}")]
    Io {
        /// The operation.
        doing: String,
        /// The operating system's error.
        source: io::Error,
    },
}

fn io_error<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Error {
    |source| Error::Io { doing: doing.into(), source: source.into() }
}

/// A node: software devices, which programs that are [started](Self::command) on it see as the machine's only RDMA
/// devices.
///
/// Dropping a node removes its folder, and no program can open a device any more. A device that a program has open
/// continues until the program closes it. If this process ends, the program's calls fail with `EIO`.
pub struct Node {
    folder: TempDir,
    devices: Vec<Arc<SoftDevice>>,
    /// The sockets to which programs connect when they open a device.
    sockets: Vec<Arc<OwnedFd>>,
    /// `true` tells the node's threads to end.
    is_stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// The lock on the folder, which other nodes respect when they remove folders of dead nodes.
    _lock: File,
}

impl Node {
    /// Starts a node with these devices and the default [`Quotas`].
    ///
    /// # Errors
    /// There is no device or more than 32, an address cannot be used, or the folder for temporary files cannot be used.
    pub fn start(devices: &[SoftSpec]) -> Result<Self, Error> {
        Self::with_quotas(devices, Quotas::default())
    }

    /// Starts a node with these devices and quotas.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn with_quotas(devices: &[SoftSpec], quotas: Quotas) -> Result<Self, Error> {
        if !(1..=32).contains(&devices.len()) {
            return Err(Error::Devices(devices.len()));
        }
        let temporary = std::env::temp_dir();
        check_folder(&temporary)?;
        remove_dead(&temporary);
        let folder = tempfile::Builder::new().prefix(FOLDER).tempdir_in(&temporary);
        let folder = folder.map_err(io_error(format!("making a folder in {}", temporary.display())))?;
        let lock = lock(folder.path()).map_err(io_error("locking the folder"))?;
        fs::write(preload(folder.path()), PRELOAD).map_err(io_error("writing the preloaded library"))?;
        let root = sysfs_root(folder.path());
        sysfs::create(&root).map_err(io_error("making the sysfs tree"))?;
        let is_for_all = rustix::process::geteuid().is_root();
        if is_for_all {
            // Programs may become other users and keep their environment. So other users may enter the folder, but not
            // list it.
            open_to_all(folder.path(), 0o711).map_err(io_error("opening the folder to programs of other users"))?;
            open_to_all(&preload(folder.path()), 0o755).map_err(io_error("opening the preloaded library to others"))?;
        }
        let accounts = Arc::new(Accounts::new(quotas));

        let mut node = Self {
            folder,
            devices: Vec::new(),
            sockets: Vec::new(),
            is_stopping: Arc::default(),
            threads: Vec::new(),
            _lock: lock,
        };
        let mut counters = Vec::new();
        for (number, spec) in devices.iter().enumerate() {
            let started = spec.start(true).and_then(|handle| SoftDevice::new(number as u8, handle));
            let device = Arc::new(started.map_err(io_error(format!("starting device {number}")))?);
            let files = sysfs::add(&root, number as u32, &device).map_err(io_error("making the sysfs tree"))?;
            counters.push((device.clone(), files));
            let socket = node.folder.path().join(format!("{DEVICE_PREFIX}{number}"));
            let listening = Arc::new(listen(&socket).map_err(io_error("listening for programs"))?);
            if is_for_all {
                open_to_all(&socket, 0o666).map_err(io_error("opening a device to programs of other users"))?;
            }
            node.sockets.push(listening.clone());
            node.spawn("efa-node-listen", {
                let (device, accounts) = (device.clone(), accounts.clone());
                move |is_stopping| serve(&listening, &device, &accounts, is_stopping)
            })?;
            node.devices.push(device);
        }
        node.spawn("efa-node-count", move |is_stopping| count(&mut counters, is_stopping))?;
        Ok(node)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<(), Error> {
        let is_stopping = self.is_stopping.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&is_stopping));
        self.threads.push(thread.map_err(io_error("starting a thread"))?);
        Ok(())
    }

    /// Returns the names and addresses of the devices.
    pub fn devices(&self) -> impl Iterator<Item = (&str, Gid)> {
        self.devices.iter().map(|device| (device.name.as_str(), device.config.attributes.gid))
    }

    /// Returns the folder that programs see as `/sys`. The devices' counters can be read there, too.
    pub fn sysfs(&self) -> PathBuf {
        sysfs_root(self.folder.path())
    }

    /// Returns the environment variables with which a program sees this node's devices and no others.
    pub fn environment(&self) -> [(&'static str, OsString); 3] {
        let mut libraries = preload(self.folder.path()).into_os_string();
        if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
            libraries.push(":");
            libraries.push(others);
        }
        let folder = self.folder.path().as_os_str().to_owned();
        [(NODE_VARIABLE, folder), ("SYSFS_PATH", self.sysfs().into_os_string()), ("LD_PRELOAD", libraries)]
    }

    /// Creates a command that starts a program on this node.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.is_stopping.store(true, Relaxed);
        for socket in &self.sockets {
            // Wakes the thread that accepts connections there.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn preload(folder: &Path) -> PathBuf {
    folder.join("libefa_preload.so")
}

fn sysfs_root(folder: &Path) -> PathBuf {
    folder.join("sys")
}

/// Refuses a folder from which the dynamic loader would not preload a library. The loader itself would only print a
/// warning and start the program without the library.
fn check_folder(folder: &Path) -> Result<(), Error> {
    let refuse = |problem| Err(Error::Folder { folder: folder.to_owned(), problem });
    if folder.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b' ' | b':')) {
        return refuse("has a blank or a colon in its name");
    }
    let flags = rustix::fs::statvfs(folder).map_err(io_error(format!("looking at {}", folder.display())))?.f_flag;
    if flags.contains(StatVfsMountFlags::NOEXEC) { refuse("is on a file system mounted noexec") } else { Ok(()) }
}

/// Creates and locks a folder's lock file. The file gets its name only after it is locked, so that it never appears
/// unlocked.
fn lock(folder: &Path) -> io::Result<File> {
    let new = folder.join("lock.new");
    let lock = File::create(&new)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    fs::rename(new, folder.join(LOCK))?;
    Ok(lock)
}

/// Removes the folders of this user's nodes that were killed.
fn remove_dead(temporary: &Path) {
    let me = rustix::process::geteuid().as_raw();
    for folder in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let is_nodes = folder.file_name().as_encoded_bytes().starts_with(FOLDER.as_bytes());
        let Ok(metadata) = folder.metadata() else { continue };
        if !is_nodes || !metadata.is_dir() || metadata.uid() != me {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let is_dead = match rustix::fs::open(folder.path().join(LOCK), flags, Mode::empty()) {
            Ok(lock) => rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Err(Errno::NOENT) => {
                let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
                age.is_some_and(|age| age > YOUNG)
            }
            Err(_) => false,
        };
        if is_dead {
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}

/// Creates a socket at this path that accepts connections.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Sets the permissions of a file so that other users can use it.
fn open_to_all(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Returns the id of the process that has connected to a socket. It is 0 if the process is in a PID namespace that this
/// one cannot see.
fn process_of(socket: &OwnedFd) -> i32 {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // `rustix` has no process id 0. SAFETY: `credentials` and `len` are locals, and `len` is the size of `credentials`.
    let _ = unsafe {
        let place = (&raw mut credentials).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &mut len)
    };
    credentials.pid
}

/// The number of descriptors that an open device takes: two sockets, and two that a call brings along.
const DESCRIPTORS: u64 = 4;

/// Accepts programs that open a device, until the node stops.
fn serve(socket: &OwnedFd, device: &Arc<SoftDevice>, accounts: &Accounts, is_stopping: &AtomicBool) {
    let mut is_logged = false;
    loop {
        let program = rustix::net::accept_with(socket, SocketFlags::CLOEXEC);
        if is_stopping.load(Relaxed) {
            return;
        }
        let program = match program {
            Ok(program) => program,
            Err(error) => {
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::error!(%error, device = device.name, "a program that opens the device has to wait");
                }
                // Other programs may free descriptors meanwhile.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        let account = accounts.of(process_of(&program));
        let charges = match charge(&account) {
            Ok(charges) => charges,
            Err(refusal) => {
                let errno = refusal.errno;
                if account.is_first_refusal() {
                    tracing::warn!(device = device.name, ?errno, "open failed: {}", refusal.why);
                }
                let _ = tell(&program, &[talk::REFUSED, errno.raw_os_error() as u64, 0]);
                continue;
            }
        };
        let (device, greeting) = (device.clone(), program.try_clone());
        let thread = std::thread::Builder::new().name("efa-node-context".into());
        let spawned = thread.spawn(move || {
            let _charges = charges;
            let _ = tell(&program, &[talk::OPENED, 0, 0]);
            answer(&program, device, account);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "a program could not be served");
            if let Ok(program) = greeting {
                let _ = tell(&program, &[talk::REFUSED, Errno::AGAIN.raw_os_error() as u64, 0]);
            }
        }
    }
}

/// Counts an open device in a program's account.
fn charge(account: &Arc<Account>) -> Outcome<[Charge; 2]> {
    Ok([account.charge(Item::Opens, 1)?, account.charge(Item::Descriptors, DESCRIPTORS)?])
}

/// Answers a program's calls until it closes the device or ends.
fn answer(program: &OwnedFd, device: Arc<SoftDevice>, account: Arc<Account>) {
    let (mut context, mut memories) = (Context::new(device, account.clone()), Memories::new(account));
    while let Some(Received { message: [kind, value, why], fds, lacks_fds }) = receive(program) {
        let Some(caller) = Caller::new(fds, value, why, &mut memories) else {
            // The program does not wait forever: the socket for the answer is closed by now, so its call fails.
            if lacks_fds {
                tracing::error!("a call has no answer: this process can have no more descriptors (ulimit -n)");
            } else {
                tracing::debug!("a program says something that is no call");
            }
            continue;
        };
        match kind {
            talk::IOCTL => {
                let result = commands::ioctl(&mut context, &caller, value);
                caller.done(result);
            }
            talk::MAP => match context.map(value).map(|memory| memory.file()) {
                Ok(Some(file)) => caller.done_with_file(file, 0),
                Ok(None) => caller.done(Err(Errno::NODEV)),
                Err(errno) => caller.done(Err(errno)),
            },
            _ => caller.done(Err(Errno::NOTTY)),
        }
    }
}

/// Keeps the files of the counters up to date until the node stops.
fn count(counters: &mut [(Arc<SoftDevice>, CounterFiles)], is_stopping: &AtomicBool) {
    while !is_stopping.load(Relaxed) {
        for (device, files) in &mut *counters {
            if let Err(error) = files.update(device) {
                tracing::debug!(%error, "writing counters");
            }
        }
        std::thread::sleep(COUNTING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_nodes_are_removed_and_others_stay() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = |name: &str, lock: bool| {
            let path = temporary.path().join(name);
            fs::create_dir_all(path.join("sys")).unwrap();
            (lock.then(|| File::create(path.join(LOCK)).unwrap()), path)
        };
        let (_, killed) = folder("efa-node-killed", true);
        let (lock, alive) = folder("efa-node-alive", true);
        rustix::fs::flock(lock.as_ref().unwrap(), FlockOperation::LockExclusive).unwrap();
        let (_, starting) = folder("efa-node-starting", false);
        let (_, other) = folder("other", true);
        remove_dead(temporary.path());
        assert_eq!([killed, alive, starting, other].map(|path| path.exists()), [false, true, true, true]);
    }

    #[test]
    fn a_node_that_is_dropped_leaves_nothing() {
        let node = Node::start(&[SoftSpec::default(), SoftSpec::default()]).unwrap();
        let folder = node.folder.path().to_owned();
        let counters = node.sysfs().join("class/infiniband/rdmap80s0/ports/1/hw_counters/tx_pkts");
        let start = std::time::Instant::now();
        while !counters.exists() {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        assert_eq!(node.devices().count(), 2);
        drop(node);
        assert!(!folder.exists());
        assert!(matches!(Node::start(&[]), Err(Error::Devices(0))));
    }

    #[test]
    fn a_node_whose_folder_someone_has_removed_ends_all_the_same() {
        let node = Node::start(&[SoftSpec::default()]).unwrap();
        // Removing fails while the node creates files of counters in it.
        while fs::remove_dir_all(node.folder.path()).is_err() {}
        drop(node);
    }

    #[test]
    fn a_folder_that_the_loader_would_not_take_a_library_from_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        for (name, good) in [("fine", true), ("not fine", false), ("nor:this", false)] {
            let folder = temporary.path().join(name);
            fs::create_dir(&folder).unwrap();
            assert_eq!(check_folder(&folder).is_ok(), good, "{name}");
        }
        let said = check_folder(&temporary.path().join("not fine")).unwrap_err().to_string();
        assert!(said.contains("has a blank or a colon in its name: set TMPDIR"), "{said}");
    }
}
