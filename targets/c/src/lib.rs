//! The C API: thin, and with nothing behind it but the public API of `lacuna`.
//!
//! Every function that can fail is a closure inside [`status::guard`], which catches panics and keeps the
//! message. Handles are looked up in a table ([`handle`]), never dereferenced.

#![allow(non_camel_case_types)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod abi;
mod decoder;
mod handle;
mod memory;
mod model;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod text;
