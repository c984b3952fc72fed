//! Finds the PTX of these kernels, for hosts that launch them.

use std::fs;

/// The environment variable that names the files, with colons between; each name ends with its architecture, as in
/// `….sm_90.ptx`.
pub const VARIABLE: &str = "EFA_KERNELS";

/// Reads the kernels' PTX, by compute capability times ten, from the files that [`VARIABLE`] names. `cargo xtask` sets
/// it where there is a GPU.
///
/// # Errors
/// It is not set, or does not name such files.
pub fn ptx() -> Result<Vec<(u32, String)>, String> {
    let paths = std::env::var(VARIABLE)
        .map_err(|_| format!("{VARIABLE} does not name the kernels' PTX; `cargo xtask` compiles it and sets that"))?;
    let read = |path: &str| {
        let arch = path.rsplit_once(".sm_").and_then(|(_, rest)| rest.strip_suffix(".ptx")?.parse().ok());
        let arch = arch.ok_or(format!("{path}: the name should end with the architecture, as in kernels.sm_90.ptx"))?;
        Ok((arch, fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?))
    };
    paths.split(':').map(read).collect()
}
