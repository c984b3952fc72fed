//! A benchmark of posting and polling by a GPU: by a thread, a warp or many warps.
//!
//! Rings are in pinned host memory, as a NIC's rings would be behind the same PCIe link, or in the GPU's own memory.
//! Each kernel measures its time by the GPU's clock; a figure is the median of several launches. After each launch, the
//! host decodes the ring's bytes and compares them with the expected ones. The floor is the same code without the fence
//! before the doorbell, which a real NIC needs.
//!
//! ```text
//! gpu KERNELS.ptx [--json FILE] [--dp-direct VENDOR.ptx]
//! ```
//!
//! `--dp-direct` names [`dp_direct.cu`](dp_direct.cu), compiled with the vendor's library (efa-dp-direct). Then the
//! library's device functions post to the same rings, for comparison. `cargo xtask bench gpu -- --dp-direct FOLDER`
//! compiles it.
//!
//! | file | what is measured |
//! | --- | --- |
//! | `posts.rs` | posting, with nothing behind the rings |
//! | `polls.rs` | polling |
//! | `echo.rs` | from post to completion: by the kernel itself, and through a proxy on the processor |

mod echo;
mod gpu;
mod polls;
mod posts;

use gpu::{Gpu, Place, Usage};
use serde_json::json;
use std::error::Error;
use std::fs;

/// A figure.
struct Row {
    place: Place,
    what: String,
    /// The time for each operation in nanoseconds.
    ns: f64,
    /// The aim: the maximum time in nanoseconds.
    aim: Option<f64>,
    /// For a peer's figure: our figure of the same operation.
    ours: Option<f64>,
}

impl Row {
    fn new(place: Place, what: impl Into<String>, ns: f64) -> Self {
        Self { place, what: what.into(), ns, aim: None, ours: None }
    }

    fn aim(self, ns: f64) -> Self {
        Self { aim: Some(ns), ..self }
    }

    /// Sets the aim, in millions per second.
    fn aim_rate(self, rate: f64) -> Self {
        self.aim(1e3 / rate)
    }

    /// Returns the comparison that is printed after the figure.
    fn remark(&self) -> String {
        let aim = self.aim.map(|aim| {
            let verdict = if self.ns <= aim { "reached" } else { "MISSED" };
            if aim > 50.0 {
                format!("aim {aim:.0} ns {verdict}")
            } else {
                format!("aim {:.0} M/s {verdict}", 1e3 / aim)
            }
        });
        let ours = self.ours.map(|ours| format!("{:.1} times ours", self.ns / ours));
        aim.into_iter().chain(ours).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Default)]
struct Options {
    kernels: Option<String>,
    json: Option<String>,
    dp_direct: Option<String>,
}

fn options() -> Options {
    let mut options = Options::default();
    // Cargo adds the argument `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => options.json = args.next(),
            "--dp-direct" => options.dp_direct = args.next(),
            _ => options.kernels = Some(arg),
        }
    }
    options
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options();
    let Some(kernels) = options.kernels else {
        println!("gpu: nothing to run: the first argument is the kernels' PTX");
        return Ok(());
    };
    let gpu = Gpu::new(&kernels, options.dp_direct.as_deref())?;
    println!("{}, driver {}", gpu.name, gpu.driver);
    println!("{:66} {:>10} {:>10}", "", "ns each", "M/s");
    let mut rows = Vec::new();
    let mut show = |some: Vec<Row>| {
        for row in some {
            let name = format!("{}: {}", row.place.name(), row.what);
            println!("{name:66} {:10.2} {:10.1}  {}", row.ns, 1e3 / row.ns, row.remark());
            rows.push(row);
        }
    };
    for place in [Place::Host, Place::Gpu] {
        show(posts::alone(&gpu, place)?);
        show(posts::many_queues(&gpu, place)?);
        show(posts::shared(&gpu, place)?);
        show(polls::all(&gpu, place)?);
    }
    show(echo::all(&gpu, &kernels)?);
    let usage = gpu.usage()?;
    println!("\n{:20} {:>9} {:>12}", "kernel", "registers", "local bytes");
    for Usage { name, registers, local } in &usage {
        println!("{name:20} {registers:9} {local:12}");
    }
    let of = |name: &str| usage.iter().find(|kernel| kernel.name == name).map_or(0, |kernel| kernel.registers);
    println!("a posting call that is never taken costs {} registers", of("dormant") - of("compute"));
    if let Some(path) = options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                let aim = row.aim.map(round);
                json!({"ring": row.place.name(), "what": row.what, "ns": round(row.ns), "aim_ns": aim})
            })
            .collect();
        let usage: Vec<_> = usage
            .iter()
            .map(|Usage { name, registers, local }| {
                json!({"kernel": name, "registers": registers, "local_bytes": local})
            })
            .collect();
        let all = json!({"device": gpu.name, "driver": gpu.driver, "figures": rows, "kernels": usage});
        fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?;
    }
    Ok(())
}

fn round(ns: f64) -> f64 {
    (ns * 100.0).round() / 100.0
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
