//! `scelle audit`: shows, verifies and exports the trail that a daemon hands out. Records are [`crate::audit`]'s.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::audit::record::Record;
use crate::audit::{Fault, Seal, Verifier, export_head, verify_export};
use crate::control::{Client, ClientError, SealedTrail, ask};
use crate::limits::SIGNATURE_BYTES_MAX;
use crate::os::read_bounded;
use crate::problem::{Code, ExitCode, Problem};
use crate::registry::Date;
use crate::units::is_plain;

/// Arguments of `scelle audit`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the audit trail of a mounted volume
    Log {
        /// A label, a UUID or a mount point
        volume: String,
        /// Print the records as they are hashed, one line of JSON each
        #[arg(long)]
        json: bool,
        /// Only records of this day (UTC) and later, YYYY-MM-DD
        #[arg(long, value_name = "DATE")]
        since: Option<String>,
    },
    /// Verify the audit trail of a mounted volume, or an exported one
    Verify {
        /// An exported file, - for standard input; or a label, a UUID or a mount point
        #[arg(value_name = "FILE|VOLUME")]
        what: String,
        /// The volume's public key: a minisign key file, or its second line. An exported file is only verified with it
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
    /// Write the whole audit trail of a mounted volume, sealed, to be verified anywhere
    Export {
        /// A label, a UUID or a mount point
        volume: String,
        /// Write to this new file instead of standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let done = match &arguments.command {
        Command::Log { volume, json, since } => log(volume, *json, since.as_deref()),
        Command::Verify { what, key } => verify(what, key.as_deref()),
        Command::Export { volume, output } => export(volume, output.as_deref()),
    };
    match done {
        // The reader at the other end of the pipe has seen enough.
        Err(Stop::Closed) => Ok(ExitCode::Done),
        Err(Stop::Failed(failure)) => Err(failure),
        Ok(()) => Ok(ExitCode::Done),
    }
}

/// Why the command ends early.
enum Stop {
    Closed,
    Failed(Problem),
}

impl From<Problem> for Stop {
    fn from(failure: Problem) -> Self {
        Self::Failed(failure)
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(Problem::new(Code::Output, format!("the output cannot be written: {error}"))),
        }
    }
}

/// What is wrong with the trail in `what`.
fn fault(what: &str, fault: &Fault) -> Problem {
    Problem::new(fault.code(), format!("the audit trail in {what} is not accepted: {fault}"))
}

/// Calls `each` with the bytes of each record, fetched part by part, until it returns false.
fn records(client: &Client, mut each: impl FnMut(&str) -> Result<bool, Stop>) -> Result<(), Stop> {
    let mut after = 0;
    loop {
        let part = client.audit(after)?;
        if part.is_empty() {
            return Ok(());
        }
        for record in &part {
            if !each(record)? {
                return Ok(());
            }
        }
        after += part.len() as u64;
    }
}

fn log(volume: &str, json: bool, since: Option<&str>) -> Result<(), Stop> {
    let since = since
        .map(|text| {
            Date::parse(text).ok_or_else(|| Problem::new(Code::Date, format!("{text:?} is not a day, YYYY-MM-DD")))
        })
        .transpose()?
        .map_or_else(String::new, |date| date.to_string());
    let (client, status) = ask::daemon(volume)?;
    let mut out = io::stdout().lock();
    records(&client, |line| {
        let record = Record::parse(line.as_bytes());
        // The order of times is their order as texts.
        if record.as_ref().is_some_and(|record| record.time < since) {
            return Ok(true);
        }
        match record {
            Some(record) if !json => write_record(&mut out, &record)?,
            _ => writeln!(out, "{line}")?,
        }
        Ok(true)
    })?;
    if !json {
        writeln!(out, "{} records; exports verify with the key {}", status.audit.records, status.audit.key)?;
    }
    Ok(())
}

/// Writes a record for people: one line, and the record's details below it.
fn write_record(out: &mut impl Write, record: &Record) -> io::Result<()> {
    let Record { seq, time, event, .. } = record;
    let time = time.get(..19).unwrap_or(time).replace('T', " ");
    writeln!(out, "{seq:>5}  {}Z  {}  {}  by {}", shown(&time), shown(event), object(record), actor(&record.actor))?;
    if !record.details.is_null() {
        writeln!(out, "       {}", fields(&record.details, &[]))?;
    }
    for reason in &record.reasons {
        writeln!(out, "       because {} [{}]", shown(&reason.text), shown(&reason.code))?;
    }
    if let Some(repeated) = &record.repeated {
        writeln!(out, "       {} more from {} to {}", repeated.count, shown(&repeated.first), shown(&repeated.last))?;
    }
    if let Some(reported) = &record.reported {
        let chain = if reported.intact { "" } else { ", whose reports are not a whole chain" };
        let (host, time) = (shown(&reported.host), shown(&reported.time));
        writeln!(out, "       reported by host {host}{chain}, at {time}; not covered by this chain until now")?;
    }
    Ok(())
}

/// The text without characters that a terminal would obey.
fn shown(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

fn actor(actor: &Value) -> String {
    let text = |key: &str| actor.get(key).filter(|value| !value.is_null()).map(value);
    match (text("name"), text("uid"), text("kind")) {
        (Some(name), Some(uid), _) => format!("{name} (uid {uid}, pid {})", text("pid").unwrap_or_default()),
        (None, Some(uid), _) => format!("uid {uid} (pid {})", text("pid").unwrap_or_default()),
        (_, None, kind) => kind.unwrap_or_default(),
    }
}

fn object(record: &Record) -> String {
    let kind = record.object.get("kind").map(value).unwrap_or_default();
    let fields = fields(&record.object, &["kind"]);
    if fields.is_empty() { kind } else { format!("{kind} {fields}") }
}

/// The fields of an object except those in `without`, as `key=value`.
fn fields(of: &Value, without: &[&str]) -> String {
    let Some(object) = of.as_object() else { return value(of) };
    let known = object.iter().filter(|(key, value)| !without.contains(&key.as_str()) && !value.is_null());
    let text: Vec<String> = known.map(|(key, field)| format!("{}={}", shown(key), value(field))).collect();
    text.join(" ")
}

fn value(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        other => shown(&other.to_string()),
    }
}

fn verify(what: &str, key: Option<&str>) -> Result<(), Stop> {
    let key = key.map(read_key).transpose()?;
    let seal = if what == "-" || Path::new(what).is_file() {
        let key = key.ok_or_else(|| {
            Problem::new(Code::AuditKeyMissing, format!("{what} can only be verified with the volume's public key"))
        })?;
        let input: Box<dyn BufRead> = match what {
            "-" => Box::new(io::stdin().lock()),
            path => Box::new(BufReader::new(File::open(path).map_err(|e| fault(what, &Fault::Io(e)))?)),
        };
        verify_export(input, &key).map_err(|e| fault(what, &e))?
    } else {
        verify_volume(what, key).map_err(|stop| match stop {
            Stop::Failed(problem) if problem.code == Code::VolumeNotMounted => {
                let text = format!("there is no file {what:?}, and {}", problem.text);
                Stop::Failed(Problem { text, ..problem })
            }
            stop => stop,
        })?
    };
    let Seal { volume, label, sealed, records, head, generation, registry_version, key, .. } = seal;
    let mut out = io::stdout().lock();
    writeln!(out, "good: the audit trail of volume {volume} ({}), whole and unchanged", shown(&label))?;
    writeln!(
        out,
        "  {records} records, sealed {} at generation {generation}, registry version {registry_version}",
        shown(&sealed)
    )?;
    writeln!(out, "  last digest {head}")?;
    writeln!(out, "  key {key}")?;
    Ok(())
}

/// The public key in a file, or `key` itself where there is no such file.
fn read_key(key: &str) -> Result<String, Problem> {
    match read_bounded(Path::new(key), SIGNATURE_BYTES_MAX) {
        Ok(Some(bytes)) => String::from_utf8(bytes).map_err(|_| fault(key, &Fault::Key("not text".into()))),
        Ok(None) => Ok(key.to_owned()),
        Err(error) => Err(Problem::new(Code::AuditKey, format!("{key}: {error}"))),
    }
}

fn verify_volume(volume: &str, key: Option<String>) -> Result<Seal, Stop> {
    let (client, status) = ask::daemon(volume)?;
    let SealedTrail { seal, signature } = client.seal()?;
    let key = key.unwrap_or(status.audit.key);
    let mut verifier = Verifier::new(&seal, &signature, &key).map_err(|e| fault(volume, &e))?;
    sealed_records(&client, &mut verifier, volume, |_| Ok(()))?;
    Ok(verifier.finish().map_err(|e| fault(volume, &e))?)
}

/// Fetches the records that were sealed, verifies them, and calls `each` with each.
fn sealed_records(
    client: &Client,
    verifier: &mut Verifier,
    volume: &str,
    mut each: impl FnMut(&str) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut left = verifier.seal().records;
    if left == 0 {
        return Ok(());
    }
    records(client, |record| {
        verifier.push(record.as_bytes()).map_err(|e| fault(volume, &e))?;
        each(record)?;
        left -= 1;
        Ok(left > 0)
    })
}

fn export(volume: &str, output: Option<&Path>) -> Result<(), Stop> {
    let (client, status) = ask::daemon(volume)?;
    let SealedTrail { seal, signature } = client.seal()?;
    let mut verifier = Verifier::new(&seal, &signature, &status.audit.key).map_err(|e| fault(volume, &e))?;
    let mut write = |out: &mut dyn Write| -> Result<(), Stop> {
        out.write_all(export_head(&seal, &signature).as_bytes())?;
        sealed_records(&client, &mut verifier, volume, |record| Ok(writeln!(out, "{record}")?))?;
        Ok(out.flush()?)
    };
    match output {
        None => write(&mut io::BufWriter::new(io::stdout().lock()))?,
        Some(path) => {
            // A file that is there may be evidence: it is not written over.
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let file = made.map_err(|error| Problem::new(Code::OutputFile, format!("{}: {error}", path.display())))?;
            let written = write(&mut io::BufWriter::new(&file)).and_then(|()| Ok(file.sync_all()?));
            if written.is_err() {
                // Half an export would only look like a forged one.
                let _ = std::fs::remove_file(path);
            }
            written?;
        }
    }
    verifier.finish().map_err(|e| fault(volume, &e))?;
    Ok(())
}
