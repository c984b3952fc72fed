//! Where these kernels are as PTX, for hosts that launch them.

use std::fs;

/// Names the files, with colons between; each ends with the architecture that it is for, as in `….sm_90.ptx`.
pub const VARIABLE: &str = "EFA_KERNELS";

/// The kernels as PTX, by compute capability times ten: what the environment variable [`VARIABLE`] names, as `cargo xtask` sets it where there is a
/// GPU.
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
