//! Queue pairs.

use crate::counter::CompCounter;
use crate::cq::Cq;
use crate::device::{Context, of_one_device, size};
use crate::error::Error;
use crate::object::Object;
use crate::pd::Pd;
use crate::sys::*;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// The transport service of a queue pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QpType {
    /// Scalable reliable datagrams, EFA's own service (`IBV_QPT_DRIVER`).
    #[default]
    Srd,
    /// Unreliable datagrams (`IBV_QPT_UD`).
    Ud,
}

/// The configuration of a queue pair.
#[derive(Clone, Copy, Debug, Default)]
pub struct QpAttr {
    /// The transport service.
    pub qp_type: QpType,
    /// The minimum number of outstanding sends. libefa rounds it up to a power of two.
    pub send_wr: u32,
    /// The minimum number of outstanding receives. libefa rounds the number of descriptors, `recv_wr * recv_sge`, up to
    /// a power of two (`efa_setup_qp`).
    pub recv_wr: u32,
    /// The maximum number of buffers of a send.
    pub send_sge: u32,
    /// The maximum number of buffers of a receive, at least 1.
    pub recv_sge: u32,
    /// The maximum length of an inline message in bytes. More than 32 makes WQEs 128 bytes large.
    pub inline_bytes: u32,
    /// The operations that libefa's own posting offers (`IBV_QP_EX_WITH_…`).
    pub send_ops: u64,
    /// EFA's flags (`EFADV_QP_FLAGS_…`). SRD only.
    pub flags: u16,
    /// The service level. SRD only.
    pub sl: u8,
    /// The additional fields that libefa's own posting can set (`EFADV_WR_EX_WITH_…`). SRD only.
    pub wr_flags: u64,
}

/// A queue pair: a send queue and a receive queue.
pub struct Qp {
    qp: Object<ibv_qp, Parts>,
}

/// What a queue pair uses.
struct Parts {
    pd: Arc<Pd>,
    _cqs: [Arc<Cq>; 2],
    counters: Mutex<Vec<Arc<CompCounter>>>,
}

impl Qp {
    /// Creates a queue pair in the state Reset. SRD takes `efadv_create_qp_ex`, UD takes `ibv_create_qp_ex`.
    ///
    /// # Errors
    /// The device refuses. [`Error::Argument`] if `recv_sge` is zero. [`Error::TwoDevices`] if the domain and the
    /// queues belong to different open devices.
    pub fn create(pd: &Arc<Pd>, send_cq: &Arc<Cq>, recv_cq: &Arc<Cq>, attr: &QpAttr) -> Result<Self, Error> {
        let call = if attr.qp_type == QpType::Srd { "efadv_create_qp_ex" } else { "ibv_create_qp_ex" };
        check_recv_sge(call, attr.recv_sge)?;
        let parts = Parts::new(call, pd, send_cq, recv_cq)?;
        let context = pd.context();
        let mut ex = ibv_qp_init_attr_ex {
            send_cq: ibv_cq_ex_to_cq(send_cq.as_ptr()),
            recv_cq: ibv_cq_ex_to_cq(recv_cq.as_ptr()),
            cap: attr.cap(),
            qp_type: if attr.qp_type == QpType::Srd { IBV_QPT_DRIVER } else { IBV_QPT_UD },
            comp_mask: IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
            pd: pd.as_ptr(),
            send_ops_flags: attr.send_ops,
            ..Default::default()
        };
        let mut efa = efadv_qp_init_attr {
            driver_qp_type: EFADV_QP_DRIVER_TYPE_SRD,
            flags: attr.flags,
            sl: attr.sl,
            wr_flags: attr.wr_flags,
            ..Default::default()
        };
        let destroy = ("ibv_destroy_qp", context.verbs().ibv_destroy_qp()?);
        // SAFETY: `parts` keeps the context, the domain and the completion queues, and `Parts::new` checked that they
        // belong to one context. Both attributes are locals, and `efa` has the size that is passed. The rings are in
        // libefa's memory. So `parts` keeps everything that the queue pair uses; `attach_counter` adds counters to it.
        let qp = unsafe {
            let qp = match attr.qp_type {
                QpType::Srd => {
                    let create = context.libraries().efa()?.efadv_create_qp_ex()?;
                    create(context.as_ptr(), &mut ex, &mut efa, size(&efa))
                }
                QpType::Ud => ibv_create_qp_ex(context.verbs(), context.as_ptr(), &mut ex)?,
            };
            Object::new(call, qp, destroy, parts)?
        };
        Ok(Self { qp })
    }

    /// Creates an SRD queue pair by the older `efadv_create_driver_qp`, which supports sends and no RDMA. Only the
    /// sizes in `attr` are used.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn create_driver(pd: &Arc<Pd>, send_cq: &Arc<Cq>, recv_cq: &Arc<Cq>, attr: &QpAttr) -> Result<Self, Error> {
        let call = "efadv_create_driver_qp";
        check_recv_sge(call, attr.recv_sge)?;
        let parts = Parts::new(call, pd, send_cq, recv_cq)?;
        let mut init = ibv_qp_init_attr {
            send_cq: ibv_cq_ex_to_cq(send_cq.as_ptr()),
            recv_cq: ibv_cq_ex_to_cq(recv_cq.as_ptr()),
            cap: attr.cap(),
            qp_type: IBV_QPT_DRIVER,
            ..Default::default()
        };
        let create = pd.context().libraries().efa()?.efadv_create_driver_qp()?;
        let destroy = ("ibv_destroy_qp", pd.context().verbs().ibv_destroy_qp()?);
        // SAFETY: `parts` keeps the domain and the completion queues, and `Parts::new` checked that they belong to one
        // context. The attributes are a local. The rings are in libefa's memory. So `parts` keeps everything that the
        // queue pair uses.
        let qp = unsafe {
            let qp = create(pd.as_ptr(), &mut init, EFADV_QP_DRIVER_TYPE_SRD);
            Object::new(call, qp, destroy, parts)?
        };
        Ok(Self { qp })
    }

    /// Returns the queue pair for functions of [`sys`](crate::sys). The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_qp {
        self.qp.as_ptr()
    }

    /// Returns the queue pair's number (QPN), by which peers address it.
    pub fn number(&self) -> u32 {
        // SAFETY: `self.qp` keeps the object alive. The library writes this field only when it creates the object.
        unsafe { (*self.as_ptr()).qp_num }
    }

    /// Returns the protection domain that the queue pair belongs to.
    pub fn pd(&self) -> &Arc<Pd> {
        &self.qp.parts().pd
    }

    fn context(&self) -> &Arc<Context> {
        self.pd().context()
    }

    /// Returns the queue pair's extended form, for [`ibv_wr_start`] and similar functions. The pointer is valid as long
    /// as `self`.
    ///
    /// # Errors
    /// The queue pair was created without `send_ops` (`EINVAL`), or the library is older than rdma-core 24.
    pub fn as_ex(&self) -> Result<NonNull<ibv_qp_ex>, Error> {
        // SAFETY: `self.qp` keeps the queue pair alive.
        let ex = unsafe { self.context().verbs().ibv_qp_to_qp_ex()?(self.as_ptr()) };
        NonNull::new(ex).ok_or(Error::Call { call: "ibv_qp_to_qp_ex", errno: crate::Errno(libc::EINVAL) })
    }

    /// Returns the queue pair as libefa's type, for [`efadv_wr_set_processing_hints`]. The pointer is valid as long as
    /// `self`.
    ///
    /// # Errors
    /// As for [`as_ex`](Self::as_ex), or the library is older than rdma-core 64.
    pub fn as_efadv(&self) -> Result<*mut efadv_qp, Error> {
        let ex = self.as_ex()?;
        // SAFETY: `self.qp` keeps the queue pair alive. It is an EFA queue pair: it belongs to the same context as its
        // completion queues, which `efadv_create_cq` created.
        Ok(unsafe { self.context().libraries().efa()?.efadv_qp_from_ibv_qp_ex()?(ex.as_ptr()) })
    }

    /// Sets the attributes that `mask` selects (a combination of `IBV_QP_…` flags).
    ///
    /// # Errors
    /// The device refuses.
    pub fn modify(&self, mut attr: ibv_qp_attr, mask: ibv_qp_attr_mask) -> Result<(), Error> {
        let modify = self.context().verbs().ibv_modify_qp()?;
        // SAFETY: `self.qp` keeps the queue pair alive; `attr` is a local and contains no pointers.
        Error::check("ibv_modify_qp", unsafe { modify(self.as_ptr(), &mut attr, mask as c_int) })
    }

    /// Moves the queue pair from Reset to Init.
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_init(&self, qkey: u32) -> Result<(), Error> {
        let attr = ibv_qp_attr { qp_state: IBV_QPS_INIT, pkey_index: 0, port_num: 1, qkey, ..Default::default() };
        self.modify(attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY)
    }

    /// Moves the queue pair from Init to Ready to Receive.
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_rtr(&self) -> Result<(), Error> {
        self.modify(ibv_qp_attr { qp_state: IBV_QPS_RTR, ..Default::default() }, IBV_QP_STATE)
    }

    /// Moves the queue pair from Ready to Receive to Ready to Send. `rnr_retry` is the number of times that the device
    /// retransmits a message to a receiver that is not ready (RNR); 7 means without limit. `None` keeps the device's
    /// default.
    ///
    /// # Errors
    /// The device refuses, or it does not support `rnr_retry`.
    pub fn to_rts(&self, rnr_retry: Option<u8>) -> Result<(), Error> {
        let attr = ibv_qp_attr {
            qp_state: IBV_QPS_RTS,
            sq_psn: 0,
            rnr_retry: rnr_retry.unwrap_or_default(),
            ..Default::default()
        };
        let retry = if rnr_retry.is_some() { IBV_QP_RNR_RETRY } else { 0 };
        self.modify(attr, IBV_QP_STATE | IBV_QP_SQ_PSN | retry)
    }

    /// Moves the queue pair to the error state, which flushes all outstanding requests.
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_error(&self) -> Result<(), Error> {
        self.modify(ibv_qp_attr { qp_state: IBV_QPS_ERR, ..Default::default() }, IBV_QP_STATE)
    }

    /// Returns the queue pair's attributes, at least those that `mask` selects.
    ///
    /// # Errors
    /// The call failed.
    pub fn query(&self, mask: ibv_qp_attr_mask) -> Result<ibv_qp_attr, Error> {
        let (mut attr, mut init) = (ibv_qp_attr::default(), ibv_qp_init_attr::default());
        let query = self.context().verbs().ibv_query_qp()?;
        // SAFETY: `self.qp` keeps the queue pair alive; both attributes are locals to write to.
        Error::check("ibv_query_qp", unsafe { query(self.as_ptr(), &mut attr, mask as c_int, &mut init) })
            .map(|()| attr)
    }

    /// Returns the locations and sizes of the send ring and the receive ring. Buffers and doorbells are valid as long
    /// as `self`. The send ring is device memory: write to it, never read from it.
    ///
    /// # Errors
    /// The library is older than rdma-core 59.
    pub fn query_wqs(&self) -> Result<(efadv_wq_attr, efadv_wq_attr), Error> {
        let (mut sq, mut rq) = (efadv_wq_attr::default(), efadv_wq_attr::default());
        let query = self.context().libraries().efa()?.efadv_query_qp_wqs()?;
        // SAFETY: `self.qp` keeps the queue pair alive; both attributes are locals of the size that is passed.
        let answer = unsafe { query(self.as_ptr(), &mut sq, &mut rq, size(&sq)) };
        Error::check("efadv_query_qp_wqs", answer).map(|()| (sq, rq))
    }

    /// Returns which parts of a message of this operation arrive in order, as a combination of
    /// `IBV_QUERY_QP_DATA_IN_ORDER_…` flags.
    ///
    /// # Errors
    /// The library is older than rdma-core 36.
    pub fn data_in_order(&self, op: ibv_wr_opcode, flags: u32) -> Result<u32, Error> {
        // SAFETY: `self.qp` keeps the queue pair alive. The call takes numbers only.
        let answer = unsafe { self.context().verbs().ibv_query_qp_data_in_order()?(self.as_ptr(), op, flags) };
        Ok(u32::try_from(answer).unwrap_or(0))
    }

    /// Makes `counter` count the completions of these operations (a combination of `IBV_QP_ATTACH_COMP_CNTR_OP_…`
    /// flags) as long as the queue pair lives.
    ///
    /// # Errors
    /// The device refuses. [`Error::TwoDevices`] if the counter belongs to another open device than the queue pair.
    pub fn attach_counter(&self, counter: &Arc<CompCounter>, ops: ibv_qp_attach_comp_cntr_op) -> Result<(), Error> {
        let others = [("completion counter", counter.context())];
        of_one_device("ibv_qp_attach_comp_cntr", ("queue pair", self.context()), others)?;
        let mut attr = ibv_qp_attach_comp_cntr_attr { op_mask: ops, ..Default::default() };
        let attach = self.context().verbs().ibv_qp_attach_comp_cntr()?;
        // The counter is kept before the device uses it. The lock is held during the call, so that a failure removes
        // this counter and not one that another thread has added.
        let mut kept = self.qp.parts().counters.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(counter.clone());
        // SAFETY: `self.qp` keeps the queue pair alive, and its parts keep the counter as long as the queue pair uses
        // it. `of_one_device` checked that both belong to one context. `attr` is a local.
        let answer = unsafe { attach(self.as_ptr(), counter.as_ptr(), &mut attr) };
        Error::check("ibv_qp_attach_comp_cntr", answer).inspect_err(|_| drop(kept.pop()))
    }
}

impl Parts {
    /// Returns the parts of a queue pair that `call` is about to create.
    ///
    /// # Errors
    /// [`Error::TwoDevices`] if they belong to different contexts.
    fn new(call: &'static str, pd: &Arc<Pd>, send_cq: &Arc<Cq>, recv_cq: &Arc<Cq>) -> Result<Self, Error> {
        let cqs = [("send completion queue", send_cq.context()), ("receive completion queue", recv_cq.context())];
        of_one_device(call, ("protection domain", pd.context()), cqs)?;
        Ok(Self { pd: pd.clone(), _cqs: [send_cq.clone(), recv_cq.clone()], counters: Mutex::default() })
    }
}

impl QpAttr {
    fn cap(&self) -> ibv_qp_cap {
        ibv_qp_cap {
            max_send_wr: self.send_wr,
            max_recv_wr: self.recv_wr,
            max_send_sge: self.send_sge,
            max_recv_sge: self.recv_sge,
            max_inline_data: self.inline_bytes,
        }
    }
}

/// Refuses receives without buffers. libefa divides by `recv_sge` without a check (`efa_setup_qp`,
/// `efa_calc_rq_max_depth`).
fn check_recv_sge(call: &'static str, sge: u32) -> Result<(), Error> {
    let (what, value) = ("recv_sge", u64::from(sge));
    if sge == 0 { Err(Error::Argument { call, what, value, expected: "at least 1" }) } else { Ok(()) }
}
