//! Lacuna runs pruned models: a sparse safetensors file is opened as it is, planned for this
//! device, and executed with sparse SIMD kernels where they win and dense ones where they do not.
//!
//! ```no_run
//! use lacuna::{Model, Session, SessionOptions, TensorView};
//!
//! let model = Model::open("model.safetensors")?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//! let image = vec![0.0; 28 * 28];
//! let outputs = session.run(&[TensorView::f32(&[1, 1, 28, 28], &image)])?;
//! println!("{:?}", outputs[0].data);
//! # Ok::<(), lacuna::Error>(())
//! ```
//!
//! Floors, from the ground up, each importing only those below it: [`model`] (pure data and the
//! file), `kernels` (compute), [`plan`] (model and device to steps), [`session`] (what an app sees).

#[cfg(feature = "candle")]
pub mod candle;
mod device_name;
mod error;
mod kernels;
pub mod model;
mod parallel;
pub mod plan;
pub mod session;
mod tensor;
#[cfg(feature = "tokenizer")]
mod tokenizer;

#[cfg(feature = "candle")]
pub use candle::nn;
pub use device_name::DeviceName;
pub use error::{Error, Result};
pub use kernels::cpu::product::Product;
pub use kernels::cpu::{ISA_VARIABLE, Isa};
#[cfg(feature = "cuda")]
pub mod cuda {
    //! Models on NVIDIA GPUs: `docs/cuda.md`.
    pub use crate::kernels::cuda::*;
    pub use crate::plan::device::{
        DeviceCandidate, DeviceChoice, DeviceForm, DeviceOptions, DeviceStepInfo,
    };
    pub use crate::session::device::{
        Ceilings, DeviceDecoder, DeviceDecoderOptions, DeviceMemory, DeviceSession, StepTime,
    };
}
pub use model::{Model, Weight};
pub use plan::{Memory, Residency, StepInfo};
pub use session::{
    Decoder, DecoderOptions, GenerateOptions, Generated, PhaseKind, Sampler, Sampling, Session,
    SessionOptions, Stop, Stream,
};
pub use tensor::{DType, Elements, Tensor, TensorView, TensorViewMut};
#[cfg(feature = "tokenizer")]
pub use tokenizer::{Message, TextStream, Tokenizer};
