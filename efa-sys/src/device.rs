//! Devices and contexts: what there is, and what is open.

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
use std::time::{Duration, Instant};

/// The RDMA devices of this machine, of all makes.
pub struct DeviceList {
    libraries: &'static Libraries,
    list: NonNull<*mut ibv_device>,
    len: usize,
    free: unsafe extern "C" fn(*mut *mut ibv_device),
}

/// A device that is not open.
#[derive(Clone, Copy)]
pub struct Device<'l> {
    libraries: &'static Libraries,
    device: NonNull<ibv_device>,
    _list: PhantomData<&'l DeviceList>,
}

impl DeviceList {
    /// Looks for devices.
    ///
    /// # Errors
    /// The kernel has no RDMA, for example.
    pub fn get(libraries: &'static Libraries) -> Result<Self, Error> {
        let (get, free) = (libraries.verbs.ibv_get_device_list()?, libraries.verbs.ibv_free_device_list()?);
        let mut len: c_int = 0;
        // SAFETY: `len` is this function's own.
        let list = unsafe { get(&mut len) };
        let list = NonNull::new(list).ok_or_else(|| Error::last("ibv_get_device_list"))?;
        Ok(Self { libraries, list, len: usize::try_from(len).unwrap_or(0), free })
    }

    /// The devices.
    pub fn iter(&self) -> impl Iterator<Item = Device<'_>> {
        // SAFETY: the library made a list of this length in `get`, and freed it is when `self` is dropped. It does not
        // change in between.
        let devices = unsafe { std::slice::from_raw_parts(self.list.as_ptr(), self.len) };
        let libraries = self.libraries;
        devices
            .iter()
            .filter_map(move |&device| Some(Device { libraries, device: NonNull::new(device)?, _list: PhantomData }))
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the library made the list in `get`, and this is the only call. No `Device` of it is left: they borrow
        // `self`. A device that is open the library keeps by itself.
        unsafe { (self.free)(self.list.as_ptr()) };
    }
}

fn text(chars: &[c_char]) -> &CStr {
    // SAFETY: as many bytes, of any value: a character is one.
    let bytes = unsafe { std::slice::from_raw_parts(chars.as_ptr().cast::<u8>(), chars.len()) };
    CStr::from_bytes_until_nul(bytes).unwrap_or_default()
}

impl<'l> Device<'l> {
    fn raw(&self) -> &'l ibv_device {
        // SAFETY: the library keeps the device as long as the list, which outlives `'l`. It wrote its fields before it
        // was in any list (`try_driver`), and writes none of them again.
        unsafe { self.device.as_ref() }
    }

    /// Its name: `rdmap79s0`.
    pub fn name(&self) -> &'l str {
        text(&self.raw().name).to_str().unwrap_or_default()
    }

    /// Its directory in sysfs: `/sys/class/infiniband/rdmap79s0`.
    pub fn sysfs(&self) -> &'l Path {
        Path::new(OsStr::from_bytes(text(&self.raw().ibdev_path).to_bytes()))
    }

    /// What kind of node it is. EFA's are unspecified.
    pub fn node_type(&self) -> ibv_node_type {
        self.raw().node_type
    }

    /// Its GUID; zero with older drivers of EFA.
    ///
    /// # Errors
    /// The library lacks the call.
    pub fn guid(&self) -> Result<u64, Error> {
        // SAFETY: the device is in its list, which outlives `'l`.
        Ok(u64::from_be(unsafe { self.libraries.verbs.ibv_get_device_guid()?(self.device.as_ptr()) }))
    }

    /// Opens it.
    ///
    /// # Errors
    /// Usually a missing device file, or no permission on it.
    pub fn open(&self) -> Result<Context, Error> {
        let verbs = &self.libraries.verbs;
        let (open, close) = (verbs.ibv_open_device()?, ("ibv_close_device", verbs.ibv_close_device()?));
        // SAFETY: the device is in its list, which outlives `'l`; from here on the context keeps it. There is nothing
        // else that it is made of.
        let context = unsafe { Object::new("ibv_open_device", open(self.device.as_ptr()), close, ())? };
        let (name, sysfs) = (self.name().into(), self.sysfs().into());
        let context = Context { libraries: self.libraries, context, name, sysfs };
        set_nonblocking(context.async_fd())?;
        Ok(context)
    }
}

/// A device that is open. Everything made of it keeps it open.
pub struct Context {
    libraries: &'static Libraries,
    context: Object<ibv_context, ()>,
    name: String,
    sysfs: PathBuf,
}

/// Something that happened to a device or one of its objects, which no completion tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: ibv_event_type,
    /// What it happened to.
    pub element: AsyncElement,
}

/// What an asynchronous event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncElement {
    /// The completion queue with this handle.
    Cq(u32),
    /// The queue pair with this number.
    Qp(u32),
    /// The port with this number.
    Port(u32),
    /// The device as a whole, or something else.
    Device,
}

impl Context {
    /// The context, for functions of [`sys`]. It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    /// The libraries that it was opened with.
    pub fn libraries(&self) -> &'static Libraries {
        self.libraries
    }

    pub(crate) fn verbs(&self) -> &'static Verbs {
        &self.libraries.verbs
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory in sysfs.
    pub fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    /// What every RDMA device tells of itself.
    ///
    /// # Errors
    /// The call failed.
    pub fn query_device(&self) -> Result<ibv_device_attr_ex, Error> {
        let mut attr = ibv_device_attr_ex::default();
        // SAFETY: the context is open as long as `self.context`; what is written to is this function's own.
        let answer = unsafe { ibv_query_device_ex(self.verbs(), self.as_ptr(), &mut attr)? };
        Error::check("ibv_query_device_ex", answer).map(|()| attr)
    }

    /// What EFA devices tell of themselves.
    ///
    /// # Errors
    /// It is no EFA device (`EOPNOTSUPP`), or there is no libefa.
    pub fn query_efa(&self) -> Result<efadv_device_attr, Error> {
        let mut attr = efadv_device_attr::default();
        // SAFETY: as in `query_device`; the size that is told is that of the attributes.
        let answer = unsafe { self.libraries.efa()?.efadv_query_device()?(self.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_device", answer).map(|()| attr)
    }

    /// The state of a port, numbered from 1. EFA's have one.
    ///
    /// # Errors
    /// The call failed.
    pub fn query_port(&self, port: u8) -> Result<ibv_port_attr, Error> {
        let mut attr = ibv_port_attr::default();
        // SAFETY: as in `query_device`.
        let answer = unsafe { sys::ibv_query_port(self.verbs(), self.as_ptr(), port, &mut attr)? };
        Error::check("ibv_query_port", answer).map(|()| attr)
    }

    /// The speed of a port in units of 100 Mb/s.
    ///
    /// # Errors
    /// The library (before rdma-core 62), the kernel or the device cannot tell.
    pub fn query_port_speed(&self, port: u8) -> Result<u64, Error> {
        let mut speed = 0;
        // SAFETY: as in `query_device`.
        let answer = unsafe { self.verbs().ibv_query_port_speed()?(self.as_ptr(), port.into(), &mut speed) };
        Error::check("ibv_query_port_speed", answer).map(|()| speed)
    }

    /// An address of a port.
    ///
    /// # Errors
    /// The call failed.
    pub fn query_gid(&self, port: u8, index: u16) -> Result<[u8; 16], Error> {
        let mut gid = ibv_gid { raw: [0; 16] };
        // SAFETY: as in `query_device`.
        let answer = unsafe { self.verbs().ibv_query_gid()?(self.as_ptr(), port, index.into(), &mut gid) };
        // SAFETY: all of the union is 16 bytes, which were set above or by the library.
        Error::check("ibv_query_gid", answer).map(|()| unsafe { gid.raw })
    }

    /// Most WQEs of a send queue for requests like these: `ibv_qp_cap::max_send_wr` can be as large.
    ///
    /// # Errors
    /// They are over a limit, or the library is older than rdma-core 63.
    pub fn max_sq_depth(&self, mut attr: efadv_sq_depth_attr) -> Result<u32, Error> {
        let efa = self.libraries.efa()?;
        // SAFETY: as in `query_efa`.
        let answer = unsafe { efa.efadv_get_max_sq_depth()?(self.as_ptr(), &mut attr, size(&attr)) };
        u32::try_from(answer).map_err(|_| Error::negative("efadv_get_max_sq_depth", answer))
    }

    /// Most receives of a receive queue whose receives have up to this many buffers.
    ///
    /// # Errors
    /// They are over a limit, or the library is older than rdma-core 63.
    pub fn max_rq_depth(&self, max_recv_sge: u32) -> Result<u32, Error> {
        // libefa divides by it.
        let value = u64::from(max_recv_sge);
        let call = "efadv_get_max_rq_depth";
        if value == 0 {
            return Err(Error::Argument { call, what: "max_recv_sge", value, expected: "at least 1" });
        }
        let mut attr = efadv_rq_depth_attr { max_recv_sge, ..Default::default() };
        // SAFETY: as in `query_efa`.
        let answer = unsafe { self.libraries.efa()?.efadv_get_max_rq_depth()?(self.as_ptr(), &mut attr, size(&attr)) };
        u32::try_from(answer).map_err(|_| Error::negative(call, answer))
    }

    /// What completion counters the device has.
    ///
    /// # Errors
    /// None, or the library is older than rdma-core 65.
    pub fn comp_cntr_caps(&self) -> Result<ibv_comp_cntr_caps, Error> {
        let mut caps = ibv_comp_cntr_caps::default();
        // SAFETY: as in `query_device`; the size that is told is that of the capabilities.
        let answer = unsafe { self.verbs()._ibv_query_comp_cntr_caps()?(self.as_ptr(), &mut caps, size_of_val(&caps)) };
        Error::check("ibv_query_comp_cntr_caps", answer).map(|()| caps)
    }

    /// The descriptor that becomes readable with an asynchronous event.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as `self.context`; the library opened the descriptor with it, and closes
        // it when it closes that.
        unsafe { BorrowedFd::borrow_raw((*self.as_ptr()).async_fd) }
    }

    /// The next asynchronous event, if there is one. Does not wait.
    ///
    /// # Errors
    /// The call failed.
    pub fn next_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        let acknowledge = self.verbs().ibv_ack_async_event()?;
        let mut event = ibv_async_event::default();
        // SAFETY: the context is open as long as `self.context`; the event is this function's own. The call does not
        // wait: `open` made the descriptor non-blocking.
        if unsafe { self.verbs().ibv_get_async_event()?(self.as_ptr(), &mut event) } != 0 {
            return match Error::last("ibv_get_async_event") {
                error if matches!(error.errno(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
                error => Err(error),
            };
        }
        let kind = event.event_type;
        // SAFETY: the kind tells which field is set (`ibv_get_async_event(3)`). A queue or queue pair lives until the
        // event is acknowledged, which happens below: destroying it waits until as many events are as the kernel has
        // handed out (`ibv_cmd_destroy_cq`, `ibv_cmd_destroy_qp`). Its number does not change.
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
        // SAFETY: it was fetched above, and is acknowledged here alone.
        unsafe { acknowledge(&mut event) };
        Ok(Some(AsyncEvent { kind, element }))
    }
}

/// The size of a structure that says how much of it there is.
pub(crate) fn size<T>(value: &T) -> u32 {
    size_of_val(value) as u32
}

/// Has reads of a descriptor, which are the library's, not wait.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Error> {
    // SAFETY: a borrowed descriptor is open; this asks for a number.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: as above; this sets one.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if flags < 0 || set < 0 { Err(Error::last("fcntl")) } else { Ok(()) }
}

/// Waits until `deadline` (without one, for ever) for a descriptor to become readable; whether it is. Signals do not shorten that time.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        // What one call cannot wait for, it is asked for again.
        let seconds = left.as_secs().min(i32::MAX as u64) as libc::time_t;
        let time = libc::timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: one `pollfd` and the time are this function's own; no signal mask is given.
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
