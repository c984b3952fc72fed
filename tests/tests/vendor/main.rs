//! Tests with the vendor's unmodified library and programs on software devices, some with our API at the other end of
//! the wire.
//!
//! They need the packages that `cargo xtask vendor` brings, and are ignored by default. `cargo xtask test` brings the
//! packages and runs these tests.
//!
//! | module | what runs |
//! | --- | --- |
//! | `devices` | `ibv_devices`, `ibv_devinfo` |
//! | `perftest` | perftest, all that it can do over SRD |
//! | `libfabric` | `fi_info` and `fi_pingpong` on both of libfabric's EFA fabrics |
//! | `interop` | a C program on libefa at one end, `efa_direct` at the other |
//! | `provider` | our own tests and demo, with `efa_direct` on libefa |
//! | `external` | the C program with completion queues, counters and regions in external memory |
//! | `counters` | the C program, and a reader of `hw_counters` |
//! | `processes` | programs that fork, programs that are killed, and their peers |
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
