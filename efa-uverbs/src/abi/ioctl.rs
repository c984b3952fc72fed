//! How a command is written, and which there are.

use bytemuck::{Pod, Zeroable};
use static_assertions::const_assert_eq;

/// `struct ib_uverbs_ioctl_hdr`: a command's beginning; its attributes follow.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    /// Bytes, attributes included.
    pub(crate) length: u16,
    pub(crate) object_id: u16,
    pub(crate) method_id: u16,
    pub(crate) num_attrs: u16,
    pub(crate) reserved1: u64,
    pub(crate) driver_id: u32,
    pub(crate) reserved2: u32,
}
const_assert_eq!(size_of::<Header>(), 24);

/// `struct ib_uverbs_attr`: an attribute of a command.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Attr {
    pub(crate) attr_id: u16,
    /// Bytes of what `data` points to, or of what is in it if that fits.
    pub(crate) len: u16,
    pub(crate) flags: u16,
    pub(crate) reserved: u16,
    /// An address, a value, an object's handle or a descriptor's number.
    pub(crate) data: u64,
}
const_assert_eq!(size_of::<Attr>(), 16);

/// Where the flags are in an attribute.
pub(crate) const ATTR_FLAGS: u64 = 4;
/// Where the value is.
pub(crate) const ATTR_DATA: u64 = 8;
/// The command is refused if the attribute is not known.
pub(crate) const MANDATORY: u16 = 1 << 0;
/// The kernel has written what the attribute points to.
pub(crate) const VALID_OUTPUT: u16 = 1 << 1;
/// `RDMA_DRIVER_EFA` (`enum rdma_driver_id`).
pub(crate) const DRIVER_EFA: u32 = 17;

/// Names of the kinds of objects, by number (`enum uverbs_default_objects`).
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

/// First number of what a driver adds.
pub(crate) const DRIVER: u16 = 1 << 12;
/// What the driver is told beside the command.
pub(crate) const UHW_IN: u16 = DRIVER;
/// What it answers.
pub(crate) const UHW_OUT: u16 = DRIVER + 1;

/// Declares a method: the numbers of its object and itself, and its attributes in order.
macro_rules! methods {
    ($($(#[$doc:meta])* $module:ident ($object:expr, $method:expr) { $($attr:ident),* })*) => { $(
        $(#[$doc])*
        pub(crate) mod $module {
            /// Object and method.
            pub(crate) const ID: (u16, u16) = ($object, $method);
            methods!(@ 0; $($attr),*);
            /// All attributes.
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
        HANDLE, CQE, USER_HANDLE, COMP_CHANNEL, COMP_VECTOR, FLAGS, RESP_CQE, EVENT_FD, BUFFER_VA, BUFFER_LENGTH, BUFFER_FD, BUFFER_OFFSET
    }
    cq_destroy (3, 1) { HANDLE, RESP }
    qp_create (4, 0) {
        HANDLE, XRCD_HANDLE, PD_HANDLE, SRQ_HANDLE, SEND_CQ_HANDLE, RECV_CQ_HANDLE, IND_TABLE_HANDLE, USER_HANDLE, CAP, TYPE, FLAGS,
        SOURCE_QPN, EVENT_FD, RESP_CAP, RESP_QP_NUM
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
