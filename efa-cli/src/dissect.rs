//! `efa dissect`: shows the fields of a ring entry.

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use efa_io::{Cqe16, Cqe32, RxDesc, Wqe64, Wqe128};

/// Options of `efa dissect`.
#[derive(Args)]
pub(crate) struct Options {
    /// The kind of entry.
    #[arg(value_enum)]
    kind: Kind,
    /// The bytes, in hexadecimal; spaces and colons are ignored.
    #[arg(required = true)]
    hex: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A send WQE of 64 or 128 bytes.
    Wqe,
    /// A receive descriptor of 16 bytes.
    Rx,
    /// A completion entry of 16 or 32 bytes.
    Cqe,
}

/// Runs `efa dissect`.
pub(crate) fn main(options: &Options) -> Result<()> {
    let bytes = parse_hex(&options.hex.concat())?;
    match (options.kind, bytes.len()) {
        (Kind::Wqe, 64) => print!("{}", Wqe64::from_words(words(&bytes))),
        (Kind::Wqe, 128) => print!("{}", Wqe128::from_words(words(&bytes))),
        (Kind::Rx, 16) => print!("{}", RxDesc::from_words(words(&bytes))),
        (Kind::Cqe, 16) => print!("{}", Cqe16::from_words(words(&bytes))),
        (Kind::Cqe, 32) => print!("{}", Cqe32::from_words(words(&bytes))),
        (Kind::Wqe, len) => bail!("a send WQE has 64 or 128 bytes, these are {len}"),
        (Kind::Rx, len) => bail!("a receive descriptor has 16 bytes, these are {len}"),
        (Kind::Cqe, len) => bail!("a completion entry has 16 or 32 bytes, these are {len}"),
    }
    Ok(())
}

fn parse_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    ensure!(digits.len().is_multiple_of(2), "{} hexadecimal digits make no whole number of bytes", digits.len());
    let byte = |pair: &[char]| {
        let pair: String = pair.iter().collect();
        u8::from_str_radix(&pair, 16).with_context(|| format!("{pair:?} is no hexadecimal byte"))
    };
    digits.chunks(2).map(byte).collect()
}

fn words<const W: usize>(bytes: &[u8]) -> [u64; W] {
    std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| bytes[word * 8 + byte])))
}
