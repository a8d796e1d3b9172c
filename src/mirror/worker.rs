//! A replica's worker: its device, its queue, and the thread that carries the queue's jobs out.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::queue::{Job, Queue, Ticket};
use super::{Shared, State, fence};
use crate::device::Write;
use crate::policy::{ApprovedDevice, WriteError};
use crate::problem::{Code, Problem};

/// How often a wait looks whether a thread has ended.
const POLL: Duration = Duration::from_millis(1);

pub(super) struct Worker {
    pub device: Arc<ApprovedDevice>,
    pub queue: Queue,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts the thread of replica `index`.
    pub fn start(index: usize, device: Arc<ApprovedDevice>, shared: &Arc<Shared>) -> std::io::Result<Arc<Self>> {
        let worker = Arc::new(Self { device, queue: Queue::new(), thread: Mutex::default() });
        let thread = WorkerThread { index, worker: worker.clone(), shared: shared.clone() };
        let thread = std::thread::Builder::new().name(format!("replica-{index}")).spawn(move || thread.run())?;
        *worker.thread.lock() = Some(thread);
        Ok(worker)
    }

    /// Has the thread end once its queue is empty.
    pub fn end(&self) {
        if self.queue.push(Job::End) {
            self.queue.wake();
        }
    }

    /// Waits for the thread's end until `deadline`. A thread that hangs in the kernel is left behind, with its device
    /// and nothing else.
    pub fn join(&self, deadline: Instant) {
        let Some(thread) = self.thread.lock().take() else { return };
        while !thread.is_finished() {
            if Instant::now() > deadline {
                log::error!("{}: its thread does not end; it is left behind", self.device.name());
                return;
            }
            std::thread::sleep(POLL);
        }
        if thread.join().is_err() {
            log::error!("{}: its thread panicked", self.device.name());
        }
    }
}

/// What a replica is after a write or a flush that did not succeed, and why.
pub(super) fn outcome(error: &WriteError) -> (State, String) {
    match error {
        WriteError::Fenced { reason } if reason.code != Code::Fenced => (State::Refused, reason.to_string()),
        WriteError::Fenced { .. } | WriteError::Device(_) => (State::Faulty, error.to_string()),
    }
}

struct WorkerThread {
    index: usize,
    worker: Arc<Worker>,
    shared: Arc<Shared>,
}

impl WorkerThread {
    fn run(&self) {
        let Worker { device, queue, .. } = &*self.worker;
        loop {
            let (jobs, runs) = queue.take();
            queue.set_busy(true);
            let result = match jobs.front() {
                Some(Job::Write { .. }) => device.write_together(&writes(&jobs), false),
                Some(Job::Flush(_)) => device.flush(),
                Some(Job::Publish { offsets, data, .. }) => device.write_durably(offsets, data),
                Some(Job::Label { offset, data, .. }) => device.write_durably(&[*offset], data),
                Some(Job::Repair { offset, data, ticket }) => {
                    let done = device.write_at(*offset, &[IoSlice::new(data)]);
                    queue.set_busy(false);
                    self.repaired(*offset, ticket, done);
                    continue;
                }
                Some(Job::End) | None => return,
            };
            queue.set_busy(false);
            match result {
                Ok(()) => self.succeeded(jobs.front(), runs),
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Fences the replica, unless another device has taken this one's place.
    fn failed(&self, error: &WriteError) {
        let mut inner = self.shared.lock();
        if !self.is_current() {
            return;
        }
        let (state, reason) = outcome(error);
        inner.replicas[self.index].failed += u64::from(matches!(error, WriteError::Device(_)));
        self.worker.device.fence(Problem::new(Code::Fenced, reason.as_str()));
        fence(&mut inner, self.index, &self.worker.queue, state, &reason);
        self.shared.publish(&inner);
        drop(inner);
        self.shared.notify_all();
    }

    /// Accounts for a repair. A failure leaves the replica as good as it was, so it is only counted.
    fn repaired(&self, offset: u64, ticket: &Ticket, outcome: Result<(), WriteError>) {
        let mut inner = self.shared.lock();
        let name = self.worker.device.name();
        let status = &mut inner.replicas[self.index];
        match outcome {
            Ok(()) => {
                status.repaired += 1;
                ticket.done.fetch_or(1 << self.index, Ordering::Release);
                log::warn!("{name}: the block at byte {offset} was damaged and is written anew");
            }
            Err(error) => {
                status.failed += u64::from(matches!(error, WriteError::Device(_)));
                ticket.asked.fetch_and(!(1 << self.index), Ordering::Release);
                log::error!("{name}: the block at byte {offset} is damaged and cannot be written anew: {error}");
            }
        }
        drop(inner);
        self.shared.flushed.notify_all();
    }

    /// Whether no other device has taken this one's place.
    fn is_current(&self) -> bool {
        self.shared.worker(self.index).is_some_and(|worker| Arc::ptr_eq(&worker, &self.worker))
    }

    /// Accounts for what was done, and wakes the threads that wait for it, and no others.
    fn succeeded(&self, first: Option<&Job>, runs: Vec<u64>) {
        let mut inner = self.shared.lock();
        // Runs that a fence has already accounted for are not in the list any more.
        for start in self.worker.queue.done(runs) {
            inner.finish(start);
        }
        let wakes_writers = inner.waiting_for_writes > 0;
        let is_flushed = match first {
            // A device that hung may have lost its place to another. Then what it did counts for nothing.
            Some(Job::Flush(ticket) | Job::Publish { ticket, .. } | Job::Label { ticket, .. }) if self.is_current() => {
                let status = &mut inner.replicas[self.index];
                // A replica that is being resynced was not given what came before, so its flush does not cover that.
                if let Some(round) = ticket.round
                    && status.state == State::InSync
                {
                    status.flushed = round;
                }
                status.told |= matches!(first, Some(Job::Publish { .. }));
                ticket.done.fetch_or(1 << self.index, Ordering::Release);
                inner.flushed(ticket)
            }
            _ => false,
        };
        drop(inner);
        if wakes_writers {
            self.shared.written.notify_all();
        }
        if is_flushed {
            self.shared.flushed.notify_all();
        }
    }
}

/// The writes of the jobs; writes that follow each other on the device are put together as one.
fn writes(jobs: &VecDeque<Job>) -> Vec<Write<'_>> {
    let mut writes: Vec<Write<'_>> = Vec::new();
    let mut end = None;
    for job in jobs {
        let Job::Write { offset, data, .. } = job else { continue };
        match writes.last_mut() {
            Some(last) if end == Some(*offset) => last.bufs.push(IoSlice::new(data)),
            _ => writes.push(Write { offset: *offset, bufs: vec![IoSlice::new(data)] }),
        }
        end = Some(offset + data.len() as u64);
    }
    writes
}
