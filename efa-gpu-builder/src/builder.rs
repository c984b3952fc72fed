//! The builder, which compiles a kernel crate to one PTX file for each architecture.

use crate::cargo::Job;
use crate::environment::{own_target_folder, target_folder};
use crate::inputs::Stamp;
use crate::ptxas::{Ptxas, Report};
use crate::{Arch, Error, Toolchain};
use std::collections::HashSet;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A build of a kernel crate, to be configured and run by a build script. See the [crate's documentation](crate).
#[derive(Clone, Debug)]
pub struct PtxBuilder {
    folder: String,
    archs: Vec<Arch>,
    features: Vec<String>,
    ptx_version: u32,
    debug_assertions: bool,
    out_dir: Option<PathBuf>,
}

/// A PTX file for one architecture.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Module {
    /// The architecture.
    pub arch: Arch,
    /// The path of the file.
    pub path: PathBuf,
    /// `true` if this build compiled it; `false` if it was up to date.
    pub compiled: bool,
}

/// The result of a build.
#[derive(Clone, Debug)]
pub struct Built {
    modules: Vec<Module>,
    inputs: Vec<PathBuf>,
    warnings: Vec<String>,
    variables: Vec<(String, PathBuf)>,
}

impl PtxBuilder {
    /// Creates a builder for the kernel crate in this folder, relative to the build script's package.
    pub fn new(folder: impl Into<String>) -> Self {
        let folder = folder.into();
        Self { folder, archs: vec![], features: vec![], ptx_version: 0, debug_assertions: false, out_dir: None }
    }

    /// Adds an architecture. If none is added, the builder compiles for all.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.archs.push(arch);
        self
    }

    /// Adds architectures.
    pub fn archs(mut self, archs: impl IntoIterator<Item = Arch>) -> Self {
        self.archs.extend(archs);
        self
    }

    /// Enables a feature of the kernel crate.
    pub fn feature(mut self, feature: impl Into<String>) -> Self {
        self.features.push(feature.into());
        self
    }

    /// Sets the minimum version of PTX, times ten, where [`Arch::ptx_version`] is not enough: 86 is 8.6.
    pub fn ptx_version(mut self, version: u32) -> Self {
        self.ptx_version = version;
        self
    }

    /// Enables debug assertions and overflow checks, which are off by default. The code is optimized in any case.
    pub fn debug_assertions(mut self, on: bool) -> Self {
        self.debug_assertions = on;
        self
    }

    /// Sets the folder for the PTX, which by default is the build script's `OUT_DIR`. No other build may use the same
    /// folder at the same time.
    pub fn out_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.out_dir = Some(folder.into());
        self
    }

    /// Compiles what is not up to date. Prints the instructions by which cargo knows where the PTX is and when to run
    /// the script again.
    ///
    /// # Errors
    /// There is no toolchain or no such crate, or the crate does not compile.
    pub fn build(mut self) -> Result<Built, Error> {
        for variable in ["EFA_PTX_TOOLCHAIN", "PTXAS"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
        let manifest = package.join(&self.folder).join("Cargo.toml");
        let folder = fs::canonicalize(package.join(&self.folder)).map_err(|_| Error::NoManifest(manifest.clone()))?;
        if !folder.join("Cargo.toml").is_file() {
            return Err(Error::NoManifest(manifest));
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = self.out_dir.take().or_else(|| env::var_os("OUT_DIR").map(PathBuf::from)).ok_or(Error::NoOutDir)?;
        fs::create_dir_all(&out).map_err(Error::io("creating", &out))?;
        let out = fs::canonicalize(&out).map_err(Error::io("entering", &out))?;
        let target = target_folder(&out);
        let toolchain = Toolchain::find_for(Some(target))?;

        if self.archs.is_empty() {
            self.archs.extend(Arch::ALL);
        }
        self.archs.sort();
        self.archs.dedup();
        let mut built = Built { modules: vec![], inputs: vec![], warnings: vec![], variables: vec![] };
        for &arch in &self.archs {
            let job = Job {
                toolchain: &toolchain,
                name: &self.folder,
                folder: &folder,
                arch,
                target: &target.join("ptx"),
                features: &self.features,
                ptx_version: self.ptx_version.max(arch.ptx_version()),
                debug_assertions: self.debug_assertions,
            };
            built.add(&job, out.join(format!("{name}.{arch}.ptx")))?;
        }
        built.hand_over(&name, &out)?;
        Ok(built)
    }
}

impl Built {
    /// Returns the PTX files by ascending architecture.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Returns all files that the PTX was compiled from. A change of one of them is a reason to build again.
    pub fn inputs(&self) -> &[PathBuf] {
        &self.inputs
    }

    /// Returns the compiler's warnings in its own format. Cargo prints them as warnings of the build script.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the environment variables that the package sees while it is compiled, and the paths that they contain.
    pub fn variables(&self) -> &[(String, PathBuf)] {
        &self.variables
    }

    /// Assembles all PTX files with `ptxas` and returns the resources of every kernel.
    ///
    /// # Errors
    /// There is no `ptxas`, or it refuses the PTX.
    pub fn assemble(&self) -> Result<Report, Error> {
        let target = self.modules.first().map(|module| target_folder(&module.path).to_path_buf());
        let ptxas = Ptxas::find_for(target.or_else(own_target_folder).as_deref())?;
        let mut report = Report::default();
        for module in &self.modules {
            report.extend(ptxas.assemble(module.arch, &module.path)?);
        }
        Ok(report)
    }

    /// Compiles one PTX file unless it is up to date.
    fn add(&mut self, job: &Job<'_>, path: PathBuf) -> Result<(), Error> {
        let stamp = Stamp::new(path.with_extension("inputs"), job.how());
        let unchanged = stamp.unchanged().filter(|_| path.is_file());
        let compiled = unchanged.is_none();
        let inputs = match unchanged {
            Some(inputs) => inputs,
            None => {
                stamp.remove()?;
                let since = SystemTime::now();
                let compiled = job.run(&path)?;
                // A crate with warnings is compiled every time, so that its warnings are printed every time.
                if compiled.exact && compiled.warnings.is_empty() {
                    stamp.write(&compiled.inputs, since)?;
                }
                self.warnings.extend(compiled.warnings);
                compiled.inputs
            }
        };
        self.inputs.extend(inputs);
        self.inputs.sort();
        self.inputs.dedup();
        self.modules.push(Module { arch: job.arch, path, compiled });
        Ok(())
    }

    /// Writes the list of all modules, and prints cargo's instructions.
    fn hand_over(&mut self, name: &str, out: &Path) -> Result<(), Error> {
        let mut list = String::from("&[");
        let variable = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_uppercase();
        for Module { arch, path, .. } in &self.modules {
            // Writing to a string does not fail.
            let _ = write!(list, "({}u32, include_str!({path:?})), ", arch.number());
            let suffix = arch.to_string().to_uppercase();
            self.variables.push((format!("{variable}_{suffix}_PTX"), path.clone()));
        }
        list = format!("{}]\n", list.trim_end_matches(", "));
        let all = out.join(format!("{name}.ptx.rs"));
        if fs::read_to_string(&all).ok().as_ref() != Some(&list) {
            fs::write(&all, list).map_err(Error::io("writing", &all))?;
        }
        self.variables.push((format!("{variable}_PTX"), all));
        for (variable, path) in &self.variables {
            println!("cargo::rustc-env={variable}={}", path.display());
        }
        // The warnings are the same for every architecture; they are printed once.
        let mut seen = HashSet::new();
        for warning in self.warnings.iter().filter(|warning| seen.insert(*warning)) {
            // Cargo takes warnings line by line.
            for line in warning.lines().filter(|line| !line.trim().is_empty()) {
                println!("cargo::warning={line}");
            }
        }
        for input in &self.inputs {
            println!("cargo::rerun-if-changed={}", input.display());
        }
        Ok(())
    }
}
