//! Queue pairs.

use crate::counter::CompCounter;
use crate::cq::Cq;
use crate::device::{Context, size};
use crate::error::Error;
use crate::object::{Object, of_one_device};
use crate::pd::Pd;
use crate::sys::*;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// How a queue pair's messages travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QpType {
    /// Scalable reliable datagrams: EFA's own (`IBV_QPT_DRIVER`).
    #[default]
    Srd,
    /// Unreliable datagrams.
    Ud,
}

/// What a queue pair is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub struct QpAttr {
    /// How its messages travel.
    pub qp_type: QpType,
    /// Outstanding sends, at least; libefa rounds up to a power of two.
    pub send_wr: u32,
    /// Outstanding receives, at least.
    pub recv_wr: u32,
    /// Most buffers of a send.
    pub send_sge: u32,
    /// Most buffers of a receive. At least 1.
    pub recv_sge: u32,
    /// Longest inline message in bytes. Over 32 means WQEs of 128 bytes.
    pub inline_bytes: u32,
    /// Operations (`IBV_QP_EX_WITH_…`).
    pub send_ops: u64,
    /// `EFADV_QP_FLAGS_…`; SRD only.
    pub flags: u16,
    /// Service level; SRD only.
    pub sl: u8,
    /// What libefa's own posting can set (`EFADV_WR_EX_WITH_…`); SRD only.
    pub wr_flags: u64,
}

/// A queue pair.
pub struct Qp {
    qp: Object<ibv_qp, Parts>,
}

/// What a queue pair is made of.
struct Parts {
    pd: Arc<Pd>,
    _cqs: [Arc<Cq>; 2],
    counters: Mutex<Vec<Arc<CompCounter>>>,
}

impl Qp {
    /// Creates one, in the state Reset: SRD by `efadv_create_qp_ex`, UD by `ibv_create_qp_ex`.
    ///
    /// # Errors
    /// The device refused. [`Error::TwoDevices`]: the domain and the queues are of several open devices.
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
        // SAFETY: context, domain and queues live, and are of one context: `parts` has checked that, and keeps them.
        // Both attributes are this function's own, and `efa` has the size that is told. The rings are libefa's; so the
        // queue pair uses nothing but `parts`, which counters are added to.
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

    /// Creates an SRD queue pair by the older `efadv_create_driver_qp`: sends only, no RDMA. Of `attr` only the sizes matter.
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
        // SAFETY: as in `create`.
        let qp = unsafe {
            let qp = create(pd.as_ptr(), &mut init, EFADV_QP_DRIVER_TYPE_SRD);
            Object::new(call, qp, destroy, parts)?
        };
        Ok(Self { qp })
    }

    /// The queue pair, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_qp {
        self.qp.as_ptr()
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        // SAFETY: it lives as long as `self.qp`, and the library set its number when it made it, and never again.
        unsafe { (*self.as_ptr()).qp_num }
    }

    /// The domain that it belongs to.
    pub fn pd(&self) -> &Arc<Pd> {
        &self.qp.parts().pd
    }

    fn context(&self) -> &Arc<Context> {
        self.pd().context()
    }

    /// Its extended form, for [`ibv_wr_start`] and its like. It lives as long as `self`.
    ///
    /// # Errors
    /// It was created without operations (`EINVAL`), or the library is older than rdma-core 24.
    pub fn as_ex(&self) -> Result<NonNull<ibv_qp_ex>, Error> {
        // SAFETY: it lives as long as `self.qp`.
        let ex = unsafe { self.context().verbs().ibv_qp_to_qp_ex()?(self.as_ptr()) };
        NonNull::new(ex).ok_or(Error::Call { call: "ibv_qp_to_qp_ex", errno: crate::Errno(libc::EINVAL) })
    }

    /// libefa's view of it, for [`efadv_wr_set_processing_hints`]. It lives as long as `self`.
    ///
    /// # Errors
    /// As for [`as_ex`](Self::as_ex), or the library is older than rdma-core 64.
    pub fn as_efadv(&self) -> Result<*mut efadv_qp, Error> {
        let ex = self.as_ex()?;
        // SAFETY: it lives as long as `self.qp`, and is EFA's: it is of the same context as its completion queues,
        // which are (`Cq::as_efadv`).
        Ok(unsafe { self.context().libraries().efa()?.efadv_qp_from_ibv_qp_ex()?(ex.as_ptr()) })
    }

    /// Changes what `mask` (a sum of `IBV_QP_…`) names.
    ///
    /// # Errors
    /// The device refused.
    pub fn modify(&self, mut attr: ibv_qp_attr, mask: ibv_qp_attr_mask) -> Result<(), Error> {
        let modify = self.context().verbs().ibv_modify_qp()?;
        // SAFETY: it lives as long as `self.qp`; `attr` is this function's own, and all in it are numbers.
        Error::check("ibv_modify_qp", unsafe { modify(self.as_ptr(), &mut attr, mask as c_int) })
    }

    /// From Reset to Init.
    ///
    /// # Errors
    /// The device refused.
    pub fn to_init(&self, qkey: u32) -> Result<(), Error> {
        let attr = ibv_qp_attr { qp_state: IBV_QPS_INIT, pkey_index: 0, port_num: 1, qkey, ..Default::default() };
        self.modify(attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY)
    }

    /// From Init to Ready to Receive.
    ///
    /// # Errors
    /// The device refused.
    pub fn to_rtr(&self) -> Result<(), Error> {
        self.modify(ibv_qp_attr { qp_state: IBV_QPS_RTR, ..Default::default() }, IBV_QP_STATE)
    }

    /// From Ready to Receive to Ready to Send. `rnr_retry` is how often a message is offered again to a receiver that is not ready, 7 for ever;
    /// `None`: as the device does by itself.
    ///
    /// # Errors
    /// The device refused, or cannot be told how often.
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

    /// To the error state: what is outstanding is flushed.
    ///
    /// # Errors
    /// The device refused.
    pub fn to_error(&self) -> Result<(), Error> {
        self.modify(ibv_qp_attr { qp_state: IBV_QPS_ERR, ..Default::default() }, IBV_QP_STATE)
    }

    /// Its attributes, those of `mask` at least.
    ///
    /// # Errors
    /// The call failed.
    pub fn query(&self, mask: ibv_qp_attr_mask) -> Result<ibv_qp_attr, Error> {
        let (mut attr, mut init) = (ibv_qp_attr::default(), ibv_qp_init_attr::default());
        let query = self.context().verbs().ibv_query_qp()?;
        // SAFETY: it lives as long as `self.qp`; both attributes are this function's own.
        Error::check("ibv_query_qp", unsafe { query(self.as_ptr(), &mut attr, mask as c_int, &mut init) })
            .map(|()| attr)
    }

    /// Its send ring and its receive ring. Buffers and doorbells are valid as long as `self`; the send ring is device memory, not to be read.
    ///
    /// # Errors
    /// The library is older than rdma-core 59.
    pub fn query_wqs(&self) -> Result<(efadv_wq_attr, efadv_wq_attr), Error> {
        let (mut sq, mut rq) = (efadv_wq_attr::default(), efadv_wq_attr::default());
        let query = self.context().libraries().efa()?.efadv_query_qp_wqs()?;
        // SAFETY: it lives as long as `self.qp`; both attributes are this function's own, and have the size that is
        // told.
        let answer = unsafe { query(self.as_ptr(), &mut sq, &mut rq, size(&sq)) };
        Error::check("efadv_query_qp_wqs", answer).map(|()| (sq, rq))
    }

    /// Which parts of a message of this kind arrive in order (`IBV_QUERY_QP_DATA_IN_ORDER_…`).
    ///
    /// # Errors
    /// The library is older than rdma-core 36.
    pub fn data_in_order(&self, op: ibv_wr_opcode, flags: u32) -> Result<u32, Error> {
        // SAFETY: it lives as long as `self.qp`.
        let answer = unsafe { self.context().verbs().ibv_query_qp_data_in_order()?(self.as_ptr(), op, flags) };
        Ok(u32::try_from(answer).unwrap_or(0))
    }

    /// Has `counter` count the completions of these kinds (a sum of `IBV_QP_ATTACH_COMP_CNTR_OP_…`) for as long as the queue pair lives.
    ///
    /// # Errors
    /// The device refused. [`Error::TwoDevices`]: the counter is of another open device than the queue pair.
    pub fn attach_counter(&self, counter: &Arc<CompCounter>, ops: ibv_qp_attach_comp_cntr_op) -> Result<(), Error> {
        let others = [("completion counter", counter.context())];
        of_one_device("ibv_qp_attach_comp_cntr", ("queue pair", self.context()), others)?;
        let mut attr = ibv_qp_attach_comp_cntr_attr { op_mask: ops, ..Default::default() };
        let attach = self.context().verbs().ibv_qp_attach_comp_cntr()?;
        // Kept before it is used. Held meanwhile, so that what is taken out again is this one.
        let mut kept = self.qp.parts().counters.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(counter.clone());
        // SAFETY: both live, and are of one context; `attr` is this function's own. The counter lives as long as the
        // queue pair: it is one of its parts.
        let answer = unsafe { attach(self.as_ptr(), counter.as_ptr(), &mut attr) };
        Error::check("ibv_qp_attach_comp_cntr", answer).inspect_err(|_| drop(kept.pop()))
    }
}

impl Parts {
    /// Those of a queue pair that `call` is to make, if they are of one context.
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

/// libefa divides by it (`efa_setup_qp`, `efa_calc_rq_max_depth`).
fn check_recv_sge(call: &'static str, sge: u32) -> Result<(), Error> {
    let (what, value) = ("recv_sge", u64::from(sge));
    if sge == 0 { Err(Error::Argument { call, what, value, expected: "at least 1" }) } else { Ok(()) }
}
