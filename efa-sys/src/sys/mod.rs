//! The libraries' own interface: the types and constants of their headers, their exported functions and their inline
//! functions. All functions are unsafe to call.
//!
//! bindgen generated the types and constants from the headers of rdma-core 65. Feature `bindgen` generates them again,
//! to be compared (`tests/bindings.rs`). [`Verbs`] and [`Efa`] are tables of the functions that the libraries export;
//! they are looked up at run time, and nothing is linked. The functions of this module are those that the headers
//! define inline.

#[path = "../bindings.rs"]
#[allow(missing_docs, dead_code, unreachable_pub, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
mod bindings;
mod inline;
mod layout;
mod load;
mod table;
mod version;

pub use bindings::*;
pub use inline::*;
pub use table::{Efa, Libraries, Verbs};
pub use version::Version;
