//! NVIDIA's assembler `ptxas`, and the resources that it reports for each kernel.

use crate::environment::{in_path, own_target_folder};
use crate::{Arch, Error};
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// NVIDIA's PTX assembler. It runs without a GPU.
#[derive(Clone, Debug)]
pub struct Ptxas {
    path: PathBuf,
}

/// The resources of one kernel on one architecture, as `ptxas -v` reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The architecture.
    pub arch: Arch,
    /// The name of the kernel, or of a function that is not inlined.
    pub name: String,
    /// The number of 32-bit registers of a thread. `None` for a function that is not inlined: its callers' numbers
    /// include its registers.
    pub registers: Option<u32>,
    /// The size of the stack in local memory, in bytes.
    pub stack: u32,
    /// The number of bytes stored to local memory because there were not enough registers.
    pub spill_stores: u32,
    /// The number of bytes loaded from there.
    pub spill_loads: u32,
}

/// The resources of all kernels. It prints as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    usages: Vec<Usage>,
}

impl Ptxas {
    /// Finds the `ptxas` that `PTXAS` names, or else one in `PATH`, or else the one that `cargo xtask toolchain`
    /// brought into cargo's target folder.
    ///
    /// # Errors
    /// [`Error::NoPtxas`] if there is none.
    pub fn find() -> Result<Self, Error> {
        Self::find_for(own_target_folder().as_deref())
    }

    pub(crate) fn find_for(target: Option<&Path>) -> Result<Self, Error> {
        if let Some(path) = env::var_os("PTXAS").filter(|path| !path.is_empty()).map(PathBuf::from) {
            let found = vec![format!("PTXAS names {}, which is not a file", path.display())];
            return if path.is_file() { Ok(Self { path }) } else { Err(Error::NoPtxas { found }) };
        }
        let brought = target.map(|target| target.join("toolchain/bin/ptxas")).filter(|file| file.is_file());
        let path = in_path(env::var_os("PATH"), "ptxas").into_iter().chain(brought).next();
        path.map(|path| Self { path }).ok_or_else(|| Error::NoPtxas { found: vec![] })
    }

    /// Returns the path of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Assembles one PTX file and returns the resources of its kernels.
    ///
    /// # Errors
    /// [`Error::Ptxas`] if `ptxas` refuses the file.
    pub fn assemble(&self, arch: Arch, ptx: &Path) -> Result<Report, Error> {
        let mut ptxas = Command::new(&self.path);
        ptxas.args(["--verbose", "--gpu-name", &arch.to_string(), "--output-file"]);
        ptxas.arg(ptx.with_extension("cubin")).arg(ptx);
        let output = ptxas.output().map_err(Error::io("starting", &self.path))?;
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(Error::Ptxas { arch, ptx: ptx.into(), output: said.trim().into() });
        }
        Ok(Report::parse(arch, &said))
    }
}

impl Usage {
    /// Returns `true` if the kernel uses no local memory: no stack, no spills.
    pub fn stays_in_registers(&self) -> bool {
        (self.stack, self.spill_stores, self.spill_loads) == (0, 0, 0)
    }
}

impl Report {
    /// Returns the resources of each kernel, ordered by architecture.
    pub fn usages(&self) -> &[Usage] {
        &self.usages
    }

    /// Returns the resources of the kernel of this name on this architecture.
    pub fn get(&self, arch: Arch, name: &str) -> Option<&Usage> {
        self.usages.iter().find(|usage| usage.arch == arch && usage.name == name)
    }

    /// Returns the kernels that use local memory.
    pub fn outside_registers(&self) -> impl Iterator<Item = &Usage> {
        self.usages.iter().filter(|usage| !usage.stays_in_registers())
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.usages.extend(other.usages);
    }

    /// Parses the output of `ptxas -v`.
    fn parse(arch: Arch, said: &str) -> Self {
        let mut usages: Vec<Usage> = Vec::new();
        for line in said.lines().map(|line| line.trim_start_matches("ptxas info").trim_start_matches([' ', ':'])) {
            if let Some(name) = line.strip_prefix("Function properties for ") {
                let name = name.trim().into();
                usages.push(Usage { arch, name, registers: None, stack: 0, spill_stores: 0, spill_loads: 0 });
            }
            let Some(usage) = usages.last_mut() else { continue };
            let number = |what| number_before(line, what);
            if let Some(stack) = number(" bytes stack frame") {
                usage.stack = stack;
                usage.spill_stores = number(" bytes spill stores").unwrap_or(0);
                usage.spill_loads = number(" bytes spill loads").unwrap_or(0);
            } else if line.starts_with("Used ") {
                usage.registers = number(" registers");
            }
        }
        Self { usages }
    }
}

/// Returns the number in front of these words.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = line.split_once(words)?.0;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.usages.iter().map(|usage| usage.name.len()).max().unwrap_or(0).max("kernel".len());
        write!(f, "{:width$}  arch    registers  stack  spilled  reloaded", "kernel")?;
        for Usage { arch, name, registers, stack, spill_stores, spill_loads } in &self.usages {
            let registers = registers.map_or("-".into(), |registers| registers.to_string());
            let arch = arch.to_string();
            write!(f, "\n{name:width$}  {arch:6}  {registers:>9}  {stack:>5}  {spill_stores:>7}  {spill_loads:>8}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'post' for 'sm_90'\n\
        ptxas info    : Function properties for post\n    \
            64 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
        ptxas info    : Used 22 registers, used 0 barriers, 64 bytes cumulative stack size, 408 bytes cmem[0]\n\
        ptxas info    : Compile time = 3.862 ms\n\
        ptxas info    : Function properties for callee\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";

    #[test]
    fn registers_stack_and_spills_are_read_for_kernels_and_called_functions() {
        let report = Report::parse(Arch::Sm90, SAID);
        let kernel = report.get(Arch::Sm90, "post").unwrap();
        assert_eq!((kernel.registers, kernel.stack, kernel.spill_stores, kernel.spill_loads), (Some(22), 64, 12, 16));
        let callee = report.get(Arch::Sm90, "callee").unwrap();
        assert_eq!((callee.registers, callee.stays_in_registers()), (None, true));
        assert_eq!(report.outside_registers().map(|usage| usage.name.as_str()).collect::<Vec<_>>(), ["post"]);
    }

    #[test]
    fn a_report_prints_as_a_table() {
        let table = Report::parse(Arch::Sm90, SAID).to_string();
        assert_eq!(
            table,
            "kernel  arch    registers  stack  spilled  reloaded\n\
             post    sm_90          22     64       12        16\n\
             callee  sm_90           -      0        0         0"
        );
    }
}
