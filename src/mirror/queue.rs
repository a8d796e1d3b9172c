//! A replica's queue: first in, first out, neighbours taken together.
//!
//! A write that nobody waits for yet waits for others, as requests do behind a plug of the kernel's block layer
//! (include/linux/blkdev.h, `struct blk_plug`): what was written together goes to the device in one transfer, and one wake-up
//! of the thread serves many small writes. The plug opens for a flush, and for whoever waits for a write ([`Queue::unplug`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::device::AlignedBuf;

/// Most bytes that one transfer gathers.
const GATHER_BYTES_MAX: usize = 4 << 20;

/// Bytes from which on writes do not wait for others any more.
const PLUG_BYTES_MAX: usize = 512 << 10;

/// Most pieces that one transfer gathers (`UIO_MAXIOV` is 1024, readv(2)).
const GATHER_PIECES_MAX: usize = 512;

/// What a replica's thread does.
pub(super) enum Job {
    /// Write `data` at a byte offset; `run` is the first block when it is a run of the data area.
    Write { offset: u64, data: Arc<AlignedBuf>, run: Option<u64> },
    /// Flush, then set the replica's bit.
    Flush(Arc<Ticket>),
    /// End the thread.
    End,
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Flush(_) | Self::End => 0,
        }
    }
}

/// Who of the replicas that a flush was asked of has done it; bit `i` is replica `i`.
pub(super) struct Ticket {
    /// Those that were asked.
    pub asked: u64,
    /// Those that have flushed.
    pub done: AtomicU64,
    /// What was submitted in earlier rounds is covered by it ([`super::written`]).
    pub round: u64,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    /// Bytes that the jobs write.
    bytes: usize,
    /// So many jobs, the first ones, wait for no others.
    due: usize,
    /// Runs that the thread is writing at this moment.
    current: Vec<u64>,
    /// The thread has a job, from the moment it leaves the queue.
    taken: bool,
    /// The thread sleeps, and nobody has undertaken to wake it.
    idle: bool,
}

pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    began: Instant,
    /// When the thread took the job that it is at: nanoseconds since `began`, at least 1; 0 when it is at none.
    busy: AtomicU64,
}

impl Queue {
    pub fn new() -> Self {
        Self { inner: Mutex::default(), filled: Condvar::new(), began: Instant::now(), busy: AtomicU64::new(0) }
    }

    /// The thread begins or ends a job.
    pub fn set_busy(&self, busy: bool) {
        let since = if busy { u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1) } else { 0 };
        self.busy.store(since, Ordering::Relaxed);
    }

    /// For how long the thread has been at one job; zero when it is at none.
    pub fn busy_for(&self) -> Duration {
        match self.busy.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.began.elapsed().saturating_sub(Duration::from_nanos(since)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job. Returns whether the thread sleeps and has something to do: then the caller must call [`Queue::wake`], once
    /// it has let go of what the thread will want.
    #[must_use]
    pub fn push(&self, job: Job) -> bool {
        let mut inner = self.lock();
        let waits = matches!(job, Job::Write { .. });
        inner.bytes += job.bytes();
        inner.jobs.push_back(job);
        if !waits || inner.bytes >= PLUG_BYTES_MAX || inner.jobs.len() >= GATHER_PIECES_MAX {
            inner.due = inner.jobs.len();
        }
        inner.due > 0 && std::mem::take(&mut inner.idle)
    }

    /// Nothing of what is queued waits any longer. Returns as [`Queue::push`].
    #[must_use]
    pub fn unplug(&self) -> bool {
        let mut inner = self.lock();
        inner.due = inner.jobs.len();
        inner.due > 0 && std::mem::take(&mut inner.idle)
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        self.filled.notify_one();
    }

    /// Waits for work: one flush, or as many writes as follow each other on the device. Returns it with the runs
    /// it covers.
    pub fn take(&self) -> (VecDeque<Job>, Vec<u64>) {
        let mut inner = self.lock();
        inner.taken = false;
        loop {
            if inner.due > 0
                && let Some(job) = inner.jobs.pop_front()
            {
                inner.taken = true;
                let taken = gather(&mut inner.jobs, job);
                inner.due = inner.due.saturating_sub(taken.len());
                inner.bytes -= taken.iter().map(Job::bytes).sum::<usize>();
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
            inner.idle = true;
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle = false;
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

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Whether nothing waits and the thread has nothing in hand that it might still carry out.
    pub fn is_at_rest(&self) -> bool {
        let inner = self.lock();
        inner.jobs.is_empty() && !inner.taken
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
        (inner.bytes, inner.due) = (0, inner.jobs.len());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, len: usize) -> Job {
        Job::Write { offset, data: Arc::new(AlignedBuf::zeroed(len)), run: Some(offset) }
    }

    fn asleep(queue: &Queue) {
        queue.lock().idle = true;
    }

    #[test]
    fn small_writes_wait_for_each_other_and_for_nothing_else() {
        let queue = Queue::new();
        asleep(&queue);
        for i in 0..PLUG_BYTES_MAX as u64 / 4096 - 1 {
            assert!(!queue.push(write(i * 4096, 4096)));
        }
        // Enough bytes: the thread is woken, and takes all in one transfer.
        assert!(queue.push(write(PLUG_BYTES_MAX as u64 - 4096, 4096)));
        assert_eq!(queue.take().1.len(), PLUG_BYTES_MAX / 4096);
        // A flush takes along what is before it.
        asleep(&queue);
        assert!(!queue.push(write(1 << 30, 4096)));
        let ticket = Arc::new(Ticket { asked: 1, done: AtomicU64::new(0), round: 1 });
        assert!(queue.push(Job::Flush(ticket)));
        assert!(matches!(queue.take().0.front(), Some(Job::Write { .. })));
        assert!(matches!(queue.take().0.front(), Some(Job::Flush(_))));
        // Whoever waits opens the plug; what comes after that waits again.
        asleep(&queue);
        assert!(!queue.unplug());
        assert!(!queue.push(write(0, 4096)));
        assert!(queue.unplug());
        assert_eq!(queue.take().1, [0]);
        asleep(&queue);
        assert!(!queue.push(write(8192, 4096)));
        // What is dropped is not waited for.
        assert_eq!(queue.drop_all(), [0, 8192]);
        assert!(!queue.unplug());
        assert!(queue.push(Job::End));
    }
}
