//! The machine's RDMA devices, and contexts: open devices.

use crate::error::Error;
use crate::object::Object;
use crate::sys::{self, *};
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The list of this machine's RDMA devices, of every vendor.
pub struct DeviceList {
    libraries: &'static Libraries,
    list: NonNull<*mut ibv_device>,
    len: usize,
    free: unsafe extern "C" fn(*mut *mut ibv_device),
}

/// A device in the list. [`open`](Self::open) makes a [`Context`] of it.
#[derive(Clone, Copy)]
pub struct Device<'l> {
    libraries: &'static Libraries,
    device: NonNull<ibv_device>,
    _list: PhantomData<&'l DeviceList>,
}

impl DeviceList {
    /// Lists the devices.
    ///
    /// # Errors
    /// The call failed: for example, the kernel has no RDMA support.
    pub fn get(libraries: &'static Libraries) -> Result<Self, Error> {
        let (get, free) = (libraries.verbs.ibv_get_device_list()?, libraries.verbs.ibv_free_device_list()?);
        let mut len: c_int = 0;
        // SAFETY: the only argument is a local to write to.
        let list = unsafe { get(&mut len) };
        let list = NonNull::new(list).ok_or_else(|| Error::last("ibv_get_device_list"))?;
        Ok(Self { libraries, list, len: usize::try_from(len).unwrap_or(0), free })
    }

    /// Returns an iterator over the devices.
    pub fn iter(&self) -> impl Iterator<Item = Device<'_>> {
        // SAFETY: the library returned a list of this length in `get`. Only `drop` frees it, and nobody changes it
        // before.
        let devices = unsafe { std::slice::from_raw_parts(self.list.as_ptr(), self.len) };
        let libraries = self.libraries;
        devices
            .iter()
            .filter_map(move |&device| Some(Device { libraries, device: NonNull::new(device)?, _list: PhantomData }))
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the library returned the list in `get`, and only this call frees it. Every `Device` borrows `self`,
        // so none is left. libibverbs itself keeps the device of an open context.
        unsafe { (self.free)(self.list.as_ptr()) };
    }
}

/// Returns the string at the beginning of a C array of characters.
fn text(chars: &[c_char]) -> &CStr {
    // SAFETY: `c_char` and `u8` have the same size and alignment, and every byte is a valid `u8`.
    let bytes = unsafe { std::slice::from_raw_parts(chars.as_ptr().cast::<u8>(), chars.len()) };
    CStr::from_bytes_until_nul(bytes).unwrap_or_default()
}

impl<'l> Device<'l> {
    fn raw(&self) -> &'l ibv_device {
        // SAFETY: the library keeps the device as long as the list, which outlives `'l`. It writes the fields before it
        // puts the device into a list (`try_driver` in libibverbs/init.c) and never again.
        unsafe { self.device.as_ref() }
    }

    /// Returns the device's name, for example `rdmap79s0`.
    pub fn name(&self) -> &'l str {
        text(&self.raw().name).to_str().unwrap_or_default()
    }

    /// Returns the device's directory in sysfs, for example `/sys/class/infiniband/rdmap79s0`.
    pub fn sysfs(&self) -> &'l Path {
        Path::new(OsStr::from_bytes(text(&self.raw().ibdev_path).to_bytes()))
    }

    /// Returns the kind of node. EFA devices report `IBV_NODE_UNSPECIFIED`.
    pub fn node_type(&self) -> ibv_node_type {
        self.raw().node_type
    }

    /// Returns the device's GUID. It is zero with older EFA drivers.
    ///
    /// # Errors
    /// The library lacks the call.
    pub fn guid(&self) -> Result<u64, Error> {
        // SAFETY: the list keeps the device, and outlives `'l`.
        Ok(u64::from_be(unsafe { self.libraries.verbs.ibv_get_device_guid()?(self.device.as_ptr()) }))
    }

    /// Opens the device.
    ///
    /// # Errors
    /// The call failed: usually the device file is missing, or the process has no permission to open it.
    pub fn open(&self) -> Result<Context, Error> {
        let verbs = &self.libraries.verbs;
        let (open, close) = (verbs.ibv_open_device()?, ("ibv_close_device", verbs.ibv_close_device()?));
        // SAFETY: the list keeps the device during the call. From then on libibverbs keeps it for the open context,
        // which uses nothing else.
        let context = unsafe { Object::new("ibv_open_device", open(self.device.as_ptr()), close, ())? };
        let (name, sysfs) = (self.name().into(), self.sysfs().into());
        let context = Context { libraries: self.libraries, context, name, sysfs };
        set_nonblocking(context.async_fd())?;
        Ok(context)
    }
}

/// An open device. Every object that is created from it keeps it open.
pub struct Context {
    libraries: &'static Libraries,
    context: Object<ibv_context, ()>,
    name: String,
    sysfs: PathBuf,
}

/// An asynchronous event: a change of a device or of one of its objects that no completion reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// The type of the event.
    pub kind: ibv_event_type,
    /// The object that the event belongs to.
    pub element: AsyncElement,
}

/// The object that an asynchronous event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncElement {
    /// The completion queue with this handle.
    Cq(u32),
    /// The queue pair with this number.
    Qp(u32),
    /// The port with this number.
    Port(u32),
    /// The device as a whole, or an object of another kind.
    Device,
}

impl Context {
    /// Returns the context for functions of [`sys`]. The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    /// Returns the libraries that the device was opened with.
    pub fn libraries(&self) -> &'static Libraries {
        self.libraries
    }

    pub(crate) fn verbs(&self) -> &'static Verbs {
        &self.libraries.verbs
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the device's directory in sysfs.
    pub fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    /// Returns the attributes that every RDMA device has.
    ///
    /// # Errors
    /// The call failed.
    pub fn query_device(&self) -> Result<ibv_device_attr_ex, Error> {
        let mut attr = ibv_device_attr_ex::default();
        // SAFETY: `self.context` keeps the context open; the attributes are a local to write to.
        let answer = unsafe { ibv_query_device_ex(self.verbs(), self.as_ptr(), &mut attr)? };
        Error::check("ibv_query_device_ex", answer).map(|()| attr)
    }

    /// Returns the attributes that only EFA devices have.
    ///
    /// # Errors
    /// The device is not an EFA device (`EOPNOTSUPP`), or there is no libefa.
    pub fn query_efa(&self) -> Result<efadv_device_attr, Error> {
        let mut attr = efadv_device_attr::default();
        // SAFETY: `self.context` keeps the context open; `attr` is a local of the size that is passed.
        let answer = unsafe { self.libraries.efa()?.efadv_query_device()?(self.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_device", answer).map(|()| attr)
    }

    /// Returns the attributes of a port, its state among them. Ports are numbered from 1, and an EFA device has one.
    ///
    /// # Errors
    /// The call failed.
    pub fn query_port(&self, port: u8) -> Result<ibv_port_attr, Error> {
        let mut attr = ibv_port_attr::default();
        // SAFETY: `self.context` keeps the context open; `attr` is a local to write to.
        let answer = unsafe { sys::ibv_query_port(self.verbs(), self.as_ptr(), port, &mut attr)? };
        Error::check("ibv_query_port", answer).map(|()| attr)
    }

    /// Returns the speed of a port in units of 100 Mb/s.
    ///
    /// # Errors
    /// The kernel or the device does not report it, or the library is older than rdma-core 62.
    pub fn query_port_speed(&self, port: u8) -> Result<u64, Error> {
        let mut speed = 0;
        // SAFETY: `self.context` keeps the context open; `speed` is a local to write to.
        let answer = unsafe { self.verbs().ibv_query_port_speed()?(self.as_ptr(), port.into(), &mut speed) };
        Error::check("ibv_query_port_speed", answer).map(|()| speed)
    }

    /// Returns the GID of a port at this index, in network order.
    ///
    /// # Errors
    /// The call failed.
    pub fn query_gid(&self, port: u8, index: u16) -> Result<[u8; 16], Error> {
        let mut gid = ibv_gid { raw: [0; 16] };
        // SAFETY: `self.context` keeps the context open; `gid` is a local to write to.
        let answer = unsafe { self.verbs().ibv_query_gid()?(self.as_ptr(), port, index.into(), &mut gid) };
        // SAFETY: every field of the union is 16 bytes of plain data, and all of them are initialized.
        Error::check("ibv_query_gid", answer).map(|()| unsafe { gid.raw })
    }

    /// Returns the maximum number of WQEs in a send queue for requests with these attributes. `ibv_qp_cap::max_send_wr`
    /// can be as large.
    ///
    /// # Errors
    /// An attribute exceeds a limit of the device, or the library is older than rdma-core 63.
    pub fn max_sq_depth(&self, mut attr: efadv_sq_depth_attr) -> Result<u32, Error> {
        let efa = self.libraries.efa()?;
        // SAFETY: `self.context` keeps the context open; `attr` is a local of the size that is passed.
        let answer = unsafe { efa.efadv_get_max_sq_depth()?(self.as_ptr(), &mut attr, size(&attr)) };
        u32::try_from(answer).map_err(|_| Error::negative("efadv_get_max_sq_depth", answer))
    }

    /// Returns the maximum number of outstanding receives in a receive queue whose receives have up to `max_recv_sge`
    /// buffers.
    ///
    /// # Errors
    /// `max_recv_sge` is zero or exceeds a limit of the device, or the library is older than rdma-core 63.
    pub fn max_rq_depth(&self, max_recv_sge: u32) -> Result<u32, Error> {
        // libefa divides by it without a check (`efa_calc_rq_max_depth`).
        let value = u64::from(max_recv_sge);
        let call = "efadv_get_max_rq_depth";
        if value == 0 {
            return Err(Error::Argument { call, what: "max_recv_sge", value, expected: "at least 1" });
        }
        let mut attr = efadv_rq_depth_attr { max_recv_sge, ..Default::default() };
        // SAFETY: `self.context` keeps the context open; `attr` is a local of the size that is passed.
        let answer = unsafe { self.libraries.efa()?.efadv_get_max_rq_depth()?(self.as_ptr(), &mut attr, size(&attr)) };
        u32::try_from(answer).map_err(|_| Error::negative(call, answer))
    }

    /// Returns the capabilities of the device's completion counters.
    ///
    /// # Errors
    /// The device has no counters, or the library is older than rdma-core 65.
    pub fn comp_cntr_caps(&self) -> Result<ibv_comp_cntr_caps, Error> {
        let mut caps = ibv_comp_cntr_caps::default();
        // SAFETY: `self.context` keeps the context open; `caps` is a local of the size that is passed.
        let answer = unsafe { self.verbs()._ibv_query_comp_cntr_caps()?(self.as_ptr(), &mut caps, size_of_val(&caps)) };
        Error::check("ibv_query_comp_cntr_caps", answer).map(|()| caps)
    }

    /// Returns the descriptor that becomes readable when there is an asynchronous event.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self.context` keeps the context open. The library opened the descriptor with the context and closes
        // it only when it closes the context.
        unsafe { BorrowedFd::borrow_raw((*self.as_ptr()).async_fd) }
    }

    /// Takes and acknowledges the next asynchronous event. Returns `None` if there is none; it never waits.
    ///
    /// # Errors
    /// The call failed.
    pub fn next_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        let acknowledge = self.verbs().ibv_ack_async_event()?;
        let mut event = ibv_async_event::default();
        // The call does not wait: `open` made the descriptor non-blocking.
        // SAFETY: `self.context` keeps the context open; the event is a local to write to.
        if unsafe { self.verbs().ibv_get_async_event()?(self.as_ptr(), &mut event) } != 0 {
            return match Error::last("ibv_get_async_event") {
                error if matches!(error.errno(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
                error => Err(error),
            };
        }
        let kind = event.event_type;
        // SAFETY: the event's type says which field of the union is set (`ibv_get_async_event(3)`). The object that the
        // field points to lives until the event is acknowledged, which happens below: destroying a queue or queue pair
        // waits for as many acknowledgements as the kernel has delivered events (`ibv_cmd_destroy_cq`,
        // `ibv_cmd_destroy_qp`). The library never changes the number that is read.
        let element = unsafe {
            match kind {
                IBV_EVENT_CQ_ERR => AsyncElement::Cq((*event.element.cq).handle),
                IBV_EVENT_QP_FATAL
                | IBV_EVENT_QP_REQ_ERR
                | IBV_EVENT_QP_ACCESS_ERR
                | IBV_EVENT_COMM_EST
                | IBV_EVENT_SQ_DRAINED
                | IBV_EVENT_PATH_MIG
                | IBV_EVENT_PATH_MIG_ERR
                | IBV_EVENT_QP_LAST_WQE_REACHED => AsyncElement::Qp((*event.element.qp).qp_num),
                IBV_EVENT_PORT_ACTIVE
                | IBV_EVENT_PORT_ERR
                | IBV_EVENT_LID_CHANGE
                | IBV_EVENT_PKEY_CHANGE
                | IBV_EVENT_SM_CHANGE
                | IBV_EVENT_CLIENT_REREGISTER
                | IBV_EVENT_GID_CHANGE => AsyncElement::Port(event.element.port_num as u32),
                _ => AsyncElement::Device,
            }
        };
        // SAFETY: the event was taken above and is acknowledged only here, after the last access to its object.
        unsafe { acknowledge(&mut event) };
        Ok(Some(AsyncEvent { kind, element }))
    }
}

/// Returns an error if the objects of a call belong to several open devices. The kernel would look all of their numbers
/// up in one device, and would use or destroy whatever has such a number there.
pub(crate) fn of_one_device<const N: usize>(
    call: &'static str,
    (what, context): (&'static str, &Arc<Context>),
    others: [(&'static str, &Arc<Context>); N],
) -> Result<(), Error> {
    match others.into_iter().find(|(_, other)| !Arc::ptr_eq(context, other)) {
        None => Ok(()),
        Some((other, its)) => {
            Err(Error::TwoDevices { call, what, device: context.name().into(), other, other_device: its.name().into() })
        }
    }
}

/// Returns the size in bytes of an attribute structure, which libefa takes beside the structure.
pub(crate) fn size<T>(value: &T) -> u32 {
    size_of_val(value) as u32
}

/// Makes a descriptor non-blocking, so that the library's reads from it never wait.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Error> {
    // SAFETY: a borrowed descriptor is open, and `F_GETFL` takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: a borrowed descriptor is open, and `F_SETFL` takes a number.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if flags < 0 || set < 0 { Err(Error::last("fcntl")) } else { Ok(()) }
}

/// Waits until `deadline`, or forever without one, for a descriptor to become readable. Returns `true` if it is.
/// Signals do not shorten that time.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        // A longer time than one call can wait takes several calls.
        let seconds = left.as_secs().min(i32::MAX as u64) as libc::time_t;
        let time = libc::timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: the one `pollfd` and the time are locals, and a null signal mask is allowed.
        match unsafe { libc::ppoll(&mut poll, 1, &time, std::ptr::null()) } {
            1.. => return Ok(true),
            0 => {}
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}
