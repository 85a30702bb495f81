//! What takes turns in an audit: a plan that runs, and its medians.

use crate::bench::{is_decoder, session_with};
use crate::decoder;
use crate::runner::Runner;
use crate::{Config, Result, median};
use lacuna::plan::Forms;
use lacuna::{Model, PhaseKind, StepInfo};
use std::time::{Duration, Instant};

/// One plan that runs: a model as a whole, or a decoder.
pub(super) enum Subject {
    Whole(Box<Runner>),
    Decoder(Box<decoder::Runner>),
}

/// What one turn gives: a median for each phase, and for each step of each phase.
pub(super) struct Turn {
    pub whole: Vec<f64>,
    pub steps: Vec<Vec<f64>>,
}

impl Subject {
    pub fn new(model: &Model, config: &Config, dense: bool, forms: Forms) -> Result<Subject> {
        let mut subject = match is_decoder(model) {
            true => {
                let config = Config {
                    dense,
                    generate: config.generate.min(8),
                    ..config.clone()
                };
                Subject::Decoder(Box::new(decoder::Runner::new(model, &config, forms)?))
            }
            false => Subject::Whole(Box::new(session_with(model, config, dense, forms)?.0)),
        };
        match &mut subject {
            Subject::Whole(r) => drop(r.warm_up(2)?),
            Subject::Decoder(r) => drop(r.once()?),
        }
        Ok(subject)
    }

    const PHASES: [&'static [&'static str]; 2] = [&["run"], &["decode", "prefill"]];

    pub fn phases(&self) -> &'static [&'static str] {
        match self {
            Subject::Whole(_) => Subject::PHASES[0],
            Subject::Decoder(_) => Subject::PHASES[1],
        }
    }

    pub fn steps(&self) -> Vec<Vec<StepInfo>> {
        match self {
            Subject::Whole(r) => vec![r.session.steps().to_vec()],
            Subject::Decoder(r) => [PhaseKind::Step, PhaseKind::Chunk]
                .map(|kind| r.decoder.steps(kind).into_iter().cloned().collect())
                .into(),
        }
    }

    pub fn facts(&self) -> (usize, String) {
        match self {
            Subject::Whole(r) => (r.session.threads(), r.session.isa().to_owned()),
            Subject::Decoder(r) => (r.decoder.threads(), r.decoder.isa().to_owned()),
        }
    }

    /// Runs for `time`: by step, and with `whole` as long without the clock between steps.
    pub fn turn(&mut self, time: Duration, whole: bool) -> Result<Turn> {
        let middle = |times: &[f64]| median(times).unwrap_or(f64::NAN);
        Ok(match self {
            Subject::Whole(r) => {
                r.warm_up(1)?;
                r.forget();
                if whole {
                    r.burst(time)?;
                }
                r.forget_steps();
                r.burst_by_step(time)?;
                Turn {
                    whole: vec![middle(&r.times)],
                    steps: vec![r.step_medians()],
                }
            }
            Subject::Decoder(r) => {
                (r.prefill, r.decode) = (Vec::new(), Vec::new());
                r.steps = Default::default();
                let begin = Instant::now();
                loop {
                    if whole {
                        r.burst(Duration::ZERO)?;
                    }
                    r.by_step()?;
                    if begin.elapsed() >= time {
                        break;
                    }
                }
                Turn {
                    whole: vec![middle(&r.decode), middle(&r.prefill)],
                    steps: [0, 1]
                        .map(|phase| r.steps[phase].iter().map(|t| middle(t)).collect())
                        .into(),
                }
            }
        })
    }
}
