//! The headers' static inline functions, which no library exports.
//!
//! They call through tables of function pointers in a context, a queue pair or a completion queue. libibverbs and its
//! providers fill these tables. A context's table grows at its beginning from release to release, and its size is
//! stored in it, so that an older table is recognized.

use super::*;
use crate::error::Error;
use std::ffi::{c_int, c_uint, c_void};
use std::mem::offset_of;

/// The value of `abi_compat` in a context that is part of a `verbs_context` (`__VERBS_ABI_IS_EXTENDED`).
const ABI_IS_EXTENDED: usize = usize::MAX;

/// Returns the extended context that contains this context, or null if there is none.
///
/// # Safety
/// `context` is an open context.
pub unsafe fn verbs_get_ctx(context: *mut ibv_context) -> *mut verbs_context {
    // SAFETY: the caller guarantees that the context is open. If `abi_compat` has this value, libibverbs allocated it
    // as the last field of a `verbs_context`.
    unsafe {
        if (*context).abi_compat as usize != ABI_IS_EXTENDED {
            return std::ptr::null_mut();
        }
        context.byte_sub(offset_of!(verbs_context, context)).cast()
    }
}

/// Reads an operation of the extended context. It is `None` if the library is too old to have the field, or if the
/// provider does not implement the operation.
macro_rules! verbs_get_ctx_op {
    ($context:expr, $op:ident) => {{
        let extended = verbs_get_ctx($context);
        // Only the last `sz` bytes of the structure exist.
        if extended.is_null() || (*extended).sz < size_of::<verbs_context>() - offset_of!(verbs_context, $op) {
            None
        } else {
            (*extended).$op
        }
    }};
}

fn set_errno(errno: c_int) {
    // SAFETY: `__errno_location` returns the address of the calling thread's `errno`, which is always valid.
    unsafe { *libc::__errno_location() = errno };
}

/// Defines functions that call through a function pointer in their first argument.
macro_rules! through {
    ($($field:ident: fn $name:ident($object:ident: *mut $class:ty $(, $arg:ident: $type:ty)*) $(-> $ret:ty)?;)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the headers.")]
        ///
        /// # Panics
        /// The object was not created for this operation.
        ///
        /// # Safety
        /// As for the C function: the object is live, all pointers are valid, and the calls are in the order that its
        /// manual page requires.
        #[inline]
        pub unsafe fn $name($object: *mut $class $(, $arg: $type)*) $(-> $ret)? {
            // SAFETY: the caller guarantees that the object is live and the pointers are valid. libefa or libibverbs
            // set the function pointer when it created the object, with the signature of the headers.
            unsafe {
                let function = (*$object).$field;
                function.expect(concat!(stringify!($name), ": the object was not created for this"))($object $(, $arg)*)
            }
        }
    )*};
}

through! {
    wr_rdma_read: fn ibv_wr_rdma_read(qp: *mut ibv_qp_ex, rkey: u32, remote_addr: u64);
    wr_rdma_write: fn ibv_wr_rdma_write(qp: *mut ibv_qp_ex, rkey: u32, remote_addr: u64);
    wr_rdma_write_imm: fn ibv_wr_rdma_write_imm(qp: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, imm_data: __be32);
    wr_send: fn ibv_wr_send(qp: *mut ibv_qp_ex);
    wr_send_imm: fn ibv_wr_send_imm(qp: *mut ibv_qp_ex, imm_data: __be32);
    wr_set_ud_addr: fn ibv_wr_set_ud_addr(qp: *mut ibv_qp_ex, ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32);
    wr_set_inline_data: fn ibv_wr_set_inline_data(qp: *mut ibv_qp_ex, addr: *mut c_void, length: usize);
    wr_set_inline_data_list:
        fn ibv_wr_set_inline_data_list(qp: *mut ibv_qp_ex, count: usize, list: *const ibv_data_buf);
    wr_set_sge: fn ibv_wr_set_sge(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32);
    wr_set_sge_list: fn ibv_wr_set_sge_list(qp: *mut ibv_qp_ex, count: usize, list: *const ibv_sge);
    wr_start: fn ibv_wr_start(qp: *mut ibv_qp_ex);
    wr_complete: fn ibv_wr_complete(qp: *mut ibv_qp_ex) -> c_int;
    wr_abort: fn ibv_wr_abort(qp: *mut ibv_qp_ex);

    start_poll: fn ibv_start_poll(cq: *mut ibv_cq_ex, attr: *mut ibv_poll_cq_attr) -> c_int;
    next_poll: fn ibv_next_poll(cq: *mut ibv_cq_ex) -> c_int;
    end_poll: fn ibv_end_poll(cq: *mut ibv_cq_ex);
    read_opcode: fn ibv_wc_read_opcode(cq: *mut ibv_cq_ex) -> ibv_wc_opcode;
    read_vendor_err: fn ibv_wc_read_vendor_err(cq: *mut ibv_cq_ex) -> u32;
    read_byte_len: fn ibv_wc_read_byte_len(cq: *mut ibv_cq_ex) -> u32;
    read_imm_data: fn ibv_wc_read_imm_data(cq: *mut ibv_cq_ex) -> __be32;
    read_qp_num: fn ibv_wc_read_qp_num(cq: *mut ibv_cq_ex) -> u32;
    read_src_qp: fn ibv_wc_read_src_qp(cq: *mut ibv_cq_ex) -> u32;
    read_wc_flags: fn ibv_wc_read_wc_flags(cq: *mut ibv_cq_ex) -> c_uint;
    read_slid: fn ibv_wc_read_slid(cq: *mut ibv_cq_ex) -> u32;
    read_sl: fn ibv_wc_read_sl(cq: *mut ibv_cq_ex) -> u8;
    read_dlid_path_bits: fn ibv_wc_read_dlid_path_bits(cq: *mut ibv_cq_ex) -> u8;

    wr_set_processing_hints: fn efadv_wr_set_processing_hints(qp: *mut efadv_qp, hints: u32);
    wc_read_sgid: fn efadv_wc_read_sgid(cq: *mut efadv_cq, sgid: *mut ibv_gid) -> c_int;
    wc_is_unsolicited: fn efadv_wc_is_unsolicited(cq: *mut efadv_cq) -> bool;
}

/// Defines functions that call through a function pointer in their first argument's context.
macro_rules! through_context {
    ($($field:ident: fn $name:ident($object:ident: *mut $class:ty $(, $arg:ident: $type:ty)*) -> $ret:ty;)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of `verbs.h`.")]
        ///
        /// # Panics
        /// The provider does not implement the operation. Every provider of rdma-core does.
        ///
        /// # Safety
        /// As for the C function: the object is live, and all pointers are valid.
        #[inline]
        pub unsafe fn $name($object: *mut $class $(, $arg: $type)*) -> $ret {
            // SAFETY: the caller guarantees that the object is live and the pointers are valid. A live object's context
            // is open, and its provider filled the table when it opened the context.
            unsafe {
                let function = (*(*$object).context).ops.$field;
                function.expect(concat!(stringify!($name), ": the provider has none"))($object $(, $arg)*)
            }
        }
    )*};
}

through_context! {
    poll_cq: fn ibv_poll_cq(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int;
    req_notify_cq: fn ibv_req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int;
    post_send: fn ibv_post_send(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int;
    post_recv: fn ibv_post_recv(qp: *mut ibv_qp, wr: *mut ibv_recv_wr, bad_wr: *mut *mut ibv_recv_wr) -> c_int;
}

/// Converts an extended completion queue to the basic form, which its first fields are (`ibv_cq_ex_to_cq` of
/// `verbs.h`).
pub fn ibv_cq_ex_to_cq(cq: *mut ibv_cq_ex) -> *mut ibv_cq {
    cq.cast()
}

/// Creates a completion queue (`ibv_create_cq_ex` of `verbs.h`). Returns null and sets `errno` on failure.
///
/// # Safety
/// As for the C function: the context is open, and the attributes are valid.
pub unsafe fn ibv_create_cq_ex(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex {
    // SAFETY: the caller guarantees an open context and valid attributes. The context's provider set the operation.
    unsafe {
        let Some(create) = verbs_get_ctx_op!(context, create_cq_ex) else {
            set_errno(libc::EOPNOTSUPP);
            return std::ptr::null_mut();
        };
        create(context, attr)
    }
}

/// Creates a queue pair (`ibv_create_qp_ex` of `verbs.h`). Returns null and sets `errno` on failure.
///
/// # Errors
/// The library does not have `ibv_create_qp`, which is called if the attributes have only a protection domain.
///
/// # Safety
/// As for the C function: the context is open, and the attributes are valid.
pub unsafe fn ibv_create_qp_ex(
    verbs: &Verbs,
    context: *mut ibv_context,
    attr: *mut ibv_qp_init_attr_ex,
) -> Result<*mut ibv_qp, Error> {
    // SAFETY: the caller guarantees an open context and valid attributes. The context's provider set the operation. The
    // first fields of the attributes are those of `ibv_create_qp`.
    unsafe {
        if (*attr).comp_mask == IBV_QP_INIT_ATTR_PD {
            return Ok(verbs.ibv_create_qp()?((*attr).pd, attr.cast()));
        }
        let Some(create) = verbs_get_ctx_op!(context, create_qp_ex) else {
            set_errno(libc::EOPNOTSUPP);
            return Ok(std::ptr::null_mut());
        };
        Ok(create(context, attr))
    }
}

/// Queries a device's attributes (`ibv_query_device_ex` of `verbs.h`, without input). Returns 0 or an error number. If
/// the library is older, or the provider does not implement the operation, only `orig_attr` is set and all other
/// attributes are zero.
///
/// # Errors
/// The library does not have `ibv_query_device`.
///
/// # Safety
/// As for the C function: the context is open, and `attr` is valid for writes.
pub unsafe fn ibv_query_device_ex(
    verbs: &Verbs,
    context: *mut ibv_context,
    attr: *mut ibv_device_attr_ex,
) -> Result<c_int, Error> {
    // SAFETY: the caller guarantees an open context and attributes that are valid for writes. The context's provider
    // set the operation.
    unsafe {
        if let Some(query) = verbs_get_ctx_op!(context, query_device_ex) {
            let answer = query(context, std::ptr::null(), attr, size_of::<ibv_device_attr_ex>());
            if ![libc::EOPNOTSUPP, libc::ENOSYS].contains(&answer) {
                return Ok(answer);
            }
        }
        attr.write_bytes(0, 1);
        Ok(verbs.ibv_query_device()?(context, &raw mut (*attr).orig_attr))
    }
}

/// Queries a port's attributes (`ibv_query_port` of `verbs.h`, `___ibv_query_port`). Returns 0 or an error number. An
/// older library is asked through the exported function of that name, which sets fewer attributes.
///
/// # Errors
/// The library does not have the exported function.
///
/// # Safety
/// As for the C function: the context is open, and `attr` is valid for writes.
pub unsafe fn ibv_query_port(
    verbs: &Verbs,
    context: *mut ibv_context,
    port: u8,
    attr: *mut ibv_port_attr,
) -> Result<c_int, Error> {
    // SAFETY: the caller guarantees an open context and attributes that are valid for writes. The context's provider
    // set the operation.
    unsafe {
        if let Some(query) = verbs_get_ctx_op!(context, query_port) {
            return Ok(query(context, port, attr, size_of::<ibv_port_attr>()));
        }
        attr.write_bytes(0, 1);
        Ok(verbs.ibv_query_port()?(context, port, attr.cast()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn query(_: *mut ibv_context, port: u8, attr: *mut ibv_port_attr, len: usize) -> c_int {
        assert_eq!(len, size_of::<ibv_port_attr>());
        // SAFETY: the test below passes a pointer to a local.
        unsafe { (*attr).max_msg_sz = u32::from(port) };
        0
    }

    #[test]
    fn an_operation_is_found_only_in_a_context_that_has_a_place_for_it() {
        // SAFETY: libc is loaded already and has no functions of libibverbs.
        let verbs = unsafe { Verbs::open("libc.so.6") }.expect("libc stands in for libibverbs");
        let mut extended = verbs_context { query_port: Some(query), ..Default::default() };
        let call = |extended: &mut verbs_context| {
            let mut attr = ibv_port_attr::default();
            let context = (&raw mut *extended).wrapping_byte_add(offset_of!(verbs_context, context)).cast();
            // SAFETY: the context and the attributes are live locals, and the functions called access nothing else.
            unsafe { ibv_query_port(&verbs, context, 3, &mut attr) }.map(|answer| (answer, attr.max_msg_sz))
        };
        // Not extended: the exported function is looked for.
        assert!(matches!(call(&mut extended), Err(Error::TooOld { symbol: "ibv_query_port", .. })));
        extended.context.abi_compat = ABI_IS_EXTENDED as *mut c_void;
        // Extended by an older library, which does not have the field.
        extended.sz = size_of::<verbs_context>() - offset_of!(verbs_context, query_port) - 1;
        assert!(call(&mut extended).is_err());
        extended.sz += 1;
        assert_eq!(call(&mut extended), Ok((0, 3)));
    }
}
