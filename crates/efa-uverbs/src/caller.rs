//! The process that makes a call, as far as the call needs it: its memory, its descriptors, and where the answer goes.

use crate::errno::{Errno, Outcome, refuse};
use crate::talk::{self, MESSAGE_BYTES, Message};
use bytemuck::{AnyBitPattern, NoUninit};
use efa_soft::memory::Backing;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Sends a message, and descriptors with it.
fn send(to: impl AsFd, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let bytes = IoSlice::new(bytemuck::bytes_of(message));
    sendmsg(to, &[bytes], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Receives a message, and the descriptors that come with it; `None` when the other side is gone.
pub(crate) fn receive(from: impl AsFd) -> Option<(Message, Vec<OwnedFd>)> {
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
    (received.bytes == MESSAGE_BYTES && !received.flags.contains(ReturnFlags::TRUNC)).then_some((message, fds))
}

/// What `/proc` says it is (`linux/magic.h`).
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// Whether a file is one of the kernel's own about processes: any other may have no end, or may make the device wait.
fn is_of_proc(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC)
}

/// The process that makes a call, until it has its answer.
pub(crate) struct Caller {
    answer: OwnedFd,
    memory: Option<Arc<File>>,
}

/// The memory of the process that called last: regions of one process share its descriptor, since a device has more regions than a node
/// has descriptors.
#[derive(Default)]
pub(crate) struct LastMemory {
    inode: u64,
    memory: Option<Arc<File>>,
}

impl LastMemory {
    /// The same memory as `memory`'s, which has something at `addr`; as the last one if it is that.
    fn same(&mut self, memory: File, addr: u64) -> Arc<File> {
        let inode = rustix::fs::fstat(&memory).map_or(0, |stat| stat.st_ino);
        // The inode says which process. One that has started another program since has other memory, and the old one is not there.
        let is_there = |memory: &&Arc<File>| memory.read_exact_at(&mut [0], addr).is_ok();
        if let Some(last) = self.memory.as_ref().filter(|_| inode == self.inode).filter(is_there) {
            return last.clone();
        }
        self.inode = inode;
        self.memory.insert(Arc::new(memory)).clone()
    }
}

impl Caller {
    /// The caller that sent these descriptors: where the answer goes, and its memory if the call, which is about `value`, needs that.
    pub(crate) fn new(fds: Vec<OwnedFd>, value: u64, last: &mut LastMemory) -> Option<Self> {
        let mut fds = fds.into_iter();
        let answer = fds.next()?;
        let memory = fds.next().filter(is_of_proc).map(|fd| last.same(File::from(fd), value));
        Some(Self { answer, memory })
    }

    /// Its memory. It does not come along where the node has no descriptor left for it, and counts for nothing if it is something else.
    fn memory(&self) -> Result<&Arc<File>, Errno> {
        self.memory.as_ref().ok_or(Errno::NFILE)
    }

    /// Ends the call with this result; `negative`: an error.
    pub(crate) fn done(self, result: Result<i64, Errno>) {
        let value = result.unwrap_or_else(|errno| -i64::from(errno.raw_os_error()));
        self.say(&[talk::DONE, value as u64, 0], &[]);
    }

    /// Ends a mapping: of this file, from this offset on.
    pub(crate) fn done_with_file(self, file: BorrowedFd<'_>, offset: u64) {
        self.say(&[talk::DONE, 0, offset], &[file]);
    }

    fn say(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = send(&self.answer, message, fds) {
            tracing::debug!(%error, "a program was gone before its call was answered");
        }
    }

    /// Reads the caller's memory.
    pub(crate) fn read_bytes(&self, addr: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.memory()?.read_exact_at(bytes, addr).map_err(|_| Errno::FAULT)
    }

    /// Reads a value in the caller's memory.
    pub(crate) fn read<T: AnyBitPattern + NoUninit>(&self, addr: u64) -> Result<T, Errno> {
        let mut value = T::zeroed();
        self.read_bytes(addr, bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// Writes the caller's memory.
    pub(crate) fn write_bytes(&self, addr: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.memory()?.write_all_at(bytes, addr).map_err(|_| Errno::FAULT)
    }

    /// The file behind a descriptor of the caller's.
    pub(crate) fn fd(&self, number: i32) -> Result<OwnedFd, Errno> {
        self.ask(&[talk::ASK, number as u64, 0]).ok_or(Errno::BADF)
    }

    /// The caller gets a descriptor, and finds its number at `addr`, in this many bytes: 4 or 8.
    pub(crate) fn give(&self, fd: BorrowedFd<'_>, addr: u64, bytes: u64) -> Result<(), Errno> {
        // The number is stored by the caller itself, which should not fall over an address that is none. (Over one that cannot be written it
        // does: this writes all the same.)
        self.write_bytes(addr, &[0xff; 8][..bytes as usize])?;
        send(&self.answer, &[talk::GIVE, addr, bytes], &[fd])
    }

    fn ask(&self, question: &Message) -> Option<OwnedFd> {
        self.say(question, &[]);
        let (_, fds) = receive(&self.answer).filter(|([kind, ..], _)| *kind == talk::HERE)?;
        fds.into_iter().next()
    }

    /// Memory of the caller's that a device is to access, for writing too if it is `writable`.
    ///
    /// It is not pinned: once the program unmaps it, accesses fail.
    ///
    /// # Errors
    /// `EFAULT` where some of it is not mapped, or not like that.
    pub(crate) fn region(&self, addr: u64, len: u64, writable: bool) -> Outcome<Region> {
        let memory = self.memory()?.clone();
        let (Some(end), Ok(bytes)) = (addr.checked_add(len), usize::try_from(len)) else {
            return refuse(Errno::INVAL, format!("{len} bytes at {addr:#x} wrap"));
        };
        let mut maps = String::new();
        let asked = self.ask(&[talk::ASK_MAPS, 0, 0]).filter(is_of_proc).ok_or(Errno::FAULT)?;
        File::from(asked).read_to_string(&mut maps).map_err(|_| Errno::FAULT)?;
        match first_gap(&maps, addr..end, writable) {
            None => Ok(Region { memory, addr, len: bytes }),
            Some(gap) => {
                let lack = if writable { "mapped for reading and writing" } else { "mapped for reading" };
                refuse(Errno::FAULT, format!("{len} bytes at {addr:#x}: at {gap:#x} nothing is {lack}"))
            }
        }
    }
}

/// The first address of a range that is not mapped so that it can be read (and written), by a process's `maps`.
fn first_gap(maps: &str, range: Range<u64>, writable: bool) -> Option<u64> {
    let mut next = range.start;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(addresses), Some(rights)) = (words.next(), words.next()) else { continue };
        let Some((start, end)) = addresses.split_once('-') else { continue };
        let parse = |hex| u64::from_str_radix(hex, 16).ok();
        let (Some(start), Some(end)) = (parse(start), parse(end)) else { continue };
        if end <= next || next >= range.end {
            continue;
        }
        if start > next || !rights.starts_with('r') || writable && !rights.starts_with("rw") {
            break;
        }
        next = end;
    }
    (next < range.end).then_some(next)
}

/// Memory of a process, as a device accesses it: by system calls on the process's `mem`.
pub(crate) struct Region {
    memory: Arc<File>,
    addr: u64,
    len: usize,
}

impl Backing for Region {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.memory.read_exact_at(dst, self.addr + offset as u64).is_ok()
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.memory.write_all_at(src, self.addr + offset as u64).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-3000 r-xp 00000000 fe:00 1 /bin/true
3000-5000 rw-p 00000000 00:00 0
5000-6000 rw-s 00000000 00:01 2 /memfd:x (deleted)
8000-9000 ---p 00000000 00:00 0 [stack]
";

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
            assert_eq!(first_gap(MAPS, range.clone(), writable), gap, "{range:x?}");
        }
    }

    #[test]
    fn callers_of_one_process_share_a_descriptor_of_its_memory() {
        let memory = || File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        let (mut last, byte) = (LastMemory::default(), 7u8);
        let addr = std::ptr::from_ref(&byte) as u64;
        let first = last.same(memory(), addr);
        assert!(Arc::ptr_eq(&first, &last.same(memory(), addr)));
        assert!(!Arc::ptr_eq(&first, &last.same(memory(), 8)), "nothing is there: it may be another program's");
    }

    #[test]
    fn memory_that_is_gone_is_not_accessed() {
        let memory = Arc::new(File::options().read(true).write(true).open("/proc/self/mem").unwrap());
        let bytes = [7u8; 100];
        let region = |addr| Region { memory: memory.clone(), addr, len: 100 };
        let mut copy = [0; 100];
        assert!(region(bytes.as_ptr() as u64).read(0, &mut copy));
        assert_eq!(copy, [7; 100]);
        assert!(!region(8).read(0, &mut copy) && !region(8).write(0, &copy));
    }
}
