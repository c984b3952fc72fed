//! What cannot be a kernel does not compile, and the compiler says why.

#[test]
fn what_cannot_be_a_kernel_is_refused() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
