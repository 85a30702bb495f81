//! Candle modules over our kernels, so that any candle program can use sparse weights.
//!
//! ```
//! use candle_core::{Device, Module, Tensor};
//! use lacuna::Weight;
//!
//! let dense = Tensor::randn(0f32, 1.0, (8, 16), &Device::Cpu)?;
//! let layer = lacuna::nn::Linear::new(Weight::try_from(&dense)?.encode(), None)?;
//! let y = layer.forward(&Tensor::ones((2, 16), candle_core::DType::F32, &Device::Cpu)?)?;
//! assert_eq!(y.dims(), [2, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A module plans once for each input shape and keeps the last few plans. It takes part in candle
//! graphs, but it is for inference: asking for a gradient through it is an error. NaN and infinite
//! inputs are errors too, unless [`SessionOptions::allow_non_finite`] lets them in.

use crate::model::{Dim, Graph, Input, Node, Op, Padding, Weights};
use crate::{Error, Model, Result, Session, SessionOptions, Tensor, TensorView, Weight};
use candle_core::{CpuStorage, CustomOp1, Layout, Module, Shape};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

type Candle = candle_core::Tensor;

/// Plans kept by one module, the last used ones.
const PLANS: usize = 4;

const INPUT: &str = "x";
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";

/// A linear layer: `x [...,I]` times the transpose of a weight `[O,I]`, plus a bias `[O]`.
#[derive(Clone, Debug)]
pub struct Linear {
    kernel: Kernel,
    features: [usize; 2],
}

impl Linear {
    /// A layer that runs on every core with the best kernels of this machine.
    ///
    /// # Errors
    /// When the weight has not two axes, or the bias does not fit it.
    pub fn new(weight: Weight, bias: Option<Weight>) -> Result<Linear> {
        Linear::with_options(weight, bias, SessionOptions::default())
    }

    /// A layer that is planned with `options`.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn with_options(
        weight: Weight,
        bias: Option<Weight>,
        options: SessionOptions,
    ) -> Result<Linear> {
        let [o, i] = *weight.shape() else {
            return Err(refuse(
                WEIGHT,
                format!("shape {:?} is not [O, I]", weight.shape()),
            ));
        };
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        Ok(Linear {
            kernel: Kernel::new("lacuna-linear", op, weight, bias, options)?,
            features: [o, i],
        })
    }

    /// The weight `[O, I]`.
    pub fn weight(&self) -> &Weight {
        &self.kernel.0.weights[WEIGHT]
    }

    /// The bias `[O]`.
    pub fn bias(&self) -> Option<&Weight> {
        self.kernel.0.weights.get(BIAS)
    }
}

impl Module for Linear {
    fn forward(&self, x: &Candle) -> candle_core::Result<Candle> {
        let [o, i] = self.features;
        let rows = match x.dims().split_last() {
            Some((&last, rows)) if last == i => rows,
            _ => candle_core::bail!("lacuna-linear: input {:?} is not [..., {i}]", x.dims()),
        };
        let shape = [rows, &[o]].concat();
        let count: usize = rows.iter().product();
        if count == 0 {
            return Candle::zeros(shape, x.dtype(), x.device());
        }
        self.kernel.forward(&x.reshape((count, i))?)?.reshape(shape)
    }
}

/// The attributes of a [`Conv2d`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Vertical and horizontal stride.
    pub strides: [usize; 2],
    /// Padding of the input.
    pub padding: Padding,
    /// Vertical and horizontal dilation.
    pub dilations: [usize; 2],
    /// Channel groups.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Conv2dConfig {
            strides: [1, 1],
            padding: Padding::NONE,
            dilations: [1, 1],
            groups: 1,
        }
    }
}

/// A 2-D convolution of `x [N,C,H,W]` with a weight `[O,C/groups,kh,kw]`, plus a bias `[O]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    kernel: Kernel,
    config: Conv2dConfig,
}

impl Conv2d {
    /// A layer that runs on every core with the best kernels of this machine.
    ///
    /// # Errors
    /// When the weight has not four axes, or bias or groups do not fit it.
    pub fn new(weight: Weight, bias: Option<Weight>, config: Conv2dConfig) -> Result<Conv2d> {
        Conv2d::with_options(weight, bias, config, SessionOptions::default())
    }

    /// A layer that is planned with `options`.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn with_options(
        weight: Weight,
        bias: Option<Weight>,
        config: Conv2dConfig,
        options: SessionOptions,
    ) -> Result<Conv2d> {
        let [o, _, _, _] = *weight.shape() else {
            return Err(refuse(
                WEIGHT,
                format!("shape {:?} is not [O, C/groups, kh, kw]", weight.shape()),
            ));
        };
        if config.groups == 0 || o % config.groups != 0 {
            return Err(refuse(
                WEIGHT,
                format!("{o} channels in {} groups", config.groups),
            ));
        }
        let op = Op::Conv {
            strides: config.strides,
            padding: config.padding,
            dilations: config.dilations,
            groups: config.groups,
        };
        Ok(Conv2d {
            kernel: Kernel::new("lacuna-conv2d", op, weight, bias, options)?,
            config,
        })
    }

    /// The attributes.
    pub fn config(&self) -> &Conv2dConfig {
        &self.config
    }

    /// The weight `[O, C/groups, kh, kw]`.
    pub fn weight(&self) -> &Weight {
        &self.kernel.0.weights[WEIGHT]
    }

    /// The bias `[O]`.
    pub fn bias(&self) -> Option<&Weight> {
        self.kernel.0.weights.get(BIAS)
    }
}

impl Module for Conv2d {
    fn forward(&self, x: &Candle) -> candle_core::Result<Candle> {
        self.kernel.forward(x)
    }
}

fn refuse(weight: &str, what: String) -> Error {
    Error::Weight {
        weight: weight.to_owned(),
        what,
    }
}

/// One operator as a candle operation. Clones share weights and plans.
#[derive(Clone)]
struct Kernel(Arc<Shared>);

struct Shared {
    name: &'static str,
    op: Op,
    weights: Weights,
    options: SessionOptions,
    plans: Mutex<Plans>,
}

/// The last used plans, the latest at the end. Clones of the model share its packed weights.
#[derive(Default)]
struct Plans {
    model: Option<Model>,
    by_shape: Vec<(Vec<usize>, Arc<Mutex<Session>>)>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("op", &self.0.op)
            .field("weights", &self.0.weights)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    fn new(
        name: &'static str,
        op: Op,
        weight: Weight,
        bias: Option<Weight>,
        options: SessionOptions,
    ) -> Result<Kernel> {
        if !weight.dtype().is_float() {
            return Err(refuse(
                WEIGHT,
                format!("dtype {} is not floating point", weight.dtype()),
            ));
        }
        if let Some(bias) = &bias
            && (bias.shape() != &weight.shape()[..1] || !bias.dtype().is_float())
        {
            return Err(refuse(
                BIAS,
                format!(
                    "{} of shape {:?} beside a weight of shape {:?}",
                    bias.dtype(),
                    bias.shape(),
                    weight.shape()
                ),
            ));
        }
        let mut weights = Weights::from([(WEIGHT.to_owned(), weight)]);
        weights.extend(bias.map(|bias| (BIAS.to_owned(), bias)));
        Ok(Kernel(Arc::new(Shared {
            name,
            op,
            weights,
            options,
            plans: Mutex::default(),
        })))
    }

    fn forward(&self, x: &Candle) -> candle_core::Result<Candle> {
        x.contiguous()?.apply_op1(self.clone())
    }

    /// The plan for inputs of this shape.
    fn session(&self, shape: &[usize]) -> Result<Arc<Mutex<Session>>> {
        let mut plans = self.0.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.by_shape.iter().position(|(s, _)| s == shape) {
            Some(at) => plans.by_shape.remove(at),
            None => {
                let graph = self.graph(shape);
                let model = match &plans.model {
                    Some(model) => model.with_graph(graph)?,
                    None => Model::new(graph, self.0.weights.clone())?,
                };
                let session = Session::new(&model, self.0.options.clone())?;
                plans.model = Some(model);
                // After the new session took over the packed weights, so that they stay.
                if plans.by_shape.len() >= PLANS {
                    plans.by_shape.remove(0);
                }
                (shape.to_vec(), Arc::new(Mutex::new(session)))
            }
        };
        let session = plan.1.clone();
        plans.by_shape.push(plan);
        Ok(session)
    }

    /// A graph of this one operator on inputs of this shape.
    fn graph(&self, shape: &[usize]) -> Graph {
        let names = [INPUT, WEIGHT, BIAS];
        Graph {
            name: self.0.name.to_owned(),
            inputs: vec![Input::f32(
                INPUT.to_owned(),
                shape.iter().map(|&n| Dim::Fixed(n)).collect(),
            )],
            outputs: vec!["y".to_owned()],
            nodes: vec![Node {
                name: self.0.name.to_owned(),
                op: self.0.op.clone(),
                inputs: names[..1 + self.0.weights.len()]
                    .iter()
                    .map(|n| n.to_string())
                    .collect(),
                output: "y".to_owned(),
            }],
        }
    }

    fn run(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        let session = self.session(shape)?;
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outputs = session.run(&[TensorView::f32(shape, values)])?;
        outputs
            .pop()
            .ok_or_else(|| Error::Option("the session has no output".into()))
    }
}

impl CustomOp1 for Kernel {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("{}: input of dtype {:?}, not F32", self.0.name, {
                use candle_core::backend::BackendStorage;
                storage.dtype()
            })
        };
        let values = layout
            .contiguous_offsets()
            .and_then(|(from, to)| values.get(from..to));
        let Some(values) = values else {
            candle_core::bail!("{}: the input is not contiguous", self.0.name)
        };
        let output = self
            .run(layout.dims(), values)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(output.data), output.shape.into()))
    }

    fn bwd(&self, _: &Candle, _: &Candle, _: &Candle) -> candle_core::Result<Option<Candle>> {
        candle_core::bail!(
            "{}: no gradient through a sparse kernel; lacuna::candle::Reference is differentiable",
            self.0.name
        )
    }
}
