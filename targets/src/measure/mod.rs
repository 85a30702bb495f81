//! Measures what this machine reaches: multiply-adds from registers, reads from each level.

mod kernels;

use crate::profile::{Limits, Profile};
use crate::{Error, Result};
use memmap2::MmapMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

impl Profile {
    /// Measures this machine with `threads` threads in about `budget` (and the time to touch a
    /// buffer that no cache holds), and keeps the result in [`limits`](Profile::limits) in place
    /// of an earlier one for as many threads.
    ///
    /// Each limit is the best of at least five windows, so a busy machine is measured too low,
    /// never too high. A cache level whose size the profile does not know is left out.
    ///
    /// # Errors
    /// When `threads` is 0 or more than 4096, or the system gives no memory for the buffers.
    pub fn measure(&mut self, budget: Duration, threads: usize) -> Result<()> {
        let refuse = |what: String| Error::Measure { what };
        if !(1..=4096).contains(&threads) {
            return Err(refuse(format!("with {threads} threads")));
        }
        let caches = self.caches;
        // A quarter of the largest cache still misses the one below it; main memory wants a
        // buffer that a cache holds only a small part of.
        let last = caches.l3.or(caches.l2).unwrap_or(32 << 20);
        let dram = last.saturating_mul(4).clamp(64 << 20, 1 << 30) / threads;
        let l3 = caches
            .l3
            .map(|l3| (l3 / 4).max(caches.l2.unwrap_or(0) * 2).min(l3 / 2) / threads);
        let share = budget / 5;

        let mut buffers = Vec::with_capacity(threads);
        for _ in 0..threads {
            buffers
                .push(Mutex::new(Buffer::new(dram).map_err(|e| {
                    refuse(format!("no memory for {dram} bytes: {e}"))
                })?));
        }
        let read = |bytes: usize| {
            let rate = best_rate(threads, share, |t| {
                let buffer = buffers[t].lock().unwrap_or_else(|e| e.into_inner());
                move || {
                    let data = buffer.slice(bytes);
                    // A few microseconds at least, so that the clock does not count.
                    let passes = (1usize << 20).div_ceil(data.len().max(1));
                    kernels::read(data, passes);
                    (data.len() * passes) as f64
                }
            });
            round(rate * 1e-9)
        };
        let limits = Limits {
            threads,
            fma_gflops: round(best_rate(threads, share, |_| kernels::multiply_add) * 1e-9),
            l1_gbs: caches.l1d.map(|size| read(size / 2)),
            l2_gbs: caches.l2.map(|size| read(size / 2)),
            l3_gbs: l3.map(read),
            dram_gbs: read(dram),
        };
        self.limits.retain(|l| l.threads != threads);
        self.limits.push(limits);
        self.limits.sort_by_key(|l| l.threads);
        Ok(())
    }
}

/// One decimal is what such a measurement carries; a rate that small stays above 0.
fn round(rate: f64) -> f64 {
    ((rate * 10.0).round() / 10.0).max(0.01)
}

/// Anonymous memory, on 2 MB pages where the system grants them.
struct Buffer(MmapMut);

impl Buffer {
    fn new(bytes: usize) -> std::io::Result<Buffer> {
        let mut map = MmapMut::map_anon(bytes.max(kernels::CHUNK))?;
        // Only a wish: without it the pages are small and the figure is theirs.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        map.fill(1);
        Ok(Buffer(map))
    }

    /// The first `bytes`, in whole chunks, at least one.
    fn slice(&self, bytes: usize) -> &[u8] {
        let bytes = bytes.min(self.0.len());
        let whole = (bytes - bytes % kernels::CHUNK).max(kernels::CHUNK);
        &self.0[..whole]
    }
}

/// The best rate, in units a second, that `threads` workers reach together over a window; a
/// worker does a piece of work and says how many units it was.
fn best_rate<W>(threads: usize, budget: Duration, worker: impl Fn(usize) -> W + Sync) -> f64
where
    W: FnMut() -> f64,
{
    // Short windows fall between the interruptions of a busy machine.
    let window = (budget / 8).clamp(Duration::from_millis(1), Duration::from_millis(3));
    let barrier = Barrier::new(threads);
    let stop = AtomicBool::new(false);
    let total = Mutex::new((0.0, 0.0));
    let lock = || total.lock().unwrap_or_else(|e| e.into_inner());
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (barrier, stop, worker) = (&barrier, &stop, &worker);
            scope.spawn(move || {
                let mut work = worker(t);
                work();
                let begin = Instant::now();
                for round in 1.. {
                    barrier.wait();
                    let (start, mut units) = (Instant::now(), 0.0);
                    while start.elapsed() < window {
                        units += work();
                    }
                    lock().0 += units / start.elapsed().as_secs_f64();
                    if barrier.wait().is_leader() {
                        let mut total = lock();
                        *total = (0.0, f64::max(total.0, total.1));
                        let done = round >= 5 && begin.elapsed() >= budget;
                        stop.store(done, Ordering::Relaxed);
                    }
                    barrier.wait();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
    });
    lock().1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_counts_every_worker() {
        // Workers that wait: the rate is theirs, whatever the machine does.
        let work = |_| {
            || {
                std::thread::sleep(Duration::from_millis(2));
                1.0
            }
        };
        let one = best_rate(1, Duration::from_millis(40), work);
        let four = best_rate(4, Duration::from_millis(40), work);
        assert!((100.0..=500.0).contains(&one), "{one}");
        assert!(four > 2.0 * one && four <= 2000.0, "{four} against {one}");
    }

    #[test]
    fn measuring_fills_limits_in_the_order_of_the_hierarchy() {
        let mut here = Profile::detect();
        here.measure(Duration::from_millis(30), 1).unwrap();
        here.measure(Duration::from_millis(30), 1).unwrap();
        assert_eq!(here.limits.len(), 1, "measured again, not added");
        here.validate().unwrap();
        let limits = here.limits[0];
        assert_eq!(limits.l1_gbs.is_some(), here.caches.l1d.is_some());
    }

    #[test]
    fn no_threads_are_refused() {
        let mut here = Profile::detect();
        let error = here.measure(Duration::ZERO, 0).unwrap_err();
        assert!(error.to_string().contains("0 threads"), "{error}");
    }
}
