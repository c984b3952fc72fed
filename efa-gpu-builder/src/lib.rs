//! Compiles a crate of GPU kernels to PTX from a build script, with rustc's own `nvptx64-nvidia-cuda` target. CUDA is not needed.
//!
//! ```no_run
//! // build.rs
//! use efa_gpu_builder::{Arch, Error, PtxBuilder};
//!
//! fn main() -> Result<(), Error> {
//!     PtxBuilder::new("kernels").arch(Arch::Sm80).arch(Arch::Sm90).build()?;
//!     Ok(())
//! }
//! ```
//!
//! The crate that this builds for finds the PTX in its environment; `KERNELS` is the name of the kernel crate's folder:
//!
//! | variable | what | use |
//! | --- | --- | --- |
//! | `KERNELS_SM_90_PTX` | path of the PTX for one architecture | `const PTX: &str = include_str!(env!("KERNELS_SM_90_PTX"));` |
//! | `KERNELS_PTX` | path of a Rust expression: all of them, each with its compute capability times ten, in ascending order | `const PTX: &[(u32, &str)] = include!(env!("KERNELS_PTX"));` |
//!
//! A GPU takes the PTX of the highest architecture that is not above its own.
//!
//! # The kernel crate
//! A folder with a `Cargo.toml` of its own, outside the workspace (an empty `[workspace]` table makes it so), with its lock file checked
//! in. It may depend on any `no_std` crate. Profile, crate type and target are the builder's to say: release, `panic = "abort"`, fat LTO,
//! one codegen unit. Nightly features may be used whichever toolchain compiles, and kernels take some:
//!
//! ```ignore
//! #![no_std]
//! #![feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)]
//!
//! #[unsafe(no_mangle)]
//! pub unsafe extern "ptx-kernel" fn ring(doorbell: *mut u32, producer: u32) {
//!     /* … */
//! }
//!
//! #[panic_handler]
//! fn panic(_: &core::panic::PanicInfo) -> ! {
//!     // SAFETY: it ends the kernel.
//!     unsafe { core::arch::nvptx::trap() }
//! }
//! ```
//!
//! # The toolchain
//! Rust 1.88 or newer with the sources of its standard library, since `core` is compiled along. The first of these that serves, see
//! [`Toolchain::find`]:
//!
//! 1. what the environment variable **`EFA_PTX_TOOLCHAIN`** names: a folder with `bin/rustc` (or `usr/bin/rustc`) in it, or a toolchain
//!    of rustup;
//! 2. `toolchain/root` in cargo's target folder, where this project's `cargo xtask toolchain` puts Debian's packages without root. What the project says of
//!    its kernels' machine code is said of this compiler: a nightly's may need other registers, or a stack;
//! 3. a toolchain of rustup with the component `rust-src`, nightlies before others;
//! 4. a `rustc` in `PATH` with the sources beside it (Debian's `rustc-web`, `cargo-web` and `rust-web-src`, or `rustc`, `cargo` and `rust-src`).
//!
//! What the outer cargo has in its environment (`RUSTFLAGS`, `RUSTC_WRAPPER`, `CARGO_TARGET_DIR`, `RUSTUP_TOOLCHAIN` and the like) does not reach the
//! inner build; how to reach registries does, and the job server.
//!
//! # When it compiles
//! Cargo runs the build script again only if a source of the kernel crate or of its path dependencies changed, a manifest of theirs, or a
//! variable named here; and the script itself leaves alone what is already up to date. `core` and dependencies are compiled once per architecture, in
//! `ptx` in cargo's target folder, for all build scripts together; these take turns.
//!
//! # Registers, spills, stack
//! [`Built::assemble`] has `ptxas` assemble the PTX, which needs no GPU, and gives what each kernel takes as a [`Report`]. `ptxas` is what
//! **`PTXAS`** names, or in `PATH`, or what `cargo xtask toolchain` brought.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod arch;
mod builder;
mod cargo;
mod environment;
mod error;
mod inputs;
mod ptxas;
mod toolchain;

pub use arch::Arch;
pub use builder::{Built, Module, PtxBuilder};
pub use error::Error;
pub use ptxas::{Ptxas, Report, Usage};
pub use toolchain::Toolchain;
