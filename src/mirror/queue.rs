//! A replica's queue: first in, first out, with neighbours put together, and writes to several places taken at once.
//!
//! The queue touches no device: its worker does (`worker`).
//!
//! A write that no caller waits for yet waits for others, as requests do behind a plug of the kernel's block layer
//! (include/linux/blkdev.h, `struct blk_plug`). So what was written together goes to the device in one transfer, and
//! one wake-up of the worker serves many small writes. The plug opens for a flush, and for a caller that waits for a
//! write ([`Queue::unplug`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::device::AlignedBuf;

/// Most bytes that are taken at once.
const GATHER_BYTES_MAX: usize = 4 << 20;

/// Bytes from which on writes do not wait for others any more.
const PLUG_BYTES_MAX: usize = 512 << 10;

/// Most pieces that are taken at once (`UIO_MAXIOV` is 1024, readv(2)).
const GATHER_PIECES_MAX: usize = 512;

/// Most places that are written at once.
const PLACES_MAX: usize = 16;

/// What a replica's thread does.
pub(super) enum Job {
    /// Write `data` at a byte offset; `run` is the first block when it is a run of the data area.
    Write { offset: u64, data: Arc<AlignedBuf>, run: Option<u64> },
    /// Flush, then set the replica's bit.
    Flush(Arc<Ticket>),
    /// Make `data` durable at both byte offsets, then set the replica's bit. What else was written need not be durable.
    Publish { offsets: [u64; 2], data: Arc<AlignedBuf>, ticket: Arc<Ticket> },
    /// Make `data` durable at a byte offset outside the data area, then set the replica's bit.
    Label { offset: u64, data: Arc<AlignedBuf>, ticket: Arc<Ticket> },
    /// Write a block anew at a byte offset, then set the replica's bit. A failure takes the bit from those asked, and
    /// fences nobody.
    Repair { offset: u64, data: Arc<AlignedBuf>, ticket: Arc<Ticket> },
    /// End the thread.
    End,
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Flush(_) | Self::Publish { .. } | Self::Label { .. } | Self::Repair { .. } | Self::End => 0,
        }
    }
}

/// A flush that replicas were asked for, and which of them have done it; bit `i` is replica `i`.
#[derive(Default)]
pub(super) struct Ticket {
    /// The replicas that were asked and were not fenced since. A fence clears the bit: the replica may be back, with
    /// another queue, before the waiter looks.
    pub asked: AtomicU64,
    /// The replicas that have flushed.
    pub done: AtomicU64,
    /// The flush covers what was submitted in earlier rounds than this ([`super::dirty`]). None for a job that makes
    /// only itself durable.
    pub round: Option<u64>,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    /// Bytes that the jobs write.
    bytes: usize,
    /// How many jobs, from the first on, wait for no others.
    due: usize,
    /// Runs that the thread is writing at this moment.
    current: Vec<u64>,
    /// The thread has a job, from the moment at which the job leaves the queue.
    taken: bool,
    /// The thread sleeps, and no caller has undertaken to wake it.
    idle: bool,
}

pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    began: Instant,
    /// When the thread took the job that it carries out: nanoseconds since `began`, at least 1. 0 when there is none.
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

    /// For how long the thread has carried out its present job; zero when there is none.
    pub fn busy_for(&self) -> Duration {
        match self.busy.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.began.elapsed().saturating_sub(Duration::from_nanos(since)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Adds a job. Returns whether the thread sleeps and has something to do. Then the caller must call
    /// [`Queue::wake`], once it has released the locks that the thread will want.
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

    /// Lets nothing of what is queued wait any longer. Returns as [`Queue::push`].
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

    /// Waits for work: one flush, or as many writes as can be carried out in any order. Returns the jobs with the runs
    /// that they write.
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
                        Job::Flush(_) | Job::Publish { .. } | Job::Label { .. } | Job::Repair { .. } | Job::End => None,
                    })
                    .collect();
                inner.current.clone_from(&runs);
                return (taken, runs);
            }
            inner.idle = true;
            self.filled.wait(&mut inner);
            inner.idle = false;
        }
    }

    /// To be called when the thread has finished `runs`. Returns those that a fence has not accounted for already.
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

    /// Whether nothing is queued, and the thread has no job that it might still carry out.
    pub fn is_at_rest(&self) -> bool {
        let inner = self.lock();
        inner.jobs.is_empty() && !inner.taken
    }

    /// Drops everything queued, but for the end of the thread. Returns the runs that were queued or are being written.
    pub fn drop_all(&self) -> Vec<u64> {
        let mut inner = self.lock();
        let mut runs = std::mem::take(&mut inner.current);
        let mut ends = 0;
        for job in inner.jobs.drain(..) {
            match job {
                Job::Write { run, .. } => runs.extend(run),
                Job::Flush(_) | Job::Publish { .. } | Job::Label { .. } | Job::Repair { .. } => {}
                Job::End => ends += 1,
            }
        }
        inner.jobs.extend((0..ends).map(|_| Job::End));
        (inner.bytes, inner.due) = (0, inner.jobs.len());
        runs
    }
}

/// Takes the writes behind `first` along, as long as they touch other bytes. Writes that follow each other on the
/// device stand next to each other, as they were queued.
fn gather(jobs: &mut VecDeque<Job>, first: Job) -> VecDeque<Job> {
    let Job::Write { offset, data, .. } = &first else { return VecDeque::from([first]) };
    let mut bytes = data.len();
    let mut places: Vec<Range<u64>> = std::iter::once(*offset..*offset + data.len() as u64).collect();
    let mut taken = VecDeque::from([first]);
    while let Some(Job::Write { offset, data, .. }) = jobs.front() {
        let (start, end) = (*offset, *offset + data.len() as u64);
        bytes += data.len();
        let overlaps = places.iter().any(|place| place.start < end && start < place.end);
        if overlaps || bytes > GATHER_BYTES_MAX || taken.len() >= GATHER_PIECES_MAX {
            break;
        }
        let count = places.len();
        match places.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ if count < PLACES_MAX => places.push(start..end),
            _ => break,
        }
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
        let ticket = Arc::new(Ticket { asked: AtomicU64::new(1), done: AtomicU64::new(0), round: Some(1) });
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

    #[test]
    fn writes_to_other_places_are_taken_at_once_and_the_same_place_waits() {
        let queue = Queue::new();
        let take = |offsets: &[u64]| {
            for offset in offsets {
                let _ = queue.push(write(*offset, 4096));
            }
            let _ = queue.unplug();
            let mut taken = Vec::new();
            while queue.len() > 0 {
                taken.push(queue.take().1);
            }
            taken
        };
        assert_eq!(take(&[0, 4096, 1 << 20, 8192]), [[0, 4096, 1 << 20, 8192]]);
        // A place that is written twice keeps the order.
        assert_eq!(take(&[0, 1 << 20, 0, 8192]), [[0, 1 << 20], [0, 8192]]);
        // Also when it is reached by what grows towards it.
        assert_eq!(take(&[8192, 0, 4096, 8192]), [vec![8192, 0, 4096], vec![8192]]);
        let apart: Vec<u64> = (0..PLACES_MAX as u64 + 1).map(|i| i << 20).collect();
        assert_eq!(take(&apart), [&apart[..PLACES_MAX], &apart[PLACES_MAX..]]);
    }
}
