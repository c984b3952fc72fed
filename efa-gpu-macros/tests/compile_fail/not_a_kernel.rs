use efa_gpu_macros::kernel;

#[kernel]
pub fn safe(_: *mut u32) {}

#[kernel]
pub unsafe fn generic<T>(_: *mut T) {}

#[kernel]
pub unsafe fn answers() -> u32 {
    0
}

#[kernel(fast)]
pub unsafe fn with_arguments() {}

fn main() {}
