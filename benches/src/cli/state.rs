//! The verb `state`.

use super::args::CoolTo;
use lacuna_bench::SCHEMA;
use lacuna_targets::State;
use serde_json::json;
use std::time::{Duration, Instant};

/// How often a temperature is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// One JSON object on one line: the machine, once it is cool enough or the time for that is over.
pub fn text(cool: &CoolTo) -> String {
    if let Some((celsius, seconds)) = cool.cool_to.zip(cool.within) {
        let (begin, within) = (Instant::now(), Duration::from_secs_f64(seconds));
        while State::now().celsius.is_some_and(|now| now > celsius) && begin.elapsed() < within {
            std::thread::sleep(EVERY.min(within));
        }
    }
    format!("{}\n", json!({"schema": SCHEMA, "state": State::now()}))
}
