//! Compiles a crate of GPU kernels to PTX from a build script, with rustc's own `nvptx64-nvidia-cuda` target. CUDA is
//! not needed.
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
//! The package of the build script finds the PTX through environment variables while it is compiled. `KERNELS` is the
//! name of the kernel crate's folder:
//!
//! - `KERNELS_SM_90_PTX` is the path of the PTX for one architecture:
//!   `const PTX: &str = include_str!(env!("KERNELS_SM_90_PTX"));`
//! - `KERNELS_PTX` is the path of a Rust expression with the PTX of all architectures, in ascending order, each with
//!   its compute capability times ten: `const PTX: &[(u32, &str)] = include!(env!("KERNELS_PTX"));`
//!
//! Load the PTX of the highest architecture that is not above the GPU's own.
//!
//! # The kernel crate
//! The kernel crate is a folder with its own `Cargo.toml` outside the workspace (an empty `[workspace]` table makes it
//! so) and its own lock file, which is checked in. It may depend on any `no_std` crate. The builder chooses the
//! profile, the crate type and the target: release, `panic = "abort"`, fat LTO and one codegen unit. Nightly features
//! are available with every toolchain, and kernels need some:
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
//!     // SAFETY: a trap ends the kernel and accesses no memory.
//!     unsafe { core::arch::nvptx::trap() }
//! }
//! ```
//!
//! # The toolchain
//! The builder needs Rust 1.88 or newer with the sources of its standard library, because it compiles `core`, too. It
//! takes the first toolchain in this order that has everything (see [`Toolchain::find`]):
//!
//! 1. the toolchain that the environment variable **`EFA_PTX_TOOLCHAIN`** names: a folder with `bin/rustc` (or
//!    `usr/bin/rustc`) in it, or a toolchain of rustup;
//! 2. `toolchain/root` in cargo's target folder, where this project's `cargo xtask toolchain` puts Debian's packages
//!    without root. The project's statements about its kernels' machine code hold for this compiler: code of a nightly
//!    may need other registers, or a stack;
//! 3. a toolchain of rustup with the component `rust-src`, nightlies before others;
//! 4. a `rustc` in `PATH` with the sources beside it (Debian's `rustc-web`, `cargo-web` and `rust-web-src`, or `rustc`,
//!    `cargo` and `rust-src`).
//!
//! The outer cargo's variables (`RUSTFLAGS`, `RUSTC_WRAPPER`, `CARGO_TARGET_DIR`, `RUSTUP_TOOLCHAIN` and others) do not
//! reach the inner build. Those that say how to reach registries do, and so does the job server.
//!
//! # When it compiles
//! Cargo runs the build script again only if one of these changed: a source or a manifest of the kernel crate or of its
//! path dependencies, or a variable named here. The script compiles only what is not up to date. All build scripts
//! together compile `core` and dependencies once per architecture, in the folder `ptx` of cargo's target folder; they
//! take turns.
//!
//! # Registers, spills, stack
//! [`Built::assemble`] assembles the PTX with `ptxas`, which needs no GPU, and returns the resources of each kernel as
//! a [`Report`]. The builder runs the `ptxas` that **`PTXAS`** names, or one in `PATH`, or the one that
//! `cargo xtask toolchain` brought.
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
