//! Recording the events of a software device.

use crate::report::{Moment, Timeline};
use anyhow::{Context, Result};
use efa_direct::Device;
use efa_soft::trace::{ChromeTrace, TraceEvent};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;

/// The maximum number of events that are recorded.
const MAX_EVENTS: usize = 1_000_000;
/// The number of events that a report shows, from the beginning and from the end.
const SHOWN: usize = 9;

/// The recorded events of a device. There are none if it is not a software device.
pub(crate) struct Watch {
    events: Arc<Mutex<Vec<TraceEvent>>>,
}

impl Watch {
    /// Starts recording a device's events.
    pub(crate) fn over(device: &Device) -> Self {
        let events: Arc<Mutex<Vec<TraceEvent>>> = Arc::default();
        if let Some(handle) = device.soft_device() {
            handle.with(&mut |device| {
                let events = events.clone();
                device.subscribe(Box::new(move |event: &TraceEvent| {
                    let mut events = events.lock();
                    if events.len() < MAX_EVENTS {
                        events.push(*event);
                    }
                }));
            });
        }
        Self { events }
    }

    /// Returns the first and the last events.
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

    /// Writes all events to a file, if one is given.
    pub(crate) fn export(&self, file: Option<&Path>, node: u32) -> Result<()> {
        let Some(file) = file else { return Ok(()) };
        let mut trace = ChromeTrace::new();
        trace.add_device(std::process::id(), &format!("node {node}"), self.events.lock().iter());
        std::fs::write(file, trace.to_json()).with_context(|| format!("writing the trace to {}", file.display()))
    }
}
