//! The GPU architectures of EC2 instances with EFA.

use std::fmt;

/// A GPU architecture to compile for. PTX for one architecture runs on every later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Arch {
    /// A100 (p4d, p4de); also A10G and L4 (g5, g6).
    Sm80,
    /// H100, H200 (p5, p5e, p5en).
    Sm90,
    /// B200, B300 (p6-b200, p6-b300).
    Sm100,
    /// RTX PRO 6000 (g7e).
    Sm120,
}

impl Arch {
    /// All architectures in ascending order.
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm90, Self::Sm100, Self::Sm120];

    /// Returns the compute capability times ten: 90 is 9.0.
    pub const fn number(self) -> u32 {
        match self {
            Self::Sm80 => 80,
            Self::Sm90 => 90,
            Self::Sm100 => 100,
            Self::Sm120 => 120,
        }
    }

    /// Returns the PTX version to compile for, times ten.
    ///
    /// A driver loads no PTX that is newer than the driver, so this is the oldest version that supports the
    /// architecture, `st.mmio` (8.2, PTX ISA "st") and `ld.b128` at system scope (8.4, PTX ISA "ld"). Version 8.4 needs
    /// a driver of CUDA 12.4: 550 or newer.
    pub const fn ptx_version(self) -> u32 {
        match self {
            Self::Sm80 | Self::Sm90 => 84,
            Self::Sm100 => 86,
            Self::Sm120 => 87,
        }
    }
}

/// Prints the name that rustc and ptxas use, for example `sm_90`.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.number())
    }
}
