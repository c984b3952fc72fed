//! The vendor's library and its users, unmodified, on software devices; and our own API at the other end of the wire.
//!
//! They need what `cargo xtask vendor` brings, and are ignored unless asked for: `cargo xtask test` asks, once it has
//! brought it.
//!
//! | module | who runs |
//! | --- | --- |
//! | `devices` | `ibv_devices`, `ibv_devinfo` |
//! | `perftest` | perftest, all that it can do over SRD |
//! | `libfabric` | `fi_info` and `fi_pingpong` on both of libfabric's EFA fabrics |
//! | `interop` | a C program on libefa at one end, `efa_direct` at the other |
//! | `provider` | our own tests and demo, with `efa_direct` on libefa |
//! | `external` | the same with completion queues, counters and regions in memory that libefa is given |
//! | `counters` | the same, and a reader of `hw_counters` |
//! | `processes` | programs that fork and programs that are killed, and their peers |
//! | `hosts` | several processes, several devices, hosts with addresses of their own |
//! | `rings` | libefa's WQEs beside ours, byte for byte |

mod counters;
mod devices;
mod external;
mod hosts;
mod interop;
mod libfabric;
mod perftest;
mod processes;
mod provider;
mod rings;
