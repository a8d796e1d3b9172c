//! Long work on a volume in use: what is under way, how far it is, how it ended, and a way to stop it.
//!
//! A task begins, makes progress, and ends in one of three ways. Whoever began a task need not wait for it: everybody
//! who may ask for the status sees it. Tasks are kept in memory, so a restart of the daemon forgets them. What a task
//! had done on the devices stays.
//!
//! How the work is done is not known here; a resync is in `volume::members`, a scrub in
//! `volume::scrub`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::limits::TASKS_KEPT_MAX;
use crate::problem::{Code, Problem};

/// What a task does, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// A replica gets what it lacks.
    Resync {
        /// Its identifier in the registry.
        replica: String,
    },
    /// A replica that was added gets everything.
    Add {
        /// Its identifier in the registry.
        replica: String,
    },
    /// A replica gets everything, and then takes another's place.
    Replace {
        /// Its identifier in the registry.
        replica: String,
        /// That of the other.
        old: String,
    },
    /// What the replicas hold is read, verified and repaired.
    Scrub {
        /// What of it: a path, or in words.
        subject: String,
    },
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is done.
    Done,
    /// Somebody had it stop.
    Cancelled,
    /// It could not go on.
    Failed(Problem),
}

/// Work that can say how far it is.
pub(super) trait Work: Send + Sync {
    /// Bytes done, and bytes in all.
    fn progress(&self) -> (u64, u64);
}

/// One task.
pub(super) struct Task {
    id: u64,
    kind: TaskKind,
    work: Arc<dyn Work>,
    began: SystemTime,
    /// The work is to end soon.
    stop: AtomicBool,
    /// Somebody asked the work to end; else the end of the volume did.
    cancelled: AtomicBool,
    ended: Mutex<Option<(SystemTime, Outcome)>>,
}

impl Task {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What tells the work to end soon.
    pub fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Whether somebody cancelled it.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Notes that the task has ended. The first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        self.ended.lock().get_or_insert((SystemTime::now(), outcome));
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.lock().is_some()
    }
}

/// A task as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStatus {
    /// Its number, unique in this mount.
    pub id: u64,
    /// What it does.
    pub kind: TaskKind,
    /// Bytes done, and bytes in all.
    pub progress: (u64, u64),
    /// When it began.
    pub began: SystemTime,
    /// When and how it ended; nothing while it is under way.
    pub ended: Option<(SystemTime, Outcome)>,
}

/// The tasks of a volume in use, those that have ended among them.
#[derive(Default)]
pub struct Tasks(Mutex<Rows>);

#[derive(Default)]
struct Rows {
    last_id: u64,
    /// The oldest first.
    tasks: VecDeque<Arc<Task>>,
}

impl Tasks {
    /// Begins a task.
    pub(super) fn begin(&self, kind: TaskKind, work: Arc<dyn Work>) -> Arc<Task> {
        let mut rows = self.0.lock();
        rows.last_id += 1;
        let task = Arc::new(Task {
            id: rows.last_id,
            kind,
            work,
            began: SystemTime::now(),
            stop: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            ended: Mutex::default(),
        });
        rows.tasks.push_back(Arc::clone(&task));
        let ended = rows.tasks.iter().filter(|task| task.has_ended()).count();
        let mut surplus = ended.saturating_sub(TASKS_KEPT_MAX);
        rows.tasks.retain(|task| {
            let goes = surplus > 0 && task.has_ended();
            surplus -= usize::from(goes);
            !goes
        });
        task
    }

    /// Every task under way, and the last that have ended; the oldest first.
    pub fn list(&self) -> Vec<TaskStatus> {
        let status = |task: &Arc<Task>| TaskStatus {
            id: task.id,
            kind: task.kind.clone(),
            progress: task.work.progress(),
            began: task.began,
            ended: task.ended.lock().clone(),
        };
        self.0.lock().tasks.iter().map(status).collect()
    }

    /// Has a task stop. The task has not ended yet when this returns, but it goes no further than the piece of work at
    /// hand.
    ///
    /// # Errors
    /// [`Code::TaskUnknown`], [`Code::TaskEnded`].
    pub fn cancel(&self, id: u64) -> Result<(), Problem> {
        let task = self.0.lock().tasks.iter().find(|task| task.id == id).cloned();
        let task = task.ok_or_else(|| Problem::new(Code::TaskUnknown, format!("there is no task {id}")))?;
        if task.has_ended() {
            return Err(Problem::new(Code::TaskEnded, format!("task {id} has ended already")));
        }
        task.cancelled.store(true, Ordering::Release);
        task.stop.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Half;

    impl Work for Half {
        fn progress(&self) -> (u64, u64) {
            (1, 2)
        }
    }

    fn begin(tasks: &Tasks) -> Arc<Task> {
        tasks.begin(TaskKind::Resync { replica: "a".into() }, Arc::new(Half))
    }

    #[test]
    fn a_task_begins_and_ends_once() {
        let tasks = Tasks::default();
        let task = begin(&tasks);
        assert_eq!((tasks.list()[0].progress, tasks.list()[0].ended.clone()), ((1, 2), None));
        tasks.cancel(task.id()).unwrap();
        assert!(task.is_cancelled() && task.stop().load(Ordering::Relaxed));
        task.end(Outcome::Cancelled);
        task.end(Outcome::Done);
        assert_eq!(tasks.list()[0].ended.as_ref().unwrap().1, Outcome::Cancelled);
        assert_eq!(tasks.cancel(task.id()).unwrap_err().code, Code::TaskEnded);
        assert_eq!(tasks.cancel(7).unwrap_err().code, Code::TaskUnknown);
    }

    #[test]
    fn what_is_under_way_is_never_forgotten() {
        let tasks = Tasks::default();
        let first = begin(&tasks);
        for _ in 0..TASKS_KEPT_MAX * 2 {
            begin(&tasks).end(Outcome::Done);
        }
        let listed = tasks.list();
        assert!(listed.len() <= TASKS_KEPT_MAX + 2, "{}", listed.len());
        assert_eq!(listed[0].id, first.id());
        assert!(listed.windows(2).all(|pair| pair[0].id < pair[1].id));
    }
}
