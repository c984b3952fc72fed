//! Panics of code that is not the device's own.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls `f`; `None` if it panicked. The panic hook has then said why, and what `f` was at work on is the caller's to judge.
pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Option<T> {
    // What was thrown is not dropped: that may panic in its turn.
    catch_unwind(AssertUnwindSafe(f)).map_err(std::mem::forget).ok()
}

/// As `tracing::$level!`, except that a subscriber of `tracing` that panics does no harm.
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
