//! Watching what a software device does.

use crate::report::{Moment, Timeline};
use anyhow::{Context, Result};
use efa_direct::Device;
use efa_soft::trace::{ChromeTrace, TraceEvent};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;

/// Most events that are kept.
const MOST: usize = 1_000_000;
/// Events at either end that a report has.
const SHOWN: usize = 9;

/// What a device did since it was watched; nothing, for one that is no software device.
pub(crate) struct Watch {
    events: Arc<Mutex<Vec<TraceEvent>>>,
}

impl Watch {
    /// Watches a device from here on.
    pub(crate) fn over(device: &Device) -> Self {
        let events: Arc<Mutex<Vec<TraceEvent>>> = Arc::default();
        if let Some(port) = device.soft_port() {
            port.with(&mut |device| {
                let events = events.clone();
                device.subscribe(Box::new(move |event: &TraceEvent| {
                    let mut events = events.lock();
                    if events.len() < MOST {
                        events.push(*event);
                    }
                }));
            });
        }
        Self { events }
    }

    /// How it began and ended.
    pub(crate) fn timeline(&self) -> Timeline {
        let events = self.events.lock();
        let start = events.first().map_or_else(Default::default, |event| event.at);
        let moment = |event: &TraceEvent| Moment {
            microseconds: event.at.since(start).as_nanos() as f64 / 1000.0,
            what: event.what.to_string(),
        };
        let (head, rest) = events.split_at(events.len().min(SHOWN));
        let (between, tail) = rest.split_at(rest.len().saturating_sub(SHOWN));
        let [head, tail] = [head, tail].map(|part| part.iter().map(moment).collect());
        Timeline { head, between: between.len(), tail }
    }

    /// Writes all of it to a file.
    pub(crate) fn export(&self, file: Option<&Path>, node: u32) -> Result<()> {
        let Some(file) = file else { return Ok(()) };
        let mut trace = ChromeTrace::new();
        trace.add_device(std::process::id(), &format!("node {node}"), self.events.lock().iter());
        std::fs::write(file, trace.to_json()).with_context(|| format!("writing the trace to {}", file.display()))
    }
}
