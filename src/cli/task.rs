//! `scelle task`: the long work on a mounted volume.

use std::io;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::text::{bytes, pretty, print, progress};
use crate::control::{Client, TaskReport, TaskState, ask};
use crate::problem::{Code, ExitCode, Problem};

/// How often progress is looked for.
const POLL: Duration = Duration::from_millis(200);

/// Arguments of `scelle task`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the tasks under way, and how the last ones ended
    List(List),
    /// Have a task stop; what it has done so far stays
    Cancel(Cancel),
}

#[derive(Debug, Args)]
struct List {
    /// A label, a UUID or a mount point
    volume: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Cancel {
    /// A label, a UUID or a mount point
    volume: String,
    /// Number of the task, as scelle task list shows it
    task: u64,
}

/// `scelle task`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let out = &mut io::stdout().lock();
    match &arguments.command {
        Command::List(list) => {
            let (_, status) = ask::daemon(&list.volume)?;
            print(out, &if list.json { pretty(&status.tasks)? } else { text(&status.tasks) })?;
        }
        Command::Cancel(cancel) => {
            let (daemon, _) = ask::daemon(&cancel.volume)?;
            daemon.cancel(cancel.task)?;
            print(out, &format!("task {} stops\n", cancel.task))?;
        }
    }
    Ok(ExitCode::Done)
}

fn text(tasks: &[TaskReport]) -> String {
    if tasks.is_empty() {
        return "no task is under way, and none has ended since the mount\n".to_owned();
    }
    tasks.iter().map(|task| line(task) + "\n").collect()
}

/// What a task does, how far it is, and how it ended.
pub(super) fn line(task: &TaskReport) -> String {
    let TaskReport { id, kind, subject, state, .. } = task;
    let when = |time: &Option<String>| time.clone().unwrap_or_else(|| "?".to_owned());
    let how = match state {
        TaskState::Running => {
            let (done, total) = (task.done_bytes, task.total_bytes);
            format!("{} of {} ({} %), since {}", bytes(done), bytes(total), percent(done, total), when(&task.began))
        }
        TaskState::Done | TaskState::Cancelled => when(&task.ended),
        TaskState::Failed => {
            format!("{}: {}", when(&task.ended), task.problem.as_ref().map_or_else(String::new, ToString::to_string))
        }
    };
    format!("task {id}  {kind} {subject}  {}  {how}", state.as_str())
}

/// Full percent, rounded down; 100 only when all is done.
fn percent(done: u64, total: u64) -> u128 {
    (u128::from(done) * 100).checked_div(total.into()).unwrap_or(0)
}

/// Waits until none of these tasks is under way, with a bar on a terminal. Fails unless all of them are done then.
pub(super) fn wait(daemon: &Client, ids: &[u64]) -> Result<(), Problem> {
    let bar = progress();
    loop {
        let mut ours = daemon.tasks()?;
        ours.retain(|task| ids.contains(&task.id));
        if !ours.iter().any(|task| task.state == TaskState::Running) {
            bar.finish_and_clear();
            return ours.into_iter().filter_map(unfinished).next().map_or(Ok(()), Err);
        }
        let sum = |of: fn(&TaskReport) -> u64| ours.iter().map(of).sum();
        bar.set_length(sum(|task| task.total_bytes));
        bar.set_position(sum(|task| task.done_bytes));
        std::thread::sleep(POLL);
    }
}

/// Why a task that has ended is not done.
fn unfinished(task: TaskReport) -> Option<Problem> {
    let what = format!("{} {}", task.kind, task.subject);
    match task.state {
        TaskState::Running | TaskState::Done => None,
        TaskState::Cancelled => Some(Problem::new(Code::TaskCancelled, format!("{what}: somebody cancelled it"))),
        TaskState::Failed if task.problem.as_ref().is_some_and(|problem| says_all(problem.code)) => task.problem,
        TaskState::Failed => {
            let why = task.problem.map_or_else(|| "no reason is known".to_owned(), |problem| problem.to_string());
            Some(Problem::new(Code::ResyncEnded, format!("{what}: {why}")))
        }
    }
}

/// Whether a task that failed with this code needs no other word.
fn says_all(code: Code) -> bool {
    matches!(code, Code::BlocksLost | Code::ScrubDamage | Code::ScrubEnded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: TaskState) -> TaskReport {
        TaskReport {
            id: 3,
            kind: "resync".into(),
            subject: "paris-01".into(),
            state,
            done_bytes: (1 << 30) - 1,
            total_bytes: 1 << 30,
            began: Some("2026-11-21T00:00:00Z".into()),
            ended: Some("2026-11-21T00:01:00Z".into()),
            problem: Some(Problem::new(Code::StoreDamaged, "a block is lost")),
        }
    }

    #[test]
    fn a_task_says_how_far_it_is_and_how_it_ended() {
        let running = line(&task(TaskState::Running));
        assert_eq!(
            running,
            "task 3  resync paris-01  running  1024.0 MiB of 1.0 GiB (99 %), since 2026-11-21T00:00:00Z"
        );
        assert!(line(&task(TaskState::Failed)).ends_with("a block is lost [store-damaged]"));
        assert_eq!(line(&task(TaskState::Done)), "task 3  resync paris-01  done  2026-11-21T00:01:00Z");
        assert_eq!(percent(0, 0), 0);
        assert!(unfinished(task(TaskState::Done)).is_none());
        let code = |state| unfinished(task(state)).map(|problem| problem.code);
        assert_eq!(code(TaskState::Failed), Some(Code::ResyncEnded));
        assert_eq!(code(TaskState::Cancelled), Some(Code::TaskCancelled));
    }
}
