//! `scelle where`: asks the mounted folder itself, through the attribute that every file in it answers. So whoever may
//! read a file may ask where it is; neither the control socket nor a passphrase is needed.

use std::fmt::Write;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::text::{self, bytes};
use crate::control::{Copy, FilePlace, PlaceReplica};
use crate::daemon::find;
use crate::fuse::PLACE_XATTR;
use crate::limits::XATTR_VALUE_MAX;
use crate::os::DevNo;
use crate::problem::{Code, ExitCode, Problem};
use crate::units;

/// Longest wait for one path: a mount whose daemon hangs would hold us for ever.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Arguments of `scelle where`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files and folders of mounted volumes; a symbolic link stands for what it leads to
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Be the process that asks
    #[arg(long, hide = true)]
    answer: bool,
}

/// Asks for each path and prints the answers. The exit code is that of the first failure if there is one, else 6 when a
/// replica lacks something.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    if arguments.answer {
        answer(&arguments.paths);
        return Ok(ExitCode::Done);
    }
    let (mut places, mut failures) = (Vec::new(), Vec::new());
    let (mut first_failure, mut is_whole, mut text) = (None, true, String::new());
    for (path, answer) in arguments.paths.iter().zip(ask_all(&arguments.paths)) {
        let shown = shown(path);
        match answer.and_then(|value| Ok((parse(path, &value)?, value))) {
            Ok((place, value)) => {
                is_whole &= place.replicas.iter().all(|replica| replica.copy == Copy::Complete);
                // Writing to a String cannot fail.
                let _ = write_place(&mut text, &shown, &place);
                let mut entry = serde_json::Map::from_iter([("path".to_owned(), json!(path.to_string_lossy()))]);
                entry.extend(value.as_object().cloned().unwrap_or_default());
                places.push(Value::Object(entry));
            }
            Err(problem) => {
                eprintln!("scelle: {}", text::lines(&problem.whole()));
                let Problem { code, text, .. } = &problem;
                failures.push(json!({ "path": path.to_string_lossy(), "code": code, "text": text }));
                first_failure.get_or_insert(problem.exit());
            }
        }
    }
    if arguments.json {
        println!("{}", json!({ "places": places, "failures": failures }));
    } else {
        print!("{text}");
    }
    Ok(first_failure.unwrap_or(if is_whole { ExitCode::Done } else { ExitCode::Degraded }))
}

/// Returns one answer a path, in their order. Another process asks: a request that a hanging daemon has taken cannot be
/// called back, and holds the process that made it, even against SIGKILL. When that process gets stuck, it is left to
/// itself, and the other paths are not asked about.
fn ask_all(paths: &[PathBuf]) -> Vec<Result<Value, Problem>> {
    let answers = match start_asking(paths) {
        Ok(answers) => answers,
        Err(error) => {
            let failure = Problem::new(Code::System, format!("no process to ask with: {error}"));
            return paths.iter().map(|_| Err(failure.clone())).collect();
        }
    };
    let mut unanswered: Option<&Path> = None;
    let mut answer = |path| {
        if let Some(earlier) = unanswered {
            let text = format!("{} was not asked about: there was no answer for {}", shown(path), shown(earlier));
            return Err(Problem::new(Code::WhereTimeout, text));
        }
        match answers.recv_timeout(ANSWER_WAIT) {
            Ok(line) => from_line(path, &line),
            Err(error) => {
                unanswered = Some(path);
                let text = match error {
                    RecvTimeoutError::Timeout => {
                        format!("no answer within {} s: the filesystem it is on hangs", ANSWER_WAIT.as_secs())
                    }
                    RecvTimeoutError::Disconnected => "the process that asked ended without an answer".into(),
                };
                Err(Problem::new(Code::WhereTimeout, format!("{}: {text}", shown(path))))
            }
        }
    };
    paths.iter().map(|path| answer(path.as_path())).collect()
}

/// Starts this program with `--answer`, and a thread that passes its lines on.
fn start_asking(paths: &[PathBuf]) -> io::Result<mpsc::Receiver<String>> {
    // The process inherits no open file of ours: a reader of our output is not to wait for a process that is stuck.
    let mut asking = Command::new("/proc/self/exe");
    asking.args(["where", "--answer", "--"]).args(paths);
    let mut child = asking.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (sender, answers) = mpsc::channel();
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    std::thread::Builder::new().name("where".into()).spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        for line in lines {
            if sender.send(line).is_err() {
                return;
            }
        }
        let _ = child.wait();
    })?;
    Ok(answers)
}

/// Runs in the process that asks: prints a line of JSON for each path.
fn answer(paths: &[PathBuf]) {
    for path in paths {
        match ask(path) {
            Ok(value) => println!("{}", json!({ "place": value })),
            Err(problem) => println!("{}", json!({ "problem": problem })),
        }
    }
}

fn from_line(path: &Path, line: &str) -> Result<Value, Problem> {
    let mut value: Value = serde_json::from_str(line).map_err(|error| unexpected(path, &error))?;
    if let Some(place) = value.get_mut("place") {
        return Ok(place.take());
    }
    let problem = value.get_mut("problem").map(Value::take).unwrap_or_default();
    Err(serde_json::from_value(problem).unwrap_or_else(|error| unexpected(path, &error)))
}

/// Reads the attribute of one path. Other filesystems may store an attribute of that name with any content. So only a
/// mount of type `fuse.scelle` that root has made is believed.
fn ask(path: &Path) -> Result<Value, Problem> {
    // O_PATH: nothing is opened on the way, neither a pipe nor a device.
    let options = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
    let opened = options.and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|error| failure(path, &error))?;
    let dev = DevNo::from_raw(metadata.dev());
    if !find::mounts().iter().any(|mount| mount.dev == dev && find::is_ours(mount)) {
        let text = format!("{} is not on a mounted scelle volume", shown(path));
        return Err(Problem::new(Code::WhereNotScelle, text));
    }
    let mut value = vec![0; XATTR_VALUE_MAX];
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    let length = rustix::fs::getxattr(same, PLACE_XATTR, &mut value).map_err(|error| failure(path, &error.into()))?;
    value.truncate(length);
    serde_json::from_slice(&value).map_err(|error| unexpected(path, &error))
}

fn parse(path: &Path, value: &Value) -> Result<FilePlace, Problem> {
    serde::Deserialize::deserialize(value).map_err(|error| unexpected(path, &error))
}

fn unexpected(path: &Path, error: &serde_json::Error) -> Problem {
    let text = format!("{}: the daemon gave an answer that cannot be read: {error}", shown(path));
    Problem::new(Code::WhereAnswer, text)
}

fn failure(path: &Path, error: &io::Error) -> Problem {
    let shown = shown(path);
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            Problem::new(Code::WhereNotFound, format!("{shown}: there is no such file or folder"))
        }
        Some(libc::EACCES | libc::EPERM) => {
            Problem::new(Code::WherePermission, format!("{shown}: you may not read it, so not ask about it either"))
        }
        Some(libc::ENODATA | libc::EOPNOTSUPP) => Problem::new(
            Code::WhereKind,
            format!("{shown} is neither a file nor a folder: the kernel has attributes only for those"),
        )
        .advise("What such a name says is with the folder that it is in: ask about that."),
        Some(libc::E2BIG) => Problem::new(
            Code::WhereTooLong,
            format!("{shown}: what the registry says of the replicas is longer than an attribute may be"),
        )
        .advise("scelle status shows it."),
        Some(libc::ENOTCONN | libc::ECONNABORTED) => {
            Problem::new(Code::WhereDaemonDied, format!("{shown}: the daemon of its volume has died"))
        }
        _ => Problem::new(Code::Where, format!("{shown}: {error}")),
    }
}

/// The path as it is shown on a terminal: a name may hold anything.
fn shown(path: &Path) -> String {
    units::shown(&path.to_string_lossy())
}

fn write_place(out: &mut String, path: &str, place: &FilePlace) -> std::fmt::Result {
    let volume = &place.volume;
    let name = if volume.label.is_empty() { &volume.uuid } else { &volume.label };
    let complete = place.replicas.iter().filter(|replica| replica.copy == Copy::Complete).count();
    let is_folder = place.kind == "folder";
    let changed = place.changed.as_deref().unwrap_or("at an unknown time");
    writeln!(out, "{path}")?;
    if is_folder {
        writeln!(out, "  folder of volume {name}, with everything below it")?;
    } else {
        writeln!(out, "  {} of volume {name}, {}, last changed {changed}", place.kind, bytes(place.size_bytes))?;
    }
    writeln!(
        out,
        "  complete on {complete} of {} replicas, as of generation {}",
        place.replicas.len(),
        place.generation
    )?;
    if !place.committed {
        writeln!(
            out,
            "  ! the volume can commit no more: changes after that generation are on no replica for certain"
        )?;
    }
    for replica in &place.replicas {
        write_replica(out, place, replica)?;
    }
    let registry = &place.registry;
    let signers = registry.signatures.join(", ");
    writeln!(
        out,
        "  registry version {} of {}, valid until {}, signed by {signers}",
        registry.version, registry.issued, registry.valid_until
    )?;
    writeln!(out, "  {}", text::trust(volume.sovereign, &volume.kind, &registry.officers))?;
    writeln!(out, "  {}", place.basis)
}

fn write_replica(out: &mut String, place: &FilePlace, replica: &PlaceReplica) -> std::fmt::Result {
    let device = if replica.device.is_empty() { "-" } else { &replica.device };
    let holds = match (replica.copy, replica.bytes_at_least, place.stored_bytes) {
        (Copy::Complete, ..) => "complete".to_owned(),
        (Copy::Resyncing, Some(some), Some(all)) => {
            format!("being resynced, at least {} of {}", bytes(some), bytes(all))
        }
        (Copy::Resyncing, ..) => "being resynced".to_owned(),
        (Copy::LeftBehind, Some(some), Some(all)) => {
            format!("left behind after generation {}, at least {} of {}", replica.generation, bytes(some), bytes(all))
        }
        (Copy::LeftBehind, ..) => format!("left behind after generation {}", replica.generation),
    };
    let since = replica.since.as_ref().map_or_else(String::new, |since| format!(", since {since} at the latest"));
    writeln!(out, "  {}  {device}  {}: {holds}{since}", replica.registry_id, replica.state)?;
    writeln!(out, "    {}", text::place(&replica.site, replica.last_known.as_ref(), replica.listed))?;
    if let (Some(day), Some(age), Some(until)) =
        (&replica.inspected, replica.inspection_age_days, &replica.inspection_valid_until)
    {
        writeln!(out, "    inspected on {day}, {age} days ago; that counts until {until}")?;
    }
    if !replica.reasons.is_empty() {
        writeln!(out, "    NOT APPROVED: {}", replica.reasons.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_attribute_of_another_filesystem_is_not_believed() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("forged");
        std::fs::write(&path, "x").unwrap();
        // Whether the attribute can be set does not matter: it is not asked for.
        let _ = rustix::fs::setxattr(&path, PLACE_XATTR, b"{}", rustix::fs::XattrFlags::empty());
        assert_eq!(ask(&path).unwrap_err().code, Code::WhereNotScelle);
        assert_eq!(ask(&dir.path().join("absent")).unwrap_err().code, Code::WhereNotFound);
    }

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(shown(Path::new("é\u{1b}[2J\n")), "é\\u{1b}[2J\\n");
        assert_eq!(shown(Path::new("a\u{202e}txt.exe")), "a\\u{202e}txt.exe");
    }
}
