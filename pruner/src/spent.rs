//! Wall time by what it went into.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// Seconds by phase.
#[derive(Debug, Default)]
pub(crate) struct Spent(Mutex<BTreeMap<&'static str, f64>>);

impl Spent {
    /// Does it, and adds its time to a phase.
    pub fn time<T>(&self, phase: &'static str, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.add(phase, started.elapsed().as_secs_f64());
        done
    }

    /// Adds seconds to a phase.
    pub fn add(&self, phase: &'static str, seconds: f64) {
        if let Ok(mut all) = self.0.lock() {
            *all.entry(phase).or_default() += seconds;
        }
    }

    /// Seconds by phase so far.
    pub fn all(&self) -> BTreeMap<&'static str, f64> {
        self.0.lock().map(|all| all.clone()).unwrap_or_default()
    }
}
