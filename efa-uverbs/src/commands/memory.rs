//! Commands for protection domains and memory regions, after the kernel's `ib_uverbs_alloc_pd`, `ib_uverbs_reg_mr`,
//! `uverbs_std_types_mr.c` and `efa_reg_mr`.

use crate::abi::efa::{AllocPdResp, MR_QUERY_ATTRS};
use crate::abi::ioctl::{invoke_write, query_mr as query, reg_dmabuf_mr as dmabuf, reg_mr as reg};
use crate::abi::verbs::{RegMr, RegMrResp, access};
use crate::call::Call;
use crate::context::{Context, Object, fields};
use crate::errno::{Errno, Outcome, refuse};
use crate::guard::Guarded;
use crate::kind::Kind;
use crate::quota::{Charge, Item};
use bytemuck::Zeroable;
use efa_memory::{Backing, Shared, Unit};
use efa_types::{Access, RegionKeys};
use rustix::fs::SealFlags;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

pub(super) fn alloc_pd(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let _response: u64 = call.structure(invoke_write::CORE_IN)?;
    let charges = context.charge(Kind::ProtectionDomain, context.device.config.max_pd, 0)?;
    let pd = context.device.call(|device| device.alloc_pd())?;
    context.keep(Object::Pd { pd }, charges, |handle| {
        call.put(invoke_write::CORE_OUT, &handle)?;
        call.put_driver(&AllocPdResp { pdn: pd as u16, ..AllocPdResp::zeroed() })
    })
}

/// A request to register memory.
struct Request {
    pd: u64,
    iova: u64,
    len: u64,
    access: u32,
}

impl Request {
    /// Translates the access flags, and refuses those that the device does not support.
    fn access(&self, context: &Context) -> Outcome<Access> {
        let config = &context.device.config;
        let mut granted = Access::LOCAL_READ;
        let mut unknown = self.access & !access::OPTIONAL;
        for (flag, right, supported) in [
            (access::LOCAL_WRITE, Access::LOCAL_WRITE, true),
            (access::REMOTE_WRITE, Access::REMOTE_WRITE, config.attributes.rdma_write),
            (access::REMOTE_READ, Access::REMOTE_READ, config.attributes.rdma_read),
        ] {
            if supported && unknown & flag != 0 {
                granted = granted | right;
                unknown &= !flag;
            }
        }
        if self.access & access::REMOTE_WRITE != 0 && self.access & access::LOCAL_WRITE == 0 {
            return refuse(
                Errno::INVAL,
                "memory that peers may write must be writable locally (IBV_ACCESS_LOCAL_WRITE)",
            );
        }
        if unknown != 0 {
            return refuse(Errno::OPNOTSUPP, format!("access flags {unknown:#x} are not supported"));
        }
        if self.len == 0 {
            return refuse(Errno::INVAL, "a region has at least one byte");
        }
        Ok(granted)
    }

    /// Registers `memory`, and reports handle and keys to the program with `answer`.
    fn register(
        &self,
        context: &mut Context,
        memory: Arc<dyn Backing>,
        access: Access,
        charges: Vec<Charge>,
        answer: impl FnOnce(u32, RegionKeys) -> Outcome<()>,
    ) -> Outcome<()> {
        let pd = context.pd(self.pd)?;
        let keys = context.device.call(|device| device.register(pd, memory, self.iova, access))?;
        context.keep(Object::Mr { keys, len: self.len, iova: self.iova }, charges, |handle| answer(handle, keys))
    }

    /// Registers the program's own memory, which begins at `start`.
    fn register_own(
        &self,
        context: &mut Context,
        call: &Call<'_>,
        start: u64,
        answer: impl FnOnce(u32, RegionKeys) -> Outcome<()>,
    ) -> Outcome<()> {
        self.same_page_offset(start)?;
        let access = self.access(context)?;
        let writable = access.allows(Access::LOCAL_WRITE);
        let charges = context.charge(Kind::MemoryRegion, context.device.config.max_mr, 0)?;
        let region = call.caller.region(start, self.len, writable)?;
        self.register(context, Arc::new(region), access, charges, answer)
    }

    /// Registers part of a DMA-BUF.
    fn register_dmabuf(
        &self,
        context: &mut Context,
        call: &Call<'_>,
        (fd, offset): (i32, u64),
        answer: impl FnOnce(u32, RegionKeys) -> Outcome<()>,
    ) -> Outcome<()> {
        self.same_page_offset(offset)?;
        let access = self.access(context)?;
        let mut charges = context.charge(Kind::MemoryRegion, context.device.config.max_mr, 0)?;
        let memory: Guarded = map_dmabuf(call, call.caller.fd(fd)?, offset, self.len, &mut charges)?;
        self.register(context, Arc::new(memory), access, charges, answer)
    }

    /// Checks that the memory and its address for the device have the same offset in a page.
    fn same_page_offset(&self, start: u64) -> Outcome<()> {
        if (start ^ self.iova) & 0xfff == 0 {
            return Ok(());
        }
        refuse(
            Errno::INVAL,
            format!("memory at {start:#x} cannot be at {:#x} for the device: pages are 4 KiB", self.iova),
        )
    }
}

/// The file system type of DMA-BUFs (`linux/magic.h`).
const DMA_BUF_MAGIC: rustix::fs::FsWord = 0x444d_4142;

/// The file system type of files with huge pages (`linux/magic.h`).
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;

/// Maps `len` bytes of a DMA-BUF, beginning at byte `offset`, and adds what that counts for to `charges`.
///
/// The file is a real DMA-BUF whose exporter allows mapping by a CPU, or a memory file that cannot shrink, from which
/// `/dev/udmabuf` would create a DMA-BUF. A program can still remove pages from it, which [`Guarded`] handles. Memory
/// files with huge pages are refused: they can be mapped only in whole huge pages, and a removed page may be impossible
/// to replace.
pub(super) fn map_dmabuf<U: Unit>(
    call: &Call<'_>,
    fd: OwnedFd,
    offset: u64,
    len: u64,
    charges: &mut Vec<Charge>,
) -> Outcome<Guarded<Shared<U>>> {
    let kind = rustix::fs::fstatfs(&fd).map_or(0, |fs| fs.f_type);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    if kind == HUGETLBFS_MAGIC {
        let why = format!("{} has huge pages: register where the program has mapped it, not the file", link.display());
        return refuse(Errno::OPNOTSUPP, why);
    }
    let is_sealed = rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    if kind != DMA_BUF_MAGIC && !is_sealed {
        let what = link.display();
        return refuse(Errno::INVAL, format!("{what} is no DMA-BUF, nor a memory file with F_SEAL_SHRINK"));
    }
    let Ok(bytes) = usize::try_from(len) else { return refuse(Errno::INVAL, format!("{len} bytes")) };
    let account = call.caller.account();
    let descriptor = account.charge(Item::Descriptors, 1)?;
    let mapped = account.charge(Item::Mapped, len)?;
    match Shared::of_file(File::from(fd), offset, bytes) {
        Ok(memory) => {
            charges.extend([descriptor, mapped]);
            Ok(Guarded::new(memory))
        }
        Err(error) => refuse(Errno::INVAL, format!("mapping {}: {error}", link.display())),
    }
}

pub(super) fn reg_mr_older(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let given: RegMr = call.structure(invoke_write::CORE_IN)?;
    let request =
        Request { pd: given.pd_handle.into(), iova: given.hca_va, len: given.length, access: given.access_flags };
    request.register_own(context, call, given.start, |mr_handle, RegionKeys { lkey, rkey }| {
        call.put(invoke_write::CORE_OUT, &RegMrResp { mr_handle, lkey, rkey })
    })
}

pub(super) fn reg_mr(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let request = Request {
        pd: call.number(reg::PD_HANDLE)?,
        iova: call.number(reg::IOVA)?,
        len: call.number(reg::LENGTH)?,
        access: call.number(reg::ACCESS_FLAGS)? as u32,
    };
    if call.has(reg::DMA_HANDLE) {
        return refuse(Errno::OPNOTSUPP, "an EFA has no DMA handles");
    }
    let answer = |handle, RegionKeys { lkey, rkey }| {
        call.put(reg::RESP_LKEY, &lkey)?;
        call.put(reg::RESP_RKEY, &rkey)?;
        call.put_handle(reg::HANDLE, handle)
    };
    if call.has(reg::FD) {
        let place = (call.number(reg::FD)? as i32, call.number_or(reg::FD_OFFSET, 0));
        return request.register_dmabuf(context, call, place, answer);
    }
    request.register_own(context, call, call.number(reg::ADDR)?, answer)
}

pub(super) fn reg_dmabuf_mr(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let request = Request {
        pd: call.number(dmabuf::PD_HANDLE)?,
        iova: call.number(dmabuf::IOVA)?,
        len: call.number(dmabuf::LENGTH)?,
        access: call.number(dmabuf::ACCESS_FLAGS)? as u32,
    };
    let place = (call.number(dmabuf::FD)? as i32, call.number(dmabuf::OFFSET)?);
    request.register_dmabuf(context, call, place, |handle, RegionKeys { lkey, rkey }| {
        call.put(dmabuf::RESP_LKEY, &lkey)?;
        call.put(dmabuf::RESP_RKEY, &rkey)?;
        call.put_handle(dmabuf::HANDLE, handle)
    })
}

pub(super) fn query_mr(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let handle = call.number(query::HANDLE)?;
    let (keys, len, iova) =
        fields!(context, handle, MemoryRegion, &mut Object::Mr { keys, len, iova } => (keys, len, iova))?;
    call.put(query::RESP_LKEY, &keys.lkey)?;
    call.put(query::RESP_RKEY, &keys.rkey)?;
    call.put(query::RESP_LENGTH, &len)?;
    call.put(query::RESP_IOVA, &iova)
}

/// Answers which interconnects access a region's memory (`efadv_query_mr`): none is valid on this device.
pub(super) fn efa_query_mr(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let [handle, answers @ ..] = MR_QUERY_ATTRS;
    let handle = call.number(handle)?;
    fields!(context, handle, MemoryRegion, Object::Mr { .. } => ())?;
    answers.into_iter().try_for_each(|answer| call.put(answer, &0u16))
}
