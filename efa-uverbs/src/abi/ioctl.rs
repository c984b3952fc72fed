//! The format of commands, and the numbers of objects, methods and attributes.

use bytemuck::{Pod, Zeroable};
use static_assertions::const_assert_eq;

/// The header of a command, which its attributes follow (`struct ib_uverbs_ioctl_hdr`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    /// The size of the command in bytes, including its attributes.
    pub(crate) length: u16,
    pub(crate) object_id: u16,
    pub(crate) method_id: u16,
    pub(crate) num_attrs: u16,
    pub(crate) reserved1: u64,
    pub(crate) driver_id: u32,
    pub(crate) reserved2: u32,
}
const_assert_eq!(size_of::<Header>(), 24);

/// An attribute of a command (`struct ib_uverbs_attr`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Attr {
    pub(crate) attr_id: u16,
    /// The size in bytes of the data that `data` points to. Up to eight bytes of input are in `data` itself.
    pub(crate) len: u16,
    pub(crate) flags: u16,
    pub(crate) reserved: u16,
    /// An address, a value, an object's handle or a descriptor's number.
    pub(crate) data: u64,
}
const_assert_eq!(size_of::<Attr>(), 16);

/// The offset of the flags in an attribute, in bytes.
pub(crate) const ATTR_FLAGS: u64 = 4;
/// The offset of the value in an attribute, in bytes.
pub(crate) const ATTR_DATA: u64 = 8;
/// Flag: a kernel that does not know the attribute refuses the command.
pub(crate) const MANDATORY: u16 = 1 << 0;
/// Flag, set by the kernel: the buffer that the attribute points to was written.
pub(crate) const VALID_OUTPUT: u16 = 1 << 1;
/// `RDMA_DRIVER_EFA` (`enum rdma_driver_id`).
pub(crate) const DRIVER_EFA: u32 = 17;

/// The names of the kinds of objects by number (`enum uverbs_default_objects`).
pub(crate) const OBJECTS: [&str; 20] = [
    "DEVICE",
    "PD",
    "COMP_CHANNEL",
    "CQ",
    "QP",
    "SRQ",
    "AH",
    "MR",
    "MW",
    "FLOW",
    "XRCD",
    "RWQ_IND_TBL",
    "WQ",
    "FLOW_ACTION",
    "DM",
    "COUNTERS",
    "ASYNC_EVENT",
    "DMAH",
    "DMABUF",
    "COMP_CNTR",
];

/// The first number of a driver's own objects, methods and attributes.
pub(crate) const DRIVER: u16 = 1 << 12;
/// The attribute with the provider's input to the driver.
pub(crate) const UHW_IN: u16 = DRIVER;
/// The attribute for the driver's answer to the provider.
pub(crate) const UHW_OUT: u16 = DRIVER + 1;

/// Declares methods: for each the numbers of its object and itself, and its attributes in order.
macro_rules! methods {
    ($($(#[$doc:meta])* $module:ident ($object:expr, $method:expr) { $($attr:ident),* })*) => { $(
        $(#[$doc])*
        pub(crate) mod $module {
            /// The numbers of the object and the method.
            pub(crate) const ID: (u16, u16) = ($object, $method);
            methods!(@ 0; $($attr),*);
            /// All attributes of the method.
            pub(crate) const ATTRS: &[u16] = &[$($attr),*];
        }
    )* };
    (@ $n:expr;) => {};
    (@ $n:expr; $attr:ident $(, $rest:ident)*) => {
        pub(crate) const $attr: u16 = $n;
        methods!(@ $n + 1; $($rest),*);
    };
}

methods! {
    /// A command of the older `write` interface.
    invoke_write (0, 0) { CORE_IN, CORE_OUT, WRITE_CMD }
    query_port (0, 2) { PORT_NUM, RESP }
    get_context (0, 3) { NUM_COMP_VECTORS, CORE_SUPPORT, FD_ARR }
    query_context (0, 4) { NUM_COMP_VECTORS, CORE_SUPPORT }
    query_gid_table (0, 5) { ENTRY_SIZE, FLAGS, RESP_ENTRIES, RESP_NUM_ENTRIES }
    query_gid_entry (0, 6) { PORT, GID_INDEX, FLAGS, RESP_ENTRY }
    query_port_speed (0, 7) { PORT_NUM, RESP }
    query_comp_cntr_caps (0, 8) { MAX_COUNTERS, MAX_VALUE, SUPPORTED_QP_ATTACH_OPS }
    pd_destroy (1, 0) { HANDLE }
    cq_create (3, 0) {
        HANDLE, CQE, USER_HANDLE, COMP_CHANNEL, COMP_VECTOR, FLAGS, RESP_CQE, EVENT_FD, BUFFER_VA, BUFFER_LENGTH,
        BUFFER_FD, BUFFER_OFFSET
    }
    cq_destroy (3, 1) { HANDLE, RESP }
    qp_create (4, 0) {
        HANDLE, XRCD_HANDLE, PD_HANDLE, SRQ_HANDLE, SEND_CQ_HANDLE, RECV_CQ_HANDLE, IND_TABLE_HANDLE, USER_HANDLE,
        CAP, TYPE, FLAGS, SOURCE_QPN, EVENT_FD, RESP_CAP, RESP_QP_NUM
    }
    qp_destroy (4, 1) { HANDLE, RESP }
    qp_attach_comp_cntr (4, 2) { HANDLE, CNTR_HANDLE, OP_MASK }
    ah_destroy (6, 0) { HANDLE }
    mr_destroy (7, 1) { HANDLE }
    query_mr (7, 3) { HANDLE, RESP_LKEY, RESP_RKEY, RESP_LENGTH, RESP_IOVA }
    reg_dmabuf_mr (7, 4) { HANDLE, PD_HANDLE, OFFSET, LENGTH, IOVA, FD, ACCESS_FLAGS, RESP_LKEY, RESP_RKEY }
    reg_mr (7, 5) {
        HANDLE, PD_HANDLE, DMA_HANDLE, IOVA, ADDR, LENGTH, ACCESS_FLAGS, FD, FD_OFFSET, RESP_LKEY, RESP_RKEY
    }
    async_event_alloc (16, 0) { FD_HANDLE }
    comp_cntr_create (19, 0) { HANDLE }
    comp_cntr_destroy (19, 1) { HANDLE }
    comp_cntr_modify (19, 2) { HANDLE, ENTRY, OP, VALUE }
    comp_cntr_read (19, 3) { HANDLE, ENTRY, RESP_VALUE }
}
