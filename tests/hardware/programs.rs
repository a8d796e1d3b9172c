//! Other programs: bounded in time, and ended whenever the driver ends.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::failure::{During, Result, failed};
use crate::interrupt;

/// A program that runs. It does not outlive this value.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a program.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().during(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    /// How the program ended, or nothing while it still runs at the time `until`.
    pub fn wait(&mut self, until: Instant) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if !interrupt::pause(until)? {
                return Ok(None);
            }
        }
    }

    /// How the program ended, or nothing while it still runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().during(|| "wait for a program".to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program said, and whether it succeeded.
pub struct Said {
    /// The exit code is 0.
    pub success: bool,
    /// The standard output.
    pub output: String,
    /// The standard error.
    pub errors: String,
}

/// Runs a program to its end, for at most `seconds`.
pub fn run(command: &mut Command, seconds: u64) -> Result<Said> {
    let name = command.get_program().display().to_string();
    // Files, not pipes: nobody has to read while it runs.
    let file = || tempfile::tempfile().during(|| "make a temporary file".to_owned());
    let (mut output, mut errors) = (file()?, file()?);
    let clone = |file: &fs::File| file.try_clone().during(|| "share a temporary file".to_owned());
    command.stdin(Stdio::null()).stdout(clone(&output)?).stderr(clone(&errors)?);
    let mut running = Running::start(command)?;
    let Some(status) = running.wait(Instant::now() + Duration::from_secs(seconds))? else {
        return Err(failed(format!("{name} has not ended after {seconds} s, and was killed: run this again")));
    };
    Ok(Said { success: status.success(), output: text(&mut output)?, errors: text(&mut errors)? })
}

/// What a program says, which has to succeed.
pub fn output(command: &mut Command, seconds: u64) -> Result<String> {
    let said = run(command, seconds)?;
    if said.success {
        return Ok(said.output);
    }
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(failed(format!(
        "{} {} failed: {}",
        command.get_program().display(),
        arguments.join(" "),
        said.errors.trim_end()
    )))
}

/// All that was written to a file.
fn text(file: &mut fs::File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).during(|| "read what a program said".to_owned())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The path of an installed program.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_program(file))
}

/// Whether a path is that of a file which somebody may execute.
pub fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
