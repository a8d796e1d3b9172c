//! A replica's queue: first in, first out, neighbours taken together.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::device::AlignedBuf;

/// Most bytes that one transfer gathers.
const GATHER_BYTES_MAX: usize = 4 << 20;

/// Most pieces that one transfer gathers (`UIO_MAXIOV` is 1024, readv(2)).
const GATHER_PIECES_MAX: usize = 512;

/// What a replica's thread does.
pub(super) enum Job {
    /// Write `data` at a byte offset; `run` is the first block when it is a run of the data area.
    Write { offset: u64, data: Arc<AlignedBuf>, run: Option<u64> },
    /// Flush, then set the replica's bit.
    Flush(Arc<AtomicU64>),
    /// End the thread.
    End,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    /// Runs that the thread is writing at this moment.
    current: Vec<u64>,
}

#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    /// Failed writes and flushes.
    pub errors: AtomicU64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.filled.notify_one();
    }

    /// Waits for work: one flush, or as many writes as follow each other on the device. Returns it with the runs
    /// it covers.
    pub fn take(&self) -> (VecDeque<Job>, Vec<u64>) {
        let mut inner = self.lock();
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                let taken = gather(&mut inner.jobs, job);
                let runs: Vec<u64> = taken
                    .iter()
                    .filter_map(|job| match job {
                        Job::Write { run, .. } => *run,
                        Job::Flush(_) | Job::End => None,
                    })
                    .collect();
                inner.current.clone_from(&runs);
                return (taken, runs);
            }
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread has finished `runs`: returns those that nobody has accounted for yet.
    pub fn done(&self, runs: Vec<u64>) -> Vec<u64> {
        let mut inner = self.lock();
        if inner.current.is_empty() {
            Vec::new()
        } else {
            inner.current.clear();
            runs
        }
    }

    /// Drops everything queued; returns the runs of it, those being written included.
    pub fn drop_all(&self) -> Vec<u64> {
        let mut inner = self.lock();
        let mut runs = std::mem::take(&mut inner.current);
        let mut ends = 0;
        for job in inner.jobs.drain(..) {
            match job {
                Job::Write { run, .. } => runs.extend(run),
                Job::Flush(_) => {}
                Job::End => ends += 1,
            }
        }
        inner.jobs.extend((0..ends).map(|_| Job::End));
        runs
    }
}

fn gather(jobs: &mut VecDeque<Job>, first: Job) -> VecDeque<Job> {
    let mut end = match &first {
        Job::Write { offset, data, .. } => offset + data.len() as u64,
        Job::Flush(_) | Job::End => return VecDeque::from([first]),
    };
    let mut taken = VecDeque::from([first]);
    let mut bytes = 0;
    while let Some(Job::Write { offset, data, .. }) = jobs.front() {
        bytes += data.len();
        if *offset != end || bytes > GATHER_BYTES_MAX || taken.len() >= GATHER_PIECES_MAX {
            break;
        }
        end += data.len() as u64;
        taken.extend(jobs.pop_front());
    }
    taken
}
