//! Completion counters: numbers that the device counts up in this process's memory.

use crate::device::{Context, size};
use crate::error::Error;
use crate::object::Object;
use crate::pd::{memory_at, memory_in};
use crate::sys::*;
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// A completion counter: two numbers, of completions that went well and of others.
pub struct CompCounter {
    counter: Object<ibv_comp_cntr, Parts>,
}

/// What a counter is made of.
struct Parts {
    context: Arc<Context>,
    /// Keeps the memory that the device writes to, if it is not libefa's.
    _memory: Option<Arc<dyn Any + Send + Sync>>,
}

/// Which of a counter's two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterValue {
    /// Completions that went well.
    Completions,
    /// Completions with an error.
    Errors,
}

impl CompCounter {
    /// Creates one whose numbers are in memory of libefa: [`read`](Self::read) them.
    ///
    /// # Errors
    /// The device has none, or no more; or the library is older than rdma-core 65.
    pub fn create(context: &Arc<Context>) -> Result<Self, Error> {
        Self::with(context, efadv_comp_cntr_init_attr::default(), None)
    }

    /// Creates one whose numbers are at these addresses, in memory that lives as long as `owner`, which is kept until
    /// the counter is destroyed, and for good if that fails.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    ///
    /// # Safety
    /// The device writes both words: as long as `owner` lives they must stay allocated, aligned to 8 bytes, and be accessed only atomically.
    pub unsafe fn create_at(
        context: &Arc<Context>,
        completions: NonNull<u64>,
        errors: NonNull<u64>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, Error> {
        let attr = efadv_comp_cntr_init_attr {
            flags: EFADV_COMP_CNTR_INIT_WITH_COMP_EXTERNAL_MEM | EFADV_COMP_CNTR_INIT_WITH_ERR_EXTERNAL_MEM,
            comp_cntr_ext_mem: memory_at(completions.cast()),
            err_cntr_ext_mem: memory_at(errors.cast()),
            ..Default::default()
        };
        Self::with(context, attr, Some(owner))
    }

    /// Creates one whose numbers are in a DMA-BUF, so many bytes from its beginning. `owner` is kept until the counter
    /// is destroyed, and for good if that fails.
    ///
    /// # Errors
    /// As for [`create`](Self::create), or the device cannot reach the memory.
    pub fn create_in(
        context: &Arc<Context>,
        fd: BorrowedFd<'_>,
        completions: u64,
        errors: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self, Error> {
        let attr = efadv_comp_cntr_init_attr {
            flags: EFADV_COMP_CNTR_INIT_WITH_COMP_EXTERNAL_MEM | EFADV_COMP_CNTR_INIT_WITH_ERR_EXTERNAL_MEM,
            comp_cntr_ext_mem: memory_in(fd, completions),
            err_cntr_ext_mem: memory_in(fd, errors),
            ..Default::default()
        };
        Self::with(context, attr, owner)
    }

    fn with(
        context: &Arc<Context>,
        mut efa: efadv_comp_cntr_init_attr,
        memory: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self, Error> {
        let mut attr = ibv_comp_cntr_init_attr { type_: IBV_COMP_CNTR_TYPE_WRS, ..Default::default() };
        let create = context.libraries().efa()?.efadv_create_comp_cntr()?;
        let destroy = ("ibv_destroy_comp_cntr", context.verbs().ibv_destroy_comp_cntr()?);
        let parts = Parts { context: context.clone(), _memory: memory };
        // SAFETY: the context is open: `parts` keeps it. Both attributes are this function's own, and `efa` has the
        // size that is told. What the device writes to is in `memory`, as `create_at`'s caller says, or is the
        // DMA-BUF's, which the kernel keeps; so the counter uses nothing but `parts`.
        let counter = unsafe {
            let counter = create(context.as_ptr(), &mut attr, &mut efa, size(&efa));
            Object::new("efadv_create_comp_cntr", counter, destroy, parts)?
        };
        Ok(Self { counter })
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.counter.parts().context
    }

    /// The counter, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_comp_cntr {
        self.counter.as_ptr()
    }

    /// The kernel's number of it.
    pub fn handle(&self) -> u32 {
        // SAFETY: it lives as long as `self.counter`, and the library set its number when it made it, and never again.
        unsafe { (*self.as_ptr()).handle }
    }

    /// One of its numbers.
    ///
    /// # Errors
    /// The call failed.
    pub fn read(&self, which: CounterValue) -> Result<u64, Error> {
        let verbs = self.context().verbs();
        let (call, read) = match which {
            CounterValue::Completions => ("ibv_read_comp_cntr", verbs.ibv_read_comp_cntr()?),
            CounterValue::Errors => ("ibv_read_err_comp_cntr", verbs.ibv_read_err_comp_cntr()?),
        };
        let mut value = 0;
        // SAFETY: it lives as long as `self.counter`; `value` is this function's own.
        Error::check(call, unsafe { read(self.as_ptr(), &mut value) }).map(|()| value)
    }

    /// Sets one of its numbers.
    ///
    /// # Errors
    /// The call failed.
    pub fn set(&self, which: CounterValue, value: u64) -> Result<(), Error> {
        let verbs = self.context().verbs();
        let (call, set) = match which {
            CounterValue::Completions => ("ibv_set_comp_cntr", verbs.ibv_set_comp_cntr()?),
            CounterValue::Errors => ("ibv_set_err_comp_cntr", verbs.ibv_set_err_comp_cntr()?),
        };
        // SAFETY: it lives as long as `self.counter`.
        Error::check(call, unsafe { set(self.as_ptr(), value) })
    }

    /// Adds to one of its numbers.
    ///
    /// # Errors
    /// The call failed.
    pub fn add(&self, which: CounterValue, amount: u64) -> Result<(), Error> {
        let verbs = self.context().verbs();
        let (call, add) = match which {
            CounterValue::Completions => ("ibv_inc_comp_cntr", verbs.ibv_inc_comp_cntr()?),
            CounterValue::Errors => ("ibv_inc_err_comp_cntr", verbs.ibv_inc_err_comp_cntr()?),
        };
        // SAFETY: it lives as long as `self.counter`.
        Error::check(call, unsafe { add(self.as_ptr(), amount) })
    }
}
