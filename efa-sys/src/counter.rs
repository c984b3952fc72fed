//! Completion counters: numbers in memory that the device increments with each completion.

use crate::device::{Context, size};
use crate::error::Error;
use crate::object::Object;
use crate::pd::{memory_at, memory_in};
use crate::sys::*;
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// A completion counter: one number for successful completions and one for failed ones.
pub struct CompCounter {
    counter: Object<ibv_comp_cntr, Parts>,
}

/// What a counter uses.
struct Parts {
    context: Arc<Context>,
    /// The owner of the memory that the device writes to, unless that is libefa's.
    _memory: Option<Arc<dyn Any + Send + Sync>>,
}

/// Selects one of a counter's two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterValue {
    /// The number of successful completions.
    Completions,
    /// The number of completions with an error status.
    Errors,
}

impl CompCounter {
    /// Creates a counter whose numbers are in libefa's memory, where [`read`](Self::read) finds them.
    ///
    /// # Errors
    /// The device has no counters, or none left; or the library is older than rdma-core 65.
    pub fn create(context: &Arc<Context>) -> Result<Self, Error> {
        Self::with(context, efadv_comp_cntr_init_attr::default(), None)
    }

    /// Creates a counter whose numbers are at these addresses, in memory that lives as long as `owner`. The counter
    /// keeps `owner` until it is destroyed. If destroying fails, `owner` is kept for the life of the process.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    ///
    /// # Safety
    /// The device writes both words. As long as `owner` lives, they must stay allocated, be aligned to 8 bytes, and be
    /// accessed only atomically.
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

    /// Creates a counter whose numbers are in a DMA-BUF. `completions` and `errors` are offsets in bytes from its
    /// beginning. The counter keeps `owner` until it is destroyed. If destroying fails, `owner` is kept for the life of
    /// the process.
    ///
    /// # Errors
    /// As for [`create`](Self::create), or the device cannot access the memory.
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
        // SAFETY: `parts` keeps the context open. Both attributes are locals, and `efa` has the size that is passed.
        // The device writes to memory that `parts` keeps (`create_at`'s caller guarantees it), to the DMA-BUF, which
        // the kernel keeps, or to libefa's memory. So `parts` keeps everything that the counter uses.
        let counter = unsafe {
            let counter = create(context.as_ptr(), &mut attr, &mut efa, size(&efa));
            Object::new("efadv_create_comp_cntr", counter, destroy, parts)?
        };
        Ok(Self { counter })
    }

    /// Returns the device that the counter belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.counter.parts().context
    }

    /// Returns the counter for functions of [`sys`](crate::sys). The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_comp_cntr {
        self.counter.as_ptr()
    }

    /// Returns the number that the kernel knows the counter by.
    pub fn handle(&self) -> u32 {
        // SAFETY: `self.counter` keeps the object alive. The library writes this field only when it creates the object.
        unsafe { (*self.as_ptr()).handle }
    }

    /// Returns one of the counter's numbers.
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
        // SAFETY: `self.counter` keeps the object alive; `value` is a local.
        Error::check(call, unsafe { read(self.as_ptr(), &mut value) }).map(|()| value)
    }

    /// Sets one of the counter's numbers.
    ///
    /// # Errors
    /// The call failed.
    pub fn set(&self, which: CounterValue, value: u64) -> Result<(), Error> {
        let verbs = self.context().verbs();
        let (call, set) = match which {
            CounterValue::Completions => ("ibv_set_comp_cntr", verbs.ibv_set_comp_cntr()?),
            CounterValue::Errors => ("ibv_set_err_comp_cntr", verbs.ibv_set_err_comp_cntr()?),
        };
        // SAFETY: `self.counter` keeps the object alive. The call takes numbers only.
        Error::check(call, unsafe { set(self.as_ptr(), value) })
    }

    /// Adds `amount` to one of the counter's numbers.
    ///
    /// # Errors
    /// The call failed.
    pub fn add(&self, which: CounterValue, amount: u64) -> Result<(), Error> {
        let verbs = self.context().verbs();
        let (call, add) = match which {
            CounterValue::Completions => ("ibv_inc_comp_cntr", verbs.ibv_inc_comp_cntr()?),
            CounterValue::Errors => ("ibv_inc_err_comp_cntr", verbs.ibv_inc_err_comp_cntr()?),
        };
        // SAFETY: `self.counter` keeps the object alive. The call takes numbers only.
        Error::check(call, unsafe { add(self.as_ptr(), amount) })
    }
}
