//! Containing panics of code that is not the device's.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls `f`. Returns `None` if it panicked.
///
/// The panic hook has said why by then. The caller has to judge what became of the values that `f` was changing.
pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Option<T> {
    // The payload of the panic is not dropped: its destructor may panic as well.
    catch_unwind(AssertUnwindSafe(f)).map_err(std::mem::forget).ok()
}

/// Logs like `tracing::$level!`, but contains the panics of subscribers of `tracing`.
macro_rules! log {
    ($level:ident, $($what:tt)*) => {
        let _ = $crate::contain::contain(|| { tracing::$level!($($what)*); });
    };
}
pub(crate) use log;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_where_it_is_contained_even_if_what_was_thrown_panics_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert_eq!(contain(|| 5), Some(5));
        assert_eq!(contain(|| panic!("on purpose")), None::<()>);
        assert_eq!(contain(|| std::panic::panic_any(Bomb)), None::<()>);
    }
}
