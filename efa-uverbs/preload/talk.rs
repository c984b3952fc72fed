// What the preloaded library and the node say to each other. Messages are three words: a kind, and two values. Descriptors go along
// with some of them.
//
// A descriptor of an open device is a socket, connected to the node, which greets it with OPENED or REFUSED. A call sends a request over it, with one end of a new pair of
// sockets; the answer, and what the node asks in between, comes over the other. So calls of several threads, and of a child that inherited
// the descriptor, never get each other's answers.

/// A message: its kind, and two values.
pub(crate) type Message = [u64; 3];

/// Bytes of a message.
pub(crate) const MESSAGE_BYTES: usize = size_of::<Message>();

/// Greeting: the device is open.
pub(crate) const OPENED: u64 = 48;
/// Greeting, the last message: it is not. Values: `errno`.
pub(crate) const REFUSED: u64 = 49;

/// Request: an `ioctl` on the device. Values: the argument's address; `errno` if the caller's memory could not be opened. Descriptors: where the
/// answer goes, the caller's memory (`/proc/thread-self/mem`) if it could.
pub(crate) const IOCTL: u64 = 1;
/// Request: a mapping of the device. Values: the offset. Descriptors: where the answer goes.
pub(crate) const MAP: u64 = 2;

/// Answer, the last one. Values: the result as a signed number, negative `errno` if it is an error; where in the file that comes along a mapping
/// begins. Descriptors: with a mapping, the file to map.
pub(crate) const DONE: u64 = 16;
/// Answer: the caller gets a descriptor, whose number is to be stored. Values: address; bytes, 4 or 8.
pub(crate) const GIVE: u64 = 17;
/// Question: the caller's descriptor with this number, back as a message of kind [`HERE`], or [`NOT_HERE`].
pub(crate) const ASK: u64 = 18;
/// Question: the caller's `/proc/thread-self/maps`, answered in the same way.
pub(crate) const ASK_MAPS: u64 = 19;

/// What was asked for comes along.
pub(crate) const HERE: u64 = 32;
/// There is none.
pub(crate) const NOT_HERE: u64 = 33;

/// Where a node's sockets are: `$EFA_NODE/uverbs0` and so on.
pub(crate) const NODE_VARIABLE: &str = "EFA_NODE";
/// First part of a device file's name, in `/dev/infiniband` as well as in the node's folder.
pub(crate) const DEVICE_PREFIX: &str = "uverbs";
/// Major number of device files (`IB_UVERBS_MAJOR`).
pub(crate) const MAJOR: u32 = 231;
/// Minor number of the first (`IB_UVERBS_BASE_MINOR`).
pub(crate) const BASE_MINOR: u32 = 192;
/// The `ioctl` of the verbs interface: `_IOWR(0x1b, 1, struct ib_uverbs_ioctl_hdr)`.
pub(crate) const RDMA_VERBS_IOCTL: u32 = 0xc018_1b01;
