//! Scrub: everything on every replica in sync is read from its device, verified, and repaired where it is damaged, while
//! the volume is in use.
//!
//! `look` has what is done with a block, `roots` what is done with a ring, `job` what is known meanwhile, `report` what is told. Here a scrub begins,
//! waits, goes on and ends. It is a task. The volume has one at a time.
//!
//! # What is looked at
//!
//! 1. The three headers of each label, and each slot of the ring that is to hold a root, in both areas.
//! 2. Every node and page of both trees, then every block of all files, as a [`Traversal`](super::Traversal) comes to
//!    them. A scrub of a path looks at the blocks of the files there and at nothing else.
//!
//! A replica that is being resynced is not read, because it is not to be relied on yet; it was given verified blocks. One that
//! leaves is not read from then on. Both are said.
//!
//! # Going on where it was
//!
//! Every two seconds the scrub keeps in the database where it is and what it has found. So a daemon that is killed costs
//! seconds of work. What was repaired is flushed before that. After a restart it waits until somebody has it go on.
//!
//! # Why nothing is taken for damage that is none
//!
//! A unit U is a block address, what it is bound to, its write identity and its tag. The traversal takes U from a root or
//! from a row while a reader is held. While that reader lives the block is not used again, even if U is freed. So no other
//! unit is written to that address.
//!
//! * *U is on its way.* Whoever made the row had submitted U before. So U is in flight or in its place. The scrub waits
//!   until nothing of the run is in flight. Pages and nodes of a published root are durable.
//! * *The replica lacks U because it left.* Then it was not in sync at some moment between the submission and the read. The
//!   scrub notes the replica's incarnation before it reads. It discards what was read unless the replica has been in sync in
//!   that incarnation until after the read. A replica that comes back lacks nothing when it is in sync again.
//! * *U was freed meanwhile.* U is still in its place, as above. A freed block that is on no replica is not told of as a
//!   loss: that the file still has it is looked at under the lock of the tables, under which blocks are freed.
//! * *U was never written.* Reserved space has no unit. When it is written it gets a row with tags, after the submission.
//!
//! # Why nothing new is overwritten with something old
//!
//! 1. A repair writes U, as it was verified from another replica, to the address of U. It is queued for the replica while
//!    the reader is held, also when the scrub does not wait for its end.
//! 2. The block is used again only when that reader has ended. So what is written to the block later is queued behind the
//!    repair.
//! 3. A replica's queue keeps the order of writes to one place. When the replica leaves, its queue is dropped whole. A
//!    repair that is queued after it has come back still writes U, by 1.
//!
//! A slot of the ring is not guarded by readers. It is repaired between two commits, after it was read once more there. The
//! root of a later commit is queued behind the repair (`roots`).
//!
//! A header is written anew as it is every ten seconds, by the same code (`members::labels`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

mod job;
mod look;
mod report;
mod roots;

pub use report::{FINDINGS_MAX, Scope, ScrubFinding, ScrubReport, ScrubState, ScrubbedReplica};

use super::error::Error;
use super::members::Members;
use super::task::{Outcome, Task, TaskKind};
use crate::audit::{Audit, Entry, Event, Object, Reason, ScrubFacts};
use crate::fs::{Fs, KeptScrub};
use crate::limits::DEVICE_TIMEOUT_S;
use crate::pages::Store;
use crate::policy::clock::now_unix_s;
use crate::problem::{Code, Problem};
use crate::registry::utc_second;
use job::Job;
use report::{Unfinished, keep, sentence};

/// How often a wait looks whether a scrub has ended.
const POLL: Duration = Duration::from_millis(5);

/// Longest wait for a scrub that is to wait or to end.
const END_WAIT: Duration = Duration::from_secs(20);

/// The scrubs of a volume in use.
pub struct Scrubs {
    members: Arc<Members>,
    store: Arc<Store>,
    fs: Arc<Fs>,
    audit: Arc<Audit>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    current: Option<Current>,
    /// The one that is to go on when somebody asks for it.
    unfinished: Option<Unfinished>,
    /// The last that has ended.
    last: Option<ScrubReport>,
    closing: bool,
}

struct Current {
    job: Arc<Job>,
    task: Arc<Task>,
    thread: JoinHandle<()>,
}

impl Slot {
    fn running(&self) -> Option<&Current> {
        self.current.as_ref().filter(|current| !current.task.has_ended())
    }
}

impl Scrubs {
    /// Reads what the volume keeps of earlier scrubs.
    pub(super) fn new(members: Arc<Members>, store: Arc<Store>, fs: Arc<Fs>, audit: Arc<Audit>) -> Arc<Self> {
        let mut slot =
            Slot { unfinished: kept(&fs, KeptScrub::Unfinished), last: kept(&fs, KeptScrub::Last), ..Slot::default() };
        if let Some(unfinished) = &mut slot.unfinished
            && unfinished.report.state == ScrubState::Running
        {
            unfinished.report.state = ScrubState::Interrupted;
            unfinished.report.interruptions += 1;
        }
        Arc::new(Self { members, store, fs, audit, slot: Mutex::new(slot) })
    }

    /// The scrub that is under way, else the one that is to go on, else the last one.
    pub fn report(&self) -> Option<ScrubReport> {
        let slot = self.slot.lock();
        let running = slot.running().map(|current| current.job.report());
        running.or_else(|| slot.unfinished.as_ref().map(|unfinished| unfinished.report.clone())).or(slot.last.clone())
    }

    /// The last scrub that has ended.
    pub fn last(&self) -> Option<ScrubReport> {
        self.slot.lock().last.clone()
    }

    /// Begins a scrub, or has the one go on that waits: then nothing but the rate may be another. Returns the task, and
    /// whether it goes on.
    ///
    /// # Errors
    /// [`Code::ScrubRunning`], [`Code::ScrubWaits`], [`Code::ScrubPath`], [`Code::Closing`].
    pub fn start(self: &Arc<Self>, scope: &Scope, rate: Option<u64>) -> Result<(u64, bool), Problem> {
        if let Scope::Below(path) = scope {
            let found = self.fs.files_below(path.as_bytes(), &|| false);
            found.map_err(|error| Problem::new(Code::ScrubPath, format!("{path}: {error}")))?;
        }
        let mut slot = self.slot.lock();
        if slot.closing {
            return Err(Problem::new(Code::Closing, "the volume is being closed"));
        }
        if slot.running().is_some() {
            return Err(Problem::new(Code::ScrubRunning, "a scrub of this volume is under way"));
        }
        let waits = slot.unfinished.as_ref().map(|unfinished| unfinished.report.scope.clone());
        if let Some(waiting) = waits.as_ref().filter(|waiting| *scope != Scope::All && *waiting != scope) {
            let text = format!("a scrub of this volume ({}) waits to go on", waiting.subject());
            return Err(Problem::new(Code::ScrubWaits, text));
        }
        let mut unfinished = slot.unfinished.clone().unwrap_or_default();
        if waits.is_none() {
            unfinished.report = ScrubReport { scope: scope.clone(), began: now_unix_s(), ..ScrubReport::default() };
        }
        unfinished.rate = rate.or(unfinished.rate);
        (unfinished.report.state, unfinished.report.ended, unfinished.report.why) = (ScrubState::Running, None, None);
        let kind = TaskKind::Scrub { subject: unfinished.report.scope.subject() };
        let job = Arc::new(Job::new(self.members.clone(), self.store.clone(), self.fs.clone(), unfinished));
        let task = self.members.tasks().begin(kind, job.clone());
        let (theirs, scrubs, work) = (task.clone(), self.clone(), job.clone());
        let run = move || {
            let outcome = look::run(&work, theirs.stop());
            scrubs.ended(&work, &theirs, outcome);
        };
        let id = task.id();
        match std::thread::Builder::new().name("scrub".to_owned()).spawn(run) {
            Ok(thread) => {
                slot.current = Some(Current { job, task, thread });
                Ok((id, waits.is_some()))
            }
            Err(source) => {
                let problem = Problem::new(Code::System, format!("starting a scrub: {source}"));
                task.end(Outcome::Failed(problem.clone()));
                Err(problem)
            }
        }
    }

    /// Has the scrub that is under way wait until somebody has it go on. Returns when it does.
    ///
    /// # Errors
    /// [`Code::ScrubNone`]; [`Code::ScrubRunning`] when it does not end soon.
    pub fn pause(&self) -> Result<(), Problem> {
        if self.end_running(false)? {
            return Ok(());
        }
        let unfinished = {
            let mut slot = self.slot.lock();
            let unfinished = slot.unfinished.as_mut().ok_or_else(none)?;
            unfinished.report.state = ScrubState::Paused;
            unfinished.clone()
        };
        self.keep(KeptScrub::Unfinished, Some(&unfinished));
        Ok(())
    }

    /// Ends the scrub that is under way or waits, and forgets where it was.
    ///
    /// # Errors
    /// As [`Scrubs::pause`].
    pub fn stop(&self) -> Result<(), Problem> {
        if self.end_running(true)? {
            return Ok(());
        }
        let unfinished = self.slot.lock().unfinished.take().ok_or_else(none)?;
        let report = ScrubReport { state: ScrubState::Stopped, ended: Some(now_unix_s()), ..unfinished.report };
        self.tell(&report);
        self.slot.lock().last = Some(report);
        Ok(())
    }

    /// Has the scrub that is under way end, if there is one, and waits for that.
    fn end_running(&self, forget: bool) -> Result<bool, Problem> {
        let (job, task) = match self.slot.lock().running() {
            Some(current) => (current.job.clone(), current.task.clone()),
            None => return Ok(false),
        };
        job.is_stopped.store(forget, Ordering::Release);
        // It may have ended a moment ago.
        let _ = self.members.tasks().cancel(task.id());
        let begin = Instant::now();
        while !task.has_ended() {
            if begin.elapsed() > END_WAIT {
                let text = "the scrub ends as soon as a device has answered";
                return Err(Problem::new(Code::ScrubRunning, text));
            }
            std::thread::sleep(POLL);
        }
        Ok(true)
    }

    /// Ends the scrub that is under way, and lets none begin any more. The wait is bounded: a thread that hangs in the
    /// kernel is left behind.
    pub(super) fn close(&self) {
        let current = {
            let mut slot = self.slot.lock();
            slot.closing = true;
            slot.current.take()
        };
        let Some(Current { task, thread, .. }) = current else { return };
        task.stop().store(true, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(DEVICE_TIMEOUT_S);
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        if !thread.is_finished() {
            log::error!("the scrub does not end; it is left behind");
        } else if thread.join().is_err() {
            log::error!("the scrub panicked");
        }
    }

    /// What the end of its thread means for a scrub, the task and the trail.
    fn ended(&self, job: &Job, task: &Task, outcome: Result<bool, Error>) {
        let closing = || self.slot.lock().closing;
        let state = match &outcome {
            Ok(true) => ScrubState::Finished,
            Ok(false) if job.is_stopped.load(Ordering::Acquire) => ScrubState::Stopped,
            Ok(false) if task.is_cancelled() => ScrubState::Paused,
            Ok(false) => ScrubState::Interrupted,
            Err(_) if self.store.mirror().in_sync() == 0 => ScrubState::Interrupted,
            Err(_) => ScrubState::Failed,
        };
        if !state.is_to_go_on() {
            // Whose files the findings are: a look at every name.
            job.name_files(&|| !closing());
        }
        let mut unfinished = job.now();
        let report = &mut unfinished.report;
        (report.state, report.ended) = (state, Some(now_unix_s()));
        report.why = outcome.err().map(|error| error.to_string());
        report.interruptions += u64::from(state.is_to_go_on());
        let report = report.clone();
        if state.is_to_go_on() {
            self.keep(KeptScrub::Unfinished, Some(&unfinished));
            self.slot.lock().unfinished = Some(unfinished);
        } else {
            self.tell(&report);
            let mut slot = self.slot.lock();
            (slot.unfinished, slot.last) = (None, Some(report.clone()));
        }
        if self.store.committable().is_ok() {
            // What was repaired and what is kept are on stable storage then. A commit that fails has said so.
            let _ = self.fs.checkpoint();
        }
        task.end(match state {
            ScrubState::Finished if report.unrepaired() == 0 => Outcome::Done,
            ScrubState::Finished => Outcome::Failed(Problem::new(Code::ScrubDamage, in_short(&report))),
            ScrubState::Stopped | ScrubState::Paused | ScrubState::Running => Outcome::Cancelled,
            ScrubState::Interrupted | ScrubState::Failed => {
                let why = report.why.unwrap_or_else(|| "the volume was closed".to_owned());
                Outcome::Failed(Problem::new(Code::ScrubEnded, why))
            }
        });
    }

    /// Keeps the report of a scrub that has ended, and has the trail tell of it.
    fn tell(&self, report: &ScrubReport) {
        self.keep::<Unfinished>(KeptScrub::Unfinished, None);
        self.keep(KeptScrub::Last, Some(report));
        let read = report.replicas.iter().filter(|row| row.bytes > 0);
        let read = read.map(|row| ScrubFacts { registry_id: row.replica.clone(), bytes: row.bytes }).collect();
        let time = |second: u64| utc_second(second).map_or_else(String::new, |time| time + "Z");
        let event = Event::ScrubEnded {
            state: report.state.as_str().to_owned(),
            of: report.scope.subject(),
            began: time(report.began),
            ended: time(report.ended.unwrap_or_default()),
            interruptions: report.interruptions,
            read,
            found: report.found,
            repaired: report.repaired,
            unrepaired: report.unrepaired(),
        };
        let lost = report.findings.iter().filter(|finding| !finding.repaired);
        let reasons = lost.map(|finding| Reason::new(Code::ScrubDamage, &sentence(finding)));
        self.audit.record(Entry::done(self.audit.user(), Object::Volume, event).because(reasons));
        let level = if report.found == 0 { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "scrub {}: {}", report.state.as_str(), in_short(report));
    }

    fn keep<T: serde::Serialize>(&self, of: KeptScrub, what: Option<&T>) {
        if let Err(error) = keep(&self.fs, of, what) {
            log::info!("what a scrub has found is not kept in the volume: {error}");
        }
    }
}

fn kept<T: serde::de::DeserializeOwned>(fs: &Fs, of: KeptScrub) -> Option<T> {
    let bytes = fs.kept_scrub(of).unwrap_or_else(|error| {
        log::error!("what the volume keeps of its last scrub cannot be read: {error}");
        None
    })?;
    let read = serde_json::from_slice(&bytes);
    read.inspect_err(|error| log::error!("what the volume keeps of its last scrub is of another version: {error}")).ok()
}

fn none() -> Problem {
    Problem::new(Code::ScrubNone, "no scrub of this volume is under way or waits")
}

fn in_short(report: &ScrubReport) -> String {
    let (found, repaired, unrepaired) = (report.found, report.repaired, report.unrepaired());
    format!("{found} errors found, {repaired} repaired, {unrepaired} not repaired")
}
