//! The trail of a volume in use: adds records, counts repeated events, and signs where the trail ends.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use zeroize::Zeroizing;

use super::Error;
use super::event::{self, Actor, Entry, Event, Object, Reason, RegistryFacts};
use super::record::{self, Chain, Digest, Record};
use super::reports::{self, Reports};
use super::verify::{FORMAT, Seal};
use crate::fs::{self, Fs};
use crate::label::Header;
use crate::limits::AUDIT_PAGE_BYTES_MAX;
use crate::mirror::{ErrorCounts, State};
use crate::os::process::{self, Identity};
use crate::pages;
use crate::policy::Verdict;
use crate::problem::{Code, Problem};
use crate::registry::{DerivedKey, VerifiedRegistry};
use crate::units::Uuid;

/// How long an event that the program notices again is only counted. Then one record says how often. If the program
/// noticed another event in between, the event is recorded again instead.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(60);

/// Most records of one event in that time: a device that comes and goes all day must not fill the volume.
const REPEATS_RECORDED_MAX: u32 = 8;

/// Most events whose repetitions are counted at once.
const RECENT_MAX: usize = 256;

/// How many records from the end of the trail are searched. The search is for reports that a crash left on the host
/// although they are in the trail, and for the end of the last mount.
const LOOK_BACK_MAX: usize = 1024;

/// How many findings end a check.
const FINDINGS_MAX: usize = 100;

/// The audit trail of an open volume.
pub struct Audit {
    fs: Arc<Fs>,
    volume: Uuid,
    label: String,
    registry_ids: Mutex<Vec<String>>,
    seed: Zeroizing<[u8; 32]>,
    identity: Identity,
    reports: Option<Reports>,
    seen: Mutex<Seen>,
    recent: Mutex<Vec<Recent>>,
    head: Mutex<Head>,
    /// Records that are not known to be on the devices, in their order.
    pending: Mutex<VecDeque<Pending>>,
    /// When to see next whether the volume takes the reports that the host keeps of this mount. Nothing when it keeps
    /// none.
    kept: Mutex<Option<Instant>>,
}

/// A record that the next commit makes durable, or else no commit.
struct Pending {
    /// The record is durable when so many operations are.
    change: u64,
    seq: u64,
    /// Nothing once the host has the record.
    record: Option<Record>,
}

/// What the trail says of each replica and of the volume.
struct Seen {
    states: Vec<State>,
    errors: Vec<(ErrorCounts, Option<Instant>)>,
    read_only: bool,
    /// What is known to have blocks that no replica can give.
    lost: BTreeSet<String>,
}

/// An event that was recorded lately.
struct Recent {
    since: Instant,
    record: Record,
    /// How often it was recorded.
    times: u32,
    /// Whether another event was noticed since. Then this event again is not merely a repetition: a device that is
    /// refused, approved and refused once more was refused twice.
    followed: bool,
}

/// The end of the trail, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many records there are.
    pub records: u64,
    /// Digest of the last.
    pub digest: Digest,
    /// The public key that verifies seals.
    pub public_key: String,
}

impl Audit {
    /// The trail of the volume in `fs`. `states` are those in which the replicas were found, which the first record
    /// will tell.
    ///
    /// # Errors
    /// When the signing key cannot be made, or the trail cannot be read. If only its last page is lost, the volume can be
    /// read, and the host keeps the records.
    pub fn new(
        fs: Arc<Fs>,
        header: &Header,
        seed: Zeroizing<[u8; 32]>,
        witness: Option<&Path>,
        states: &[State],
    ) -> Result<Self, Error> {
        let id = |row: &Option<crate::label::ReplicaRow>| row.as_ref().map_or("", |row| &row.registry_id).to_owned();
        let last = match fs.audit_last(u64::MAX) {
            // Whatever is changed must be recorded, and nothing continues a chain whose end nobody knows.
            Err(error) if error.is_unreadable_page() => {
                let why = format!("the audit trail cannot be continued, because its end is lost: {error}");
                fs.store().poison_because(Code::FilesystemDamaged, why);
                None
            }
            last => last?,
        };
        let read_only = fs.store().writable().is_err();
        let last = last.as_ref().map(|(seq, bytes)| (*seq, bytes.as_slice()));
        let chain = Chain::after(Digest::genesis(header.volume), last);
        let public_key = DerivedKey::from_seed(&seed).map_err(Error::Key)?.public_key();
        Ok(Self {
            fs,
            volume: header.volume,
            label: header.label.clone(),
            registry_ids: Mutex::new(header.replicas.iter().map(id).collect()),
            seed,
            identity: process::identity(),
            reports: witness.map(|folder| Reports::new(folder, header.volume)),
            seen: Mutex::new(Seen {
                states: states.to_vec(),
                errors: vec![(ErrorCounts::default(), None); states.len()],
                read_only,
                lost: BTreeSet::new(),
            }),
            recent: Mutex::default(),
            head: Mutex::new(Head { records: chain.seq, digest: chain.head, public_key }),
            pending: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    /// The user who runs this process, as an actor.
    pub fn user(&self) -> Actor {
        Actor::user(&self.identity)
    }

    /// Name of the host.
    pub fn host(&self) -> &str {
        &self.identity.host
    }

    /// A replica, as records name it.
    pub fn replica(&self, index: usize) -> Object {
        let device = self.fs.store().mirror().device_name(index);
        let registry_id = self.registry_ids.lock().get(index).cloned().unwrap_or_default();
        Object::Replica { index, registry_id, device: event::cut(&device) }
    }

    /// A row of the replica table has another replica from now on, of which the trail has told; or none.
    pub fn set_replica(&self, index: usize, registry_id: &str) {
        if let Some(known) = self.registry_ids.lock().get_mut(index) {
            registry_id.clone_into(known);
        }
        let mut seen = self.seen.lock();
        let rows = seen.states.len().max(index + 1);
        seen.states.resize(rows, State::Missing);
        seen.errors.resize(rows, (ErrorCounts::default(), None));
        seen.states[index] = State::Missing;
        seen.errors[index] = (ErrorCounts::default(), None);
    }

    /// Records an entry. The record is durable with the next commit, within a second at the latest. This never fails:
    /// what the volume does not take goes to the host's reports and, as everything does, to the log.
    pub fn record(&self, entry: Entry) {
        let fresh = Record::new(&entry, record::now());
        if matches!(entry.actor, Actor::System { .. }) {
            let mut recent = self.recent.lock();
            let mut at = recent.iter().position(|same| same.record.repeats(&fresh));
            if let Some(same) = at.map(|index| &mut recent[index]) {
                if !same.followed || same.times >= REPEATS_RECORDED_MAX {
                    same.record.count(&fresh.time);
                    log::info!("audit: again: {}", said(&fresh));
                    return;
                }
                same.times += 1;
            } else if recent.len() < RECENT_MAX {
                at = Some(recent.len());
                recent.push(Recent { since: Instant::now(), record: fresh.clone(), times: 1, followed: false });
            }
            recent.iter_mut().enumerate().for_each(|(index, recent)| recent.followed = Some(index) != at);
        }
        self.write(vec![fresh]);
    }

    /// The entry for a replica's device on which the policy's verdict has changed.
    pub fn judged(&self, index: usize, verdict: &Verdict) -> Entry {
        let event = if verdict.approved { Event::DeviceApproved } else { Event::DeviceRefused };
        Entry::noticed(self.replica(index), event).because(verdict.reasons.iter().map(Reason::from))
    }

    /// The entry for a device that somebody asked to be brought back, and that was refused.
    pub fn resync_refused(device: &Path, why: &Problem) -> Entry {
        let object = Object::Device { device: event::cut(&device.to_string_lossy()) };
        Entry::noticed(object, Event::ResyncRefused).because([why.into()])
    }

    /// The entry for a device that shows a label of the volume and is not used.
    pub fn left_out(device: &Path, why: &Problem) -> Entry {
        let object = Object::Device { device: event::cut(&device.to_string_lossy()) };
        Entry::noticed(object, Event::DeviceLeftOut).because([why.into()])
    }

    /// The entry for a registry that came into force.
    pub fn registry_accepted(registry: &VerifiedRegistry) -> Entry {
        let object = Object::Registry { version: Some(registry.version()) };
        Entry::noticed(object, Event::RegistryAccepted(RegistryFacts::of(registry)))
    }

    /// The entry for a registry file that does not come into force.
    pub fn registry_refused(why: &Problem) -> Entry {
        let entry = Entry::noticed(Object::Registry { version: None }, Event::RegistryRefused);
        entry.because([why.into()])
    }

    /// Records what has changed since the last call: states of replicas, errors, whether changes are taken. Also
    /// records how often events were repeated. Cheap when nothing has changed. To be called before a commit whose root
    /// will tell of the change.
    pub fn observe(&self) {
        let mut entries = Vec::new();
        {
            let mut seen = self.seen.lock();
            for index in 0..seen.states.len() {
                self.observe_replica(&mut seen, index, false, &mut entries);
            }
            let lost: BTreeSet<String> = self.fs.store().lost().into_keys().collect();
            if lost != seen.lost {
                let found: Vec<&String> = lost.difference(&seen.lost).collect();
                if !found.is_empty() {
                    let text = |what: &String| format!("blocks of {what} are on no replica");
                    let reason = |what: &&String| Reason::new(Code::BlocksLost, &text(what));
                    let reasons: Vec<Reason> = found.iter().map(reason).collect();
                    entries.push(Entry::noticed(Object::Volume, Event::DamageFound).because(reasons));
                }
                seen.lost = lost;
            }
            match self.fs.store().writable() {
                Err(error) if !seen.read_only => {
                    seen.read_only = true;
                    let reason = Reason::new(self.fs.store().read_only_code(), &error.to_string());
                    entries.push(Entry::noticed(Object::Volume, Event::ReadOnly).because([reason]));
                }
                Ok(()) if seen.read_only => {
                    seen.read_only = false;
                    entries.push(Entry::noticed(Object::Volume, Event::ReadWrite));
                }
                _ => {}
            }
        }
        if let Some(why) = self.fs.store().poisoned() {
            self.hand_over(&pages::Error::ReadOnly(why.to_owned()).into());
        }
        entries.into_iter().for_each(|entry| self.record(entry));
        self.write_repetitions(|recent| recent.since.elapsed() >= REPEAT_WINDOW);
    }

    /// Gives the host the records that no commit will make durable any more.
    pub fn hand_over(&self, why: &fs::Error) {
        let lost: Vec<Record> = self.settle().iter_mut().filter_map(|pending| pending.record.take()).collect();
        self.report(&lost, why);
    }

    fn observe_replica(&self, seen: &mut Seen, index: usize, ending: bool, entries: &mut Vec<Entry>) {
        let mirror = self.fs.store().mirror();
        let (state, why) = mirror.state(index);
        let before = std::mem::replace(&mut seen.states[index], state);
        if before != state {
            let mut entry = Entry::noticed(self.replica(index), Event::ReplicaState { from: before, to: state });
            let verdict = mirror.device(index).filter(|_| state == State::Refused).map(|device| device.verdict());
            let reasons = verdict.map(|verdict| verdict.reasons).unwrap_or_default();
            if reasons.is_empty() {
                entry = entry.because(why.map(|why| Reason::new(Code::Replica, &why)));
            }
            entries.push(entry.because(reasons.iter().map(Reason::from)));
        }
        let errors = mirror.errors(index);
        let (told, when) = seen.errors[index];
        if errors != told && (ending || when.is_none_or(|when| when.elapsed() >= REPEAT_WINDOW)) {
            seen.errors[index] = (errors, Some(Instant::now()));
            let since = ErrorCounts {
                read: errors.read.saturating_sub(told.read),
                write: errors.write.saturating_sub(told.write),
                integrity: errors.integrity.saturating_sub(told.integrity),
                repaired: errors.repaired.saturating_sub(told.repaired),
            };
            entries.push(Entry::noticed(self.replica(index), Event::ReplicaErrors(since)));
        }
    }

    /// Begins the trail of this mount: puts the host's reports into the trail, then `entries`, and makes both durable.
    ///
    /// # Errors
    /// When the commit fails.
    pub fn begin(&self, entries: Vec<Entry>) -> fs::Result<()> {
        let mut records: Vec<Record> = entries.iter().map(|entry| Record::new(entry, record::now())).collect();
        if self.fs.store().committable().is_err() {
            self.write(records);
            return Ok(());
        }
        match self.append_after_reports(&mut records) {
            // A full volume is mounted all the same: the host and the log have what should be recorded.
            Err(error) if error.is_no_space() && self.fs.store().poisoned().is_none() => {
                self.report(&records, &error);
                Ok(())
            }
            Err(error) => {
                self.observe();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Puts the reports that the host keeps of this mount into the trail, once the volume takes them. To be called now
    /// and then; cheap when there are none.
    pub fn take_back(&self) {
        let is_due = self.kept.lock().is_some_and(|at| Instant::now() >= at);
        if !is_due || self.fs.store().committable().is_err() {
            return;
        }
        // Reports that the host gets from now on are for the next time.
        *self.kept.lock() = None;
        if let Err(error) = self.append_after_reports(&mut Vec::new()) {
            log::error!("audit: the reports that this host keeps cannot go into the volume's trail yet: {error}");
            *self.kept.lock() = Some(Instant::now() + REPEAT_WINDOW);
        }
    }

    /// Puts the host's reports into the trail, then `records`, makes all durable, and has the host forget its reports.
    fn append_after_reports(&self, records: &mut Vec<Record>) -> fs::Result<()> {
        let held = self.reports.as_ref().map(Reports::hold).transpose().unwrap_or_else(|error| {
            log::error!("the reports that this host keeps cannot be read: {error}");
            None
        });
        let mut reported = held.as_ref().map(|held| held.records(&self.identity.host)).unwrap_or_default();
        if !reported.is_empty() {
            let known = self.reported_before();
            reported.retain(|record| record.reported.as_ref().is_none_or(|origin| !known.contains(&origin.digest)));
            // The host's reports come before the records of this mount.
            records.splice(0..0, reported);
        }
        if self.head().records == 0 {
            let begun = Entry::noticed(Object::Volume, Event::TrailBegun);
            records.insert(0, Record::new(&begun, record::now()));
        }
        if !records.is_empty() {
            self.append(records)?;
        }
        // Records that were in the trail before may not be durable either.
        self.fs.checkpoint()?;
        if let Some(Err(error)) = held.map(reports::Held::clear) {
            log::error!("reports that are in the trail cannot be removed from this host: {error}");
        }
        Ok(())
    }

    /// Ends the trail of this mount, before the volume is closed: records everything that is still to be said, then the
    /// end.
    pub fn end(&self) {
        self.observe();
        let mut entries = Vec::new();
        {
            let mut seen = self.seen.lock();
            for index in 0..seen.states.len() {
                self.observe_replica(&mut seen, index, true, &mut entries);
            }
        }
        // Who unmounted is not known: the kernel takes the mount down, for whoever asked it to.
        entries.push(Entry::noticed(Object::Volume, Event::Unmounted));
        self.write_repetitions(|_| true);
        entries.into_iter().for_each(|entry| self.record(entry));
    }

    /// Whether neither the trail nor this host's reports hold an end of the last mount.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn ended_by_crash(&self) -> fs::Result<bool> {
        let held = self.reports.as_ref().and_then(|reports| reports.hold().ok());
        let reported = held.map(|held| held.records("")).unwrap_or_default();
        let ends = |record: &Record| match record.event.as_str() {
            "mounted" => Some(true),
            "unmounted" | "volume-created" => Some(false),
            _ => None,
        };
        if let Some(crashed) = reported.iter().rev().find_map(ends) {
            return Ok(crashed);
        }
        for record in last_records(&self.fs) {
            let record = match record {
                // What cannot be read holds no end of the last mount.
                Err(error) if error.is_unreadable_page() => return Ok(true),
                record => record?,
            };
            if let Some(crashed) = record.as_ref().and_then(ends) {
                return Ok(crashed);
            }
        }
        Ok(false)
    }

    /// Digests of the reports that are among the trail's last records.
    fn reported_before(&self) -> Vec<Digest> {
        let records = last_records(&self.fs).map_while(Result::ok).flatten();
        records.filter_map(|record| record.reported).map(|reported| reported.digest).collect()
    }

    /// Writes the counts of repeated events for which `due` holds.
    fn write_repetitions(&self, due: impl Fn(&Recent) -> bool) {
        let mut counted = Vec::new();
        self.recent.lock().retain(|recent| {
            let is_due = due(recent);
            if is_due && recent.record.repeated.is_some() {
                counted.push(Record { time: record::now(), ..recent.record.clone() });
            }
            !is_due
        });
        if !counted.is_empty() {
            self.write(counted);
        }
    }

    /// Writes to the trail or, if that fails, to the host's reports.
    fn write(&self, mut records: Vec<Record>) {
        if let Err(error) = self.append(&mut records) {
            self.report(&records, &error);
        }
    }

    fn report(&self, records: &[Record], why: &fs::Error) {
        for record in records {
            log::info!("audit: {} ({why})", said(record));
            // A record that came from a host's reports stays there.
            let Some(reports) = self.reports.as_ref().filter(|_| record.reported.is_none()) else { continue };
            match reports.add_record(record.clone()) {
                Ok(()) => drop(self.kept.lock().get_or_insert_with(Instant::now)),
                Err(error) => log::error!("audit: a record can be kept neither by the volume nor by the host: {error}"),
            }
        }
    }

    fn append(&self, records: &mut [Record]) -> fs::Result<()> {
        let genesis = Digest::genesis(self.volume);
        let mut digests = Vec::new();
        // Each may be preceded by one that says that the clock went back.
        let change = self.fs.append_audit(2 * records.len(), |last| {
            let mut chain = Chain::after(genesis, last.as_ref().map(|(seq, bytes)| (*seq, bytes.as_slice())));
            let mut lines = Vec::new();
            for record in records.iter_mut() {
                // The time is set here, where nobody comes between. So times only go back when the clock does.
                record.time = record::now();
                if let Some(from) = chain.time.clone().filter(|before| *before > record.time) {
                    let entry = Entry::noticed(Object::Volume, Event::ClockWentBack { from });
                    lines.push(chain.push(&mut Record::new(&entry, record.time.clone())));
                }
                lines.push(chain.push(record));
                digests.push(chain.head);
            }
            lines
        })?;
        let kept = |record: &Record| Some(record.clone()).filter(|record| record.reported.is_none());
        self.settle().extend(records.iter().map(|r| Pending { change, seq: r.seq, record: kept(r) }));
        let mut head = self.head.lock();
        for (record, digest) in records.iter().zip(digests) {
            // The digest comes first: the system's log cuts long messages.
            log::info!("audit: record {} has digest {digest}: {}", record.seq, said(record));
            if record.seq > head.records {
                (head.records, head.digest) = (record.seq, digest);
            }
        }
        Ok(())
    }

    /// The end of the trail, durable or not yet. Never waits.
    pub fn head(&self) -> Head {
        self.head.lock().clone()
    }

    /// The durable end of the trail: what a crash at this moment would leave.
    fn durable_head(&self) -> fs::Result<Head> {
        let head = self.head();
        // After a failed commit the records in memory may never be on the devices. Then only those known to be durable
        // count.
        let _ = self.fs.sync();
        let end = self.settle().iter().map(|pending| pending.seq).min().unwrap_or(head.records + 1);
        let last = self.fs.audit_last(end)?;
        let last = last.as_ref().map(|(seq, bytes)| (*seq, bytes.as_slice()));
        let chain = Chain::after(Digest::genesis(self.volume), last);
        Ok(Head { records: chain.seq, digest: chain.head, public_key: head.public_key })
    }

    /// Drops the records that are durable by now, and returns the others.
    fn settle(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        let durable = self.fs.durable_changes();
        let mut pending = self.pending.lock();
        while pending.front().is_some_and(|first| first.change <= durable) {
            pending.pop_front();
        }
        pending
    }

    /// Records after number `after`, in order, in pages of [`AUDIT_PAGE_BYTES_MAX`]. An empty page means that there are
    /// no more.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn page(&self, after: u64) -> fs::Result<Vec<Vec<u8>>> {
        let found = self.fs.audit(after, AUDIT_PAGE_BYTES_MAX)?;
        Ok(found.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// Signs the trail as it is now. Returns the line that is signed, and the content of a minisign signature file.
    ///
    /// # Errors
    /// Of the metadata, or when the system gives no random bytes.
    pub fn seal(&self) -> Result<(String, String), Error> {
        let Head { records, digest, public_key } = self.durable_head()?;
        let store = self.fs.store();
        let seal = Seal {
            format: FORMAT.to_owned(),
            volume: self.volume.to_string(),
            label: self.label.clone(),
            sealed: record::now(),
            records,
            head: digest,
            generation: store.generation().0,
            registry_version: store.quorum().registry_version(),
            key: public_key,
            program: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let line = seal.line();
        let comment = format!("volume {}, {records} records, sealed {}", self.volume, seal.sealed);
        let signed = DerivedKey::from_seed(&self.seed).and_then(|key| key.sign(line.as_bytes(), &comment));
        Ok((line, signed.map_err(Error::Key)?))
    }
}

/// A record for the log.
fn said(record: &Record) -> String {
    let reasons: Vec<String> = record.reasons.iter().map(|r| format!("{} [{}]", r.text, r.code)).collect();
    let because = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    let Record { event, object, details, .. } = record;
    format!("{event} {object} {details}{because}")
}

/// The host that mounted the volume last, as the end of its trail tells.
///
/// # Errors
/// Of the metadata.
pub fn last_host(fs: &Fs) -> fs::Result<Option<String>> {
    for record in last_records(fs) {
        if let Some(record) = record?.filter(|record| record.event == "mounted") {
            return Ok(record.details.get("host").and_then(|host| host.as_str()).map(str::to_owned));
        }
    }
    Ok(None)
}

/// The records that are searched, the last one first.
fn last_records(fs: &Fs) -> impl Iterator<Item = fs::Result<Option<Record>>> {
    Record::from_the_end(|before| fs.audit_last(before)).take(LOOK_BACK_MAX)
}

/// Verifies the chain as it is in the metadata. Returns what is wrong, one sentence each.
///
/// # Errors
/// Of the metadata.
pub fn check(fs: &Fs, volume: Uuid) -> fs::Result<Vec<String>> {
    let mut chain = Chain::after(Digest::genesis(volume), None);
    let mut findings = Vec::new();
    loop {
        let part = fs.audit(chain.seq, AUDIT_PAGE_BYTES_MAX)?;
        if part.is_empty() || findings.len() >= FINDINGS_MAX {
            return Ok(findings);
        }
        for (seq, bytes) in part {
            let fits = |record: Record| record.seq == seq && record.prev == chain.head;
            if !Record::parse(&bytes).is_some_and(fits) {
                findings.push(format!("record {seq} of the audit trail does not continue the one before"));
            }
            chain = Chain { seq, head: Digest::of(&bytes), time: None };
        }
    }
}

/// Writes the first record of a volume that is being made. It is durable with the volume's first commit.
///
/// # Errors
/// When the record cannot be written.
pub fn begin_with(fs: &Fs, volume: Uuid, event: Event) -> fs::Result<u64> {
    let entry = Entry::done(Actor::user(&process::identity()), Object::Volume, event);
    let mut record = Record::new(&entry, record::now());
    fs.append_audit(1, |_| vec![Chain::after(Digest::genesis(volume), None).push(&mut record)])
}
