//! The host's reports: records that the volume could not take when they were made, because a mount was refused or the
//! volume took no changes. The host keeps them beside its witness. They go into the volume's trail when it can be
//! written again.
//!
//! `UUID.reports` holds records in the form of the trail, one a line, in a chain of their own that begins anew each
//! time the file does. The file is bounded: the same event again only adds to a count, and when the file is full, the
//! last record counts what could not be kept.
//!
//! Only root can read or write the file, and root could forge it. So in the trail a report is marked as what it is, a
//! host's word ([`Reported`]).
//!
//! The host's disk may hang. So everything here that touches it has a bound, and fails when that is over.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::event::{Actor, Entry, Event, Object, cut};
use super::record::{Chain, Digest, Record, Reported, now};
use crate::limits::{AUDIT_RECORD_BYTES_MAX, AUDIT_REPORTS_BYTES_MAX, HOST_DISK_TIMEOUT_S};
use crate::os::Patience;
use crate::units::Uuid;

/// The host's reports of one volume.
#[derive(Clone, Debug)]
pub struct Reports {
    folder: PathBuf,
    volume: Uuid,
    patience: Patience,
}

/// The reports, while nobody else can change them.
pub(super) struct Held {
    reports: Reports,
    lines: Vec<Vec<u8>>,
    /// The folder of the file. Its lock ends with it.
    folder: File,
}

impl Reports {
    /// The reports of `volume` in `folder`, which is the witness's.
    pub fn new(folder: &Path, volume: Uuid) -> Self {
        Self { folder: folder.to_owned(), volume, patience: Patience::new(Duration::from_secs(HOST_DISK_TIMEOUT_S)) }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.reports", self.volume))
    }

    /// Writes a report down; it is on stable storage when this returns.
    ///
    /// # Errors
    /// The system's; [`ErrorKind::TimedOut`].
    pub fn add(&self, entry: &Entry) -> io::Result<()> {
        self.add_record(Record::new(entry, now()))
    }

    pub(super) fn add_record(&self, record: Record) -> io::Result<()> {
        let reports = self.clone();
        self.patience.call(move || reports.add_now(record))
    }

    fn add_now(&self, mut record: Record) -> io::Result<()> {
        let mut held = self.hold_now()?;
        let genesis = Digest::genesis(self.volume);
        let last = held.lines.last().and_then(|line| Record::parse(line));
        let length: usize = held.lines.iter().map(|line| line.len() + 1).sum();
        let replaced = match last {
            Some(mut last) if last.repeats(&record) => {
                last.count(&record.time);
                Some(last)
            }
            Some(last) if last.event == "reports-lost" => {
                let count = last.details.get("count").and_then(serde_json::Value::as_u64).unwrap_or_default();
                Some(lost(count + 1))
            }
            _ => None,
        };
        if let Some(replaced) = replaced {
            held.lines.pop();
            record = replaced;
        } else if length + 2 * AUDIT_RECORD_BYTES_MAX > AUDIT_REPORTS_BYTES_MAX {
            record = lost(1);
        }
        let last = held.lines.last().map(|line| (held.lines.len() as u64, line.as_slice()));
        let bytes = Chain::after(genesis, last).push(&mut record);
        held.lines.push(bytes);
        held.write()
    }

    /// Locks the reports and reads them.
    ///
    /// # Errors
    /// The system's; [`ErrorKind::TimedOut`].
    pub(super) fn hold(&self) -> io::Result<Held> {
        let reports = self.clone();
        self.patience.call(move || reports.hold_now())
    }

    fn hold_now(&self) -> io::Result<Held> {
        DirBuilder::new().recursive(true).mode(0o755).create(&self.folder)?;
        let lock = File::open(&self.folder)?;
        lock.lock()?;
        let mut bytes = Vec::new();
        match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.path()) {
            Ok(file) => drop(file.take(AUDIT_REPORTS_BYTES_MAX as u64).read_to_end(&mut bytes)?),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
        Ok(Held { reports: self.clone(), lines, folder: lock })
    }
}

/// A record that says how many reports were not kept.
fn lost(count: u64) -> Record {
    let entry =
        Entry { actor: Actor::system(), object: Object::Volume, event: Event::ReportsLost { count }, reasons: vec![] };
    Record::new(&entry, now())
}

impl Held {
    /// The reports as records to be put in the volume's trail. A report that cannot be read counts as lost.
    pub(super) fn records(&self, host: &str) -> Vec<Record> {
        let mut chain = Chain::after(Digest::genesis(self.reports.volume), None);
        let (mut intact, mut records, mut damaged) = (true, Vec::new(), 0);
        for line in &self.lines {
            match Record::parse(line).filter(|_| line.len() < AUDIT_RECORD_BYTES_MAX - 4096) {
                Some(record) => {
                    intact &= record.seq == chain.seq + 1 && record.prev == chain.head;
                    chain = Chain { seq: record.seq, head: Digest::of(line), time: None };
                    let (seq, time, digest) = (record.seq, record.time.clone(), chain.head);
                    let reported = Some(Reported { host: cut(host), seq, time, digest, intact });
                    records.push(Record { time: now(), reported, ..record });
                }
                None => {
                    intact = false;
                    damaged += 1;
                }
            }
        }
        if damaged > 0 {
            records.push(lost(damaged));
        }
        records
    }

    /// Deletes the reports: they are durable elsewhere.
    pub(super) fn clear(self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let patience = self.reports.patience.clone();
        patience.call(move || {
            std::fs::remove_file(self.reports.path())?;
            self.folder.sync_all()
        })
    }

    /// Writes the new content beside the file, syncs it, and renames it over the file.
    fn write(&self) -> io::Result<()> {
        let beside = self.reports.path().with_extension("reports-new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut out = options.open(&beside)?;
        for line in &self.lines {
            out.write_all(line)?;
            out.write_all(b"\n")?;
        }
        out.sync_all()?;
        std::fs::rename(beside, self.reports.path())?;
        self.folder.sync_all()
    }
}
