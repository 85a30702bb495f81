//! Runs a session over and over and keeps the times.

use crate::layer::Layer;
use crate::{Result, input, median};
use lacuna::{DType, Session, Tensor, TensorView, TensorViewMut};
use std::time::{Duration, Instant};

/// A burst has at least this many timed runs.
const FEWEST_RUNS: usize = 2;

/// A session with its inputs, its outputs and the times of its runs.
pub struct Runner {
    /// The session.
    pub session: Session,
    inputs: Vec<Given>,
    outputs: Vec<Tensor>,
    /// Whole runs, in milliseconds.
    pub times: Vec<f64>,
    /// The median of each burst of whole runs, in milliseconds.
    pub bursts: Vec<f64>,
    /// For every step its times, in milliseconds.
    step_times: Vec<Vec<f64>>,
}

/// Data of one input.
enum Given {
    Numbers(Tensor),
    Integers(Vec<usize>, Vec<i64>),
}

impl Given {
    fn new(session: &Session, input: usize) -> Given {
        let shape = session.inputs()[input].1.clone();
        let (len, seed) = (shape.iter().product(), input as u64 + 3);
        match (session.input_dtypes()[input], session.index_limit(input)) {
            (DType::I64, Some(limit)) => Given::Integers(shape, input::indices(len, limit, seed)),
            (DType::I64, None) => Given::Integers(shape, vec![1; len]),
            _ => Given::Numbers(Tensor {
                shape,
                data: input::normal(len, seed),
            }),
        }
    }

    fn view(&self) -> TensorView<'_> {
        match self {
            Given::Numbers(tensor) => tensor.view(),
            Given::Integers(shape, data) => TensorView::i64(shape, data),
        }
    }
}

impl Runner {
    /// A runner whose inputs are the same on every machine: standard normal numbers, indices from the
    /// whole range, masks of ones.
    pub fn new(session: Session) -> Runner {
        let inputs = (0..session.inputs().len()).map(|i| Given::new(&session, i));
        let inputs = inputs.collect();
        let outputs = session.outputs().iter().map(|o| Tensor::zeros(&o.1));
        Runner {
            outputs: outputs.collect(),
            step_times: vec![Vec::new(); session.steps().len()],
            inputs,
            times: Vec::new(),
            bursts: Vec::new(),
            session,
        }
    }

    /// Runs until `enough` of the runs' times says so, and returns these times.
    fn repeat(
        &mut self,
        mut enough: impl FnMut(&[Duration]) -> bool,
        mut run: impl FnMut(&mut Session, &[TensorView<'_>], &mut [TensorViewMut<'_>]) -> Result<()>,
    ) -> Result<Vec<Duration>> {
        let inputs: Vec<TensorView<'_>> = self.inputs.iter().map(Given::view).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = self
            .outputs
            .iter_mut()
            .map(|t| TensorViewMut::f32(&t.shape, &mut t.data))
            .collect();
        let mut times = Vec::new();
        while !enough(&times) {
            let start = Instant::now();
            run(&mut self.session, &inputs, &mut outputs)?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    /// `count` runs whose times are returned and not kept.
    pub fn warm_up(&mut self, count: usize) -> Result<Vec<Duration>> {
        self.repeat(
            |times| times.len() >= count,
            |session, inputs, outputs| Ok(session.run_into(inputs, outputs)?),
        )
    }

    /// Drops the times of whole runs.
    pub fn forget(&mut self) {
        self.times.clear();
        self.bursts.clear();
    }

    /// Drops the times of steps.
    pub fn forget_steps(&mut self) {
        self.step_times.iter_mut().for_each(Vec::clear);
    }

    /// The median of each step's times, in milliseconds.
    pub fn step_medians(&self) -> Vec<f64> {
        let times = self.step_times.iter();
        times.map(|t| median(t).unwrap_or(f64::NAN)).collect()
    }

    /// Whole runs for at least `time`.
    pub fn burst(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        let times = self.repeat(
            |times| times.len() >= FEWEST_RUNS && begin.elapsed() >= time,
            |session, inputs, outputs| Ok(session.run_into(inputs, outputs)?),
        )?;
        let times: Vec<f64> = times.iter().map(|t| ms(*t)).collect();
        self.bursts.extend(median(&times));
        self.times.extend(times);
        Ok(())
    }

    /// Runs with a clock reading between steps, for at least `time`.
    pub fn burst_by_step(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        let mut kept = std::mem::take(&mut self.step_times);
        let mut steps = vec![Duration::ZERO; kept.len()];
        self.repeat(
            |times| times.len() >= FEWEST_RUNS && begin.elapsed() >= time,
            |session, inputs, outputs| {
                session.run_timed(inputs, outputs, &mut steps)?;
                for (kept, step) in kept.iter_mut().zip(&steps) {
                    kept.push(ms(*step));
                }
                Ok(())
            },
        )?;
        self.step_times = kept;
        Ok(())
    }

    /// The steps with the medians of their times.
    pub fn layers(&self) -> Vec<Layer> {
        let steps = self.session.steps().iter().zip(&self.step_times);
        let mut layers: Vec<Layer> = steps
            .map(|(step, times)| Layer::of(step, median(times).unwrap_or(0.0)))
            .collect();
        crate::layer::share_out(&mut layers);
        layers
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
