//! A team of threads that runs one function together, with a barrier that costs well under a
//! microsecond while everyone is awake.

use crate::parallel;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// How long a thread spins before it yields, then sleeps.
const SPINS: u32 = 4_000;
const YIELDS: u32 = 200;

/// A fixed number of threads, the caller included.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    size: usize,
    /// Counts the jobs handed out; a change wakes the workers.
    epoch: AtomicU32,
    job: Mutex<Option<Job>>,
    asleep: Mutex<()>,
    wake: Condvar,
    finished: AtomicUsize,
    stop: AtomicBool,
    barrier: Barrier,
}

/// The job's function, borrowed from the caller of [`Team::run`], who waits for every worker.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(&Member<'_>) + Sync));

// SAFETY: the pointee is `Sync`, and `Team::run` keeps it alive until every worker is done.
unsafe impl Send for Job {}

/// One thread's place in a team.
pub struct Member<'a> {
    /// This thread, from 0; the caller is 0.
    pub index: usize,
    /// Threads in the team.
    pub size: usize,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// Waits until every member of the team has come here.
    pub fn wait(&self) {
        if self.size > 1 {
            self.barrier.wait(self.size);
        }
    }

    /// This member's part of `0..n`, in contiguous runs that differ by one at most.
    pub fn share(&self, n: usize) -> std::ops::Range<usize> {
        let at = |i: usize| i * n / self.size;
        at(self.index)..at(self.index + 1)
    }
}

#[derive(Default)]
struct Barrier {
    arrived: AtomicUsize,
    generation: AtomicU32,
}

impl Barrier {
    fn wait(&self, size: usize) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == size {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.fetch_add(1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.load(Ordering::Acquire) == generation {
            relax(&mut spins);
        }
    }
}

fn relax(spins: &mut u32) {
    *spins = spins.saturating_add(1);
    if *spins < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

impl Team {
    /// A team of `size` threads, at least one. Fails when the system gives no thread.
    pub fn new(size: usize) -> std::io::Result<Team> {
        let size = size.max(1);
        let shared = Arc::new(Shared {
            size,
            epoch: AtomicU32::new(0),
            job: Mutex::new(None),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            barrier: Barrier::default(),
        });
        let mut team = Team {
            shared,
            workers: Vec::new(),
        };
        for index in 1..size {
            let shared = team.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("lacuna-{index}"))
                .stack_size(parallel::STACK)
                .spawn(move || work(&shared, index))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads in the team.
    pub fn size(&self) -> usize {
        self.shared.size
    }

    /// Runs `f` once on every thread and returns when all are done.
    ///
    /// `f` must not panic: a member that never reaches a barrier leaves the others waiting.
    pub fn run(&mut self, f: &(dyn Fn(&Member<'_>) + Sync)) {
        let shared = &*self.shared;
        let member = Member {
            index: 0,
            size: shared.size,
            barrier: &shared.barrier,
        };
        if shared.size == 1 {
            return f(&member);
        }
        // SAFETY: only the lifetime changes; workers drop their copy before `finished` counts them,
        // and this function returns only after it counted all of them.
        let job = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(&Member<'_>) + Sync),
                *const (dyn Fn(&Member<'_>) + Sync + 'static),
            >(f)
        };
        *lock(&shared.job) = Some(Job(job));
        shared.finished.store(1, Ordering::Relaxed);
        {
            let _asleep = lock(&shared.asleep);
            shared.epoch.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        f(&member);
        let mut spins = 0;
        while shared.finished.load(Ordering::Acquire) != shared.size {
            relax(&mut spins);
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen {
            if spins < SPINS + YIELDS {
                relax(&mut spins);
                continue;
            }
            let mut guard = lock(&shared.asleep);
            while shared.epoch.load(Ordering::Acquire) == seen {
                guard = shared.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
            }
        }
        seen = shared.epoch.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let job = *lock(&shared.job);
        if let Some(Job(f)) = job {
            // SAFETY: the caller of `run` keeps the function alive until `finished` is complete.
            unsafe {
                (*f)(&Member {
                    index,
                    size: shared.size,
                    barrier: &shared.barrier,
                })
            };
        }
        shared.finished.fetch_add(1, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Drop for Team {
    fn drop(&mut self) {
        {
            let _asleep = lock(&self.shared.asleep);
            self.shared.stop.store(true, Ordering::Release);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_runs_and_barriers_order_the_phases() {
        let mut team = Team::new(3).unwrap();
        for _ in 0..200 {
            let first = AtomicUsize::new(0);
            let sum = AtomicUsize::new(0);
            team.run(&|m| {
                first.fetch_add(m.share(10).len(), Ordering::SeqCst);
                m.wait();
                sum.fetch_add(first.load(Ordering::SeqCst), Ordering::SeqCst);
            });
            assert_eq!(sum.load(Ordering::SeqCst), 30);
        }
    }
}
