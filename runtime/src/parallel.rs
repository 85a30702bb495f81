//! Work in parallel, on threads that were asked for and no others: rayon's global pool is never started.

use crate::{Error, Result};
use rayon::prelude::*;

/// Bytes of a thread's stack: where none are named, an environment variable would be asked.
pub const STACK: usize = 2 << 20;

/// `f` with so many threads for what it does in parallel. With one, the calling thread does it all.
pub fn on<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> Result<T> {
    if threads <= 1 && rayon::current_thread_index().is_none() {
        return Ok(f());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .stack_size(STACK)
        .build()
        .map_err(|e| Error::Option(format!("cannot start {threads} threads: {e}")))?;
    Ok(pool.install(f))
}

/// `f` of every item, in their order: shared by the threads of the pool that the caller runs in; outside
/// of one the calling thread does all of it.
pub fn map<I, T, F>(items: I, f: F) -> Vec<T>
where
    I: IntoIterator + IntoParallelIterator<Item = <I as IntoIterator>::Item>,
    T: Send,
    F: Fn(<I as IntoIterator>::Item) -> T + Sync + Send,
{
    match rayon::current_thread_index() {
        Some(_) => items.into_par_iter().map(f).collect(),
        None => items.into_iter().map(f).collect(),
    }
}

/// `f` of every run of `size` elements of `data` and its index; see [`map`].
pub fn chunks_mut<T: Send>(data: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    match rayon::current_thread_index() {
        Some(_) => data
            .par_chunks_mut(size)
            .enumerate()
            .for_each(|(i, c)| f(i, c)),
        None => data.chunks_mut(size).enumerate().for_each(|(i, c)| f(i, c)),
    }
}
