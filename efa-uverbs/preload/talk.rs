// The messages between the preloaded library and the node. A message is three words: a kind and two values. Some
// messages carry descriptors.
//
// The descriptor of an open device is a socket that is connected to the node, which greets it with OPENED or REFUSED. A
// call sends a request over this socket, with one end of a new pair of sockets. The answer, and the node's questions
// before it, come over the other end. So calls of several threads, and of a child that inherited the descriptor, never
// get each other's answers.

/// A message: its kind, and two values.
pub(crate) type Message = [u64; 3];

/// The size of a message in bytes.
pub(crate) const MESSAGE_BYTES: usize = size_of::<Message>();

/// Greeting: the device is open.
pub(crate) const OPENED: u64 = 48;
/// Greeting and last message: the device is not open. Values: `errno`.
pub(crate) const REFUSED: u64 = 49;

/// Request: an `ioctl` on the device. Values: the argument's address; `errno` if the caller's memory could not be
/// opened. Descriptors: the socket for the answer; the caller's memory (`/proc/thread-self/mem`) if it could be opened.
pub(crate) const IOCTL: u64 = 1;
/// Request: a mapping of the device. Values: the offset. Descriptors: the socket for the answer.
pub(crate) const MAP: u64 = 2;

/// The last answer of a call. Values: the result as a signed number, negative `errno` if it is an error; for a mapping
/// the offset in the file. Descriptors: for a mapping, the file to map.
pub(crate) const DONE: u64 = 16;
/// Answer: the caller gets a descriptor and stores its number. Values: the address; the number's size in bytes, 4 or 8.
pub(crate) const GIVE: u64 = 17;
/// Question: asks for the caller's descriptor with this number. The reply is [`HERE`] or [`NOT_HERE`].
pub(crate) const ASK: u64 = 18;
/// Question: asks for the caller's `/proc/thread-self/maps`. The reply is [`HERE`] or [`NOT_HERE`].
pub(crate) const ASK_MAPS: u64 = 19;

/// Reply to a question. Descriptors: the one that was asked for.
pub(crate) const HERE: u64 = 32;
/// Reply to a question: there is no such descriptor.
pub(crate) const NOT_HERE: u64 = 33;

/// The environment variable with the folder of the node's sockets: `$EFA_NODE/uverbs0` and so on.
pub(crate) const NODE_VARIABLE: &str = "EFA_NODE";
/// The prefix of a device file's name, in `/dev/infiniband` and in the node's folder.
pub(crate) const DEVICE_PREFIX: &str = "uverbs";
/// The major number of device files (`IB_UVERBS_MAJOR`).
pub(crate) const MAJOR: u32 = 231;
/// The minor number of the first device file (`IB_UVERBS_BASE_MINOR`).
pub(crate) const BASE_MINOR: u32 = 192;
/// The `ioctl` of the verbs interface: `_IOWR(0x1b, 1, struct ib_uverbs_ioctl_hdr)`.
pub(crate) const RDMA_VERBS_IOCTL: u32 = 0xc018_1b01;
