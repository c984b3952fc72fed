//! The process that makes a call: its memory, its descriptors, and the socket for the answer.

use crate::errno::{Errno, Outcome, refuse};
use crate::quota::{Account, Charge, Item};
use crate::talk::{self, MESSAGE_BYTES, Message};
use bytemuck::{AnyBitPattern, NoUninit};
use efa_memory::Backing;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock, Weak};

/// Sends a message with descriptors.
fn send(to: impl AsFd, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let bytes = IoSlice::new(bytemuck::bytes_of(message));
    sendmsg(to, &[bytes], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// A received message with its descriptors.
pub(crate) struct Received {
    pub(crate) message: Message,
    pub(crate) fds: Vec<OwnedFd>,
    /// `true` if the kernel dropped descriptors of the message because this process can have no more.
    pub(crate) lacks_fds: bool,
}

/// Sends a message that needs no answer.
pub(crate) fn tell(to: impl AsFd, message: &Message) -> Result<(), Errno> {
    send(to, message, &[])
}

/// Receives a message with its descriptors. Returns `None` if the other side has closed the connection, or sent a
/// message of the wrong length.
pub(crate) fn receive(from: impl AsFd) -> Option<Received> {
    let mut message = Message::default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let bytes = IoSliceMut::new(bytemuck::bytes_of_mut(&mut message));
        match recvmsg(&from, &mut [bytes], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received.ok()?,
        }
    };
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    let lacks_fds = received.flags.contains(ReturnFlags::CTRUNC);
    let is_whole = received.bytes == MESSAGE_BYTES && !received.flags.contains(ReturnFlags::TRUNC);
    is_whole.then_some(Received { message, fds, lacks_fds })
}

/// The file system type of `/proc` (`linux/magic.h`).
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// Returns the folder in `/proc` of the process that a file is about, if it is a file of `/proc` with this name.
///
/// The node reads no other files: a program could hand over one that has no end, or one that makes the device's thread
/// wait.
fn of_process(fd: impl AsFd, name: &str) -> Option<Vec<u8>> {
    let is_of_proc = rustix::fs::fstatfs(&fd).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC);
    let link = is_of_proc.then(|| format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?;
    let path = std::fs::read_link(link).ok()?;
    let folder = path.as_os_str().as_bytes().strip_suffix(name.as_bytes())?.strip_suffix(b"/")?;
    // A process's threads share these files' contents: `…/PID/task/TID/mem` is the same as `…/PID/mem`.
    let of_thread = folder.iter().rposition(|&byte| byte == b'/').and_then(|end| folder[..end].strip_suffix(b"/task"));
    Some(of_thread.unwrap_or(folder).to_vec())
}

/// A process that waits for the answer to its call.
pub(crate) struct Caller {
    /// The socket for the answer.
    answer: OwnedFd,
    memory: Result<Arc<Memory>, Errno>,
    account: Arc<Account>,
}

/// A process's memory, accessed through its file `mem` in `/proc`.
pub(crate) struct Memory {
    file: File,
    /// Counts the file as one of the program's descriptors, from the first registered region on.
    charge: OnceLock<Charge>,
}

/// The maximum number of processes of one open device whose memory is remembered.
const MOST_PROCESSES: usize = 64;

/// The memory of the processes that have called. All regions of one process share one descriptor, because a device can
/// have more regions than a node can have descriptors.
pub(crate) struct Memories {
    account: Arc<Account>,
    /// For each process the file system and the folder in `/proc`, and its memory as long as something uses it.
    known: Vec<(u64, Vec<u8>, Weak<Memory>)>,
    /// The memory of the last caller, which is likely to call again.
    last: Option<Arc<Memory>>,
}

impl Memories {
    pub(crate) fn new(account: Arc<Account>) -> Self {
        Self { account, known: Vec::new(), last: None }
    }

    /// Returns the memory of the process whose `mem` this file is: the memory known already, if its process still has
    /// something mapped at `addr`, or else a new one. Returns `None` if the file is not a process's `mem`.
    fn same(&mut self, file: OwnedFd, addr: u64) -> Option<Arc<Memory>> {
        let process = of_process(&file, "mem")?;
        let device = rustix::fs::fstat(&file).map_or(0, |stat| stat.st_dev);
        self.known.retain(|(.., memory)| memory.strong_count() > 0);
        let known = self.known.iter().find(|known| known.0 == device && known.1 == process);
        // If the process has executed another program since, the known file leads to the old memory, which does not
        // exist any more.
        let is_there = |memory: &Arc<Memory>| memory.file.read_exact_at(&mut [0], addr).is_ok();
        if let Some(memory) = known.and_then(|(.., memory)| memory.upgrade()).filter(is_there) {
            self.last = Some(memory.clone());
            return Some(memory);
        }
        self.known.retain(|known| known.0 != device || known.1 != process);
        if self.known.len() >= MOST_PROCESSES {
            self.known.remove(0);
        }
        let memory = Arc::new(Memory { file: File::from(file), charge: OnceLock::new() });
        self.known.push((device, process, Arc::downgrade(&memory)));
        self.last = Some(memory.clone());
        Some(memory)
    }
}

impl Caller {
    /// Creates the caller that sent these descriptors: the socket for the answer and, if the call needs it, the file of
    /// its memory, which has something mapped at `value`. If the caller could not open that file, `why` is its error
    /// number. Returns `None` without a socket.
    pub(crate) fn new(fds: Vec<OwnedFd>, value: u64, why: u64, memories: &mut Memories) -> Option<Self> {
        let mut fds = fds.into_iter();
        let answer = fds.next()?;
        let memory = match fds.next() {
            Some(fd) => memories.same(fd, value).ok_or(Errno::BADF),
            None => Err(i32::try_from(why)
                .ok()
                .filter(|why| (1..4096).contains(why))
                .map_or(Errno::NFILE, Errno::from_raw_os_error)),
        };
        Some(Self { answer, memory, account: memories.account.clone() })
    }

    /// Returns the account of the program that opened the device.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Returns the caller's memory.
    ///
    /// # Errors
    /// The caller could not open its memory, the node has no descriptor left for it, or the file is not a process's
    /// `mem`.
    fn memory(&self) -> Outcome<&Arc<Memory>> {
        let why = match self.memory {
            Ok(ref memory) => return Ok(memory),
            Err(Errno::NFILE) => "this process can have no more descriptors (ulimit -n)",
            Err(Errno::BADF) => "what the program says is its memory is not /proc/PID/mem",
            Err(_) => {
                "the program cannot open its own /proc/thread-self/mem, by which its memory is reached: is /proc there?"
            }
        };
        refuse(*self.memory.as_ref().err().unwrap_or(&Errno::FAULT), why)
    }

    /// Ends the call with this result.
    pub(crate) fn done(self, result: Result<i64, Errno>) {
        let value = result.unwrap_or_else(|errno| -i64::from(errno.raw_os_error()));
        self.say(&[talk::DONE, value as u64, 0], &[]);
    }

    /// Ends a call of `mmap`: the program maps this file from this offset on.
    pub(crate) fn done_with_file(self, file: BorrowedFd<'_>, offset: u64) {
        self.say(&[talk::DONE, 0, offset], &[file]);
    }

    fn say(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = send(&self.answer, message, fds) {
            tracing::debug!(%error, "a program was gone before its call was answered");
        }
    }

    /// Reads bytes of the caller's memory.
    pub(crate) fn read_bytes(&self, addr: u64, bytes: &mut [u8]) -> Outcome<()> {
        Ok(self.memory()?.file.read_exact_at(bytes, addr).map_err(|_| Errno::FAULT)?)
    }

    /// Reads a value from the caller's memory.
    pub(crate) fn read<T: AnyBitPattern + NoUninit>(&self, addr: u64) -> Outcome<T> {
        let mut value = T::zeroed();
        self.read_bytes(addr, bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// Writes bytes to the caller's memory.
    pub(crate) fn write_bytes(&self, addr: u64, bytes: &[u8]) -> Outcome<()> {
        Ok(self.memory()?.file.write_all_at(bytes, addr).map_err(|_| Errno::FAULT)?)
    }

    /// Returns a copy of the caller's descriptor with this number.
    pub(crate) fn fd(&self, number: i32) -> Result<OwnedFd, Errno> {
        self.ask(&[talk::ASK, number as u64, 0]).ok_or(Errno::BADF)
    }

    /// Sends the caller a descriptor. The caller stores its number at `addr`, in 4 or 8 bytes.
    pub(crate) fn give(&self, fd: BorrowedFd<'_>, addr: u64, bytes: u64) -> Outcome<()> {
        // The preloaded library stores the number with an ordinary store, which must not fault. This write fails if
        // nothing is mapped there. (A read-only mapping still makes the program fault, because this write ignores the
        // protection.)
        self.write_bytes(addr, &[0xff; 8][..bytes as usize])?;
        Ok(send(&self.answer, &[talk::GIVE, addr, bytes], &[fd])?)
    }

    fn ask(&self, question: &Message) -> Option<OwnedFd> {
        self.say(question, &[]);
        let answer = receive(&self.answer).filter(|answer| answer.message[0] == talk::HERE)?;
        answer.fds.into_iter().next()
    }

    /// Returns a part of the caller's memory for a device to read and, if it is `writable`, to write.
    ///
    /// The memory is not pinned: accesses fail after the program has unmapped it.
    ///
    /// # Errors
    /// `EFAULT` if a part of it is not mapped, or not with these rights.
    pub(crate) fn region(&self, addr: u64, len: u64, writable: bool) -> Outcome<Region> {
        let memory = self.memory()?.clone();
        let (Some(end), Ok(bytes)) = (addr.checked_add(len), usize::try_from(len)) else {
            return refuse(Errno::INVAL, format!("{len} bytes at {addr:#x} wrap"));
        };
        let charge = self.account.charge(Item::Registered, len)?;
        let Some(maps) = self.ask(&[talk::ASK_MAPS, 0, 0]).filter(|maps| of_process(maps, "maps").is_some()) else {
            return refuse(Errno::FAULT, "the program does not say what it has mapped (/proc/thread-self/maps)");
        };
        match first_gap(File::from(maps), addr..end, writable) {
            Ok(None) => {}
            Ok(Some(gap)) => {
                let lack = if writable { "mapped for reading and writing" } else { "mapped for reading" };
                return refuse(Errno::FAULT, format!("{len} bytes at {addr:#x}: at {gap:#x} nothing is {lack}"));
            }
            Err(error) => return refuse(Errno::FAULT, format!("what the program says it has mapped: {error}")),
        }
        if memory.charge.get().is_none() {
            let _ = memory.charge.set(self.account.charge(Item::Descriptors, 1)?);
        }
        Ok(Region { memory, addr, len: bytes, _charge: charge })
    }
}

/// The maximum length of a line of `maps` in bytes: a name has at most 4 KiB, and each byte may be written as four.
const LONGEST_LINE: u64 = 20 << 10;
/// The maximum number of bytes of `maps` that are read: a hundred for each of 2.5 million mappings, more than any
/// process has.
const LONGEST_MAPS: u64 = 256 << 20;

/// Returns the first address of a range that is not mapped with the required rights (read, or read and write),
/// according to a process's `maps`. Keeps only one line of `maps` in memory at a time.
fn first_gap(maps: impl Read, range: Range<u64>, writable: bool) -> io::Result<Option<u64>> {
    let mut next = range.start;
    let (mut maps, mut line) = (BufReader::with_capacity(64 << 10, maps.take(LONGEST_MAPS)), Vec::new());
    while next < range.end {
        line.clear();
        let bytes = (&mut maps).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if bytes == 0 && maps.get_ref().limit() != 0 {
            break; // the end of the file
        }
        if line.last() != Some(&b'\n') {
            let problem = format!("a line of more than {bytes} bytes, or more than {LONGEST_MAPS} bytes in all");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let Some((start, end, rights)) = parse(&line) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line that says no mapping"));
        };
        if end <= next {
            continue;
        }
        if start > next || !rights.starts_with('r') || writable && !rights.starts_with("rw") {
            break;
        }
        next = end;
    }
    Ok((next < range.end).then_some(next))
}

/// Parses a line of `maps`: the first address, the end address and the rights.
fn parse(line: &[u8]) -> Option<(u64, u64, &str)> {
    let mut words = line.split(u8::is_ascii_whitespace).map(|word| str::from_utf8(word).ok());
    let (start, end) = words.next()??.split_once('-')?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    Some((hex(start)?, hex(end)?, words.next()??))
}

/// A registered region of a process's memory. The device accesses it by system calls on the process's `mem`.
pub(crate) struct Region {
    memory: Arc<Memory>,
    addr: u64,
    len: usize,
    /// Counts the bytes as registered.
    _charge: Charge,
}

impl Backing for Region {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.memory.file.read_exact_at(dst, self.addr + offset as u64).is_ok()
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.memory.file.write_all_at(src, self.addr + offset as u64).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{Accounts, Quotas};

    const MAPS: &str = "\
1000-3000 r-xp 00000000 fe:00 1 /bin/true
3000-5000 rw-p 00000000 00:00 0
5000-6000 rw-s 00000000 00:01 2 /memfd:x (deleted)
8000-9000 ---p 00000000 00:00 0 [stack]
";

    fn account(quotas: Quotas) -> Arc<Account> {
        Accounts::new(quotas).of(1)
    }

    fn file(path: &str) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn a_range_is_mapped_where_every_byte_of_it_is_and_as_it_must_be() {
        for (range, writable, gap) in [
            (0x1000..0x6000, false, None),
            (0x3000..0x6000, true, None),
            (0x2fff..0x6000, true, Some(0x2fff)),
            (0x4800..0x4801, true, None),
            (0x5fff..0x6001, true, Some(0x6000)),
            (0x7000..0x7001, false, Some(0x7000)),
            (0x8000..0x8010, false, Some(0x8000)),
            (0x9000..0x9001, false, Some(0x9000)),
            (0xfff..0x1001, false, Some(0xfff)),
            (0x7000..0x7000, false, None),
        ] {
            assert_eq!(first_gap(MAPS.as_bytes(), range.clone(), writable).unwrap(), gap, "{range:x?}");
        }
    }

    /// A reader that counts the bytes read from it.
    struct Counted<'a, R>(R, &'a mut u64);

    impl<R: Read> Read for Counted<'_, R> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(bytes)?;
            *self.1 += count as u64;
            Ok(count)
        }
    }

    #[test]
    fn maps_without_end_are_read_as_far_as_maps_go() {
        let mut read = 0;
        let gap = first_gap(Counted(io::repeat(0), &mut read), 1..2, false);
        assert!(gap.is_err() && read < 1 << 20, "{gap:?}, {read} bytes read of a line without end");
        assert!(first_gap(&b"\n\n"[..], 1..2, false).is_err() && first_gap(&b"Rss: 1 kB\n"[..], 1..2, false).is_err());
        // Valid lines without end.
        let mut line = b"0-1 r--p 00000000 00:00 0 /".to_vec();
        line.resize(4095, b'x');
        line.push(b'\n');
        struct Lines(Vec<u8>);
        impl Read for Lines {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                (&self.0[..]).read(bytes)
            }
        }
        let mut read = 0;
        let gap = first_gap(Counted(Lines(line), &mut read), 1..2, false);
        assert!(gap.is_err() && read == LONGEST_MAPS, "{gap:?}, {read} bytes read");
    }

    #[test]
    fn only_what_the_kernel_says_about_a_process_is_taken_for_that() {
        for (path, name, is_that) in [
            ("/proc/self/mem", "mem", true),
            ("/proc/thread-self/mem", "mem", true),
            ("/proc/self/maps", "maps", true),
            ("/proc/self/maps", "mem", false),
            ("/proc/self/pagemap", "maps", false),
            ("/proc/meminfo", "mem", false),
            ("/dev/zero", "mem", false),
        ] {
            assert_eq!(of_process(file(path), name).is_some(), is_that, "{path} as {name}");
        }
        assert_eq!(of_process(file("/proc/self/mem"), "mem"), of_process(file("/proc/thread-self/mem"), "mem"));
    }

    #[test]
    fn callers_of_one_process_share_a_descriptor_of_its_memory_whichever_thread_they_are() {
        let (mut memories, byte) = (Memories::new(account(Quotas::default())), 7u8);
        let addr = std::ptr::from_ref(&byte) as u64;
        let first = memories.same(file("/proc/thread-self/mem"), addr).unwrap();
        let other = std::thread::spawn(|| file("/proc/thread-self/mem")).join().unwrap();
        assert!(Arc::ptr_eq(&first, &memories.same(other, addr).unwrap()));
        let parent = format!("/proc/{}/mem", std::os::unix::process::parent_id());
        if let Ok(parent) = File::open(parent) {
            // The other process calls in between.
            assert!(!Arc::ptr_eq(&first, &memories.same(parent.into(), addr).unwrap()));
            assert!(Arc::ptr_eq(&first, &memories.same(file("/proc/self/mem"), addr).unwrap()));
        }
        let other = memories.same(file("/proc/self/mem"), 8).unwrap();
        assert!(!Arc::ptr_eq(&first, &other), "nothing is there: it may be another program's");
        assert!(memories.same(file("/proc/self/maps"), addr).is_none());
    }

    #[test]
    fn memory_that_is_gone_is_not_accessed() {
        let account = account(Quotas::default());
        let file = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        let memory = Arc::new(Memory { file, charge: OnceLock::new() });
        let bytes = [7u8; 100];
        let region = |addr| {
            let _charge = account.charge(Item::Registered, 100).ok().unwrap();
            Region { memory: memory.clone(), addr, len: 100, _charge }
        };
        let mut copy = [0; 100];
        assert!(region(bytes.as_ptr() as u64).read(0, &mut copy));
        assert_eq!(copy, [7; 100]);
        assert!(!region(8).read(0, &mut copy) && !region(8).write(0, &copy));
    }
}
