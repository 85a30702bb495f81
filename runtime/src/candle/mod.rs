//! The bridge to candle: conversions to and from its tensors, modules that run our kernels inside
//! any candle program ([`nn`]), and an executor of a [`Graph`](crate::model::Graph) in candle ops
//! ([`Reference`]), used to calibrate, to train and to test.

#![deny(unsafe_code)]

mod convert;
mod language;
pub mod nn;
mod ops;
mod reference;
mod window;

pub use convert::with_view;
pub use reference::{Observer, Reference, Statistics};

impl From<candle_core::Error> for crate::Error {
    fn from(error: candle_core::Error) -> Self {
        crate::Error::Candle(Box::new(error))
    }
}
