//! Misuse that does not compile. Each file of `compile_fail/` has the compiler's complaint beside it.

#[test]
fn misuse_of_rings_and_memory_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile_fail/pass_*.rs");
    cases.compile_fail("tests/compile_fail/fail_*.rs");
}

#[cfg(feature = "cuda")]
#[test]
fn misuse_of_what_a_gpu_has_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile_fail/cuda/pass_*.rs");
    cases.compile_fail("tests/compile_fail/cuda/fail_*.rs");
}
