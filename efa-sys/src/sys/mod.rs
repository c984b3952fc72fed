//! The libraries as they are: types and constants of the headers, exported functions, inline functions. All of it is unsafe to call.
//!
//! Types and constants are bindgen's, of rdma-core 65; feature `bindgen` makes them anew, to be compared (`tests/bindings.rs`). [`Verbs`] and
//! [`Efa`] are tables of the functions that the libraries export, looked up at run time: nothing is linked. The functions of this module
//! are those that the headers define inline.

#[path = "../bindings.rs"]
#[allow(missing_docs, dead_code, unreachable_pub, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
mod bindings;
mod inline;
mod layout;
mod load;
mod table;

pub use bindings::*;
pub use inline::*;
pub use load::Version;
pub use table::{Efa, Libraries, Verbs};
