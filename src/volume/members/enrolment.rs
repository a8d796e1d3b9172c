//! The replica table of a volume in use changes: a replica is added, removed, or exchanged for another.
//!
//! # The order of what is written
//!
//! The table stands in the label, and a label is in force when a root names it ([`label`]). So a change has three parts:
//!
//! 1. The new label is made durable on a device that is being added, in front of everybody else.
//! 2. Then on every replica in use, copy by copy.
//! 3. Then a commit publishes a root that names it.
//!
//! When the power fails in between, the next mount finds a copy of the label before on some replica, and undoes the
//! change; or it finds none, and the new label is in force ([`Assembled::settle_label`](super::super::Assembled)). Both
//! tables must therefore be right for the root before the change:
//!
//! * **Added**: that root does not name the new replica, so the table without it is right. With it, the new replica
//!   lacks everything, and is resynced.
//! * **Removed**: before the label changes, a root is published that does not name the replica any more. So the table
//!   without it is right. With it, the replica was left behind, and is resynced.
//!
//! A row is not taken again before the others were ([`Fields::free_row`]): what old roots say of its replica was said of
//! another device.
//!
//! # Never fewer copies
//!
//! A replica that takes another's place is one more copy until it has everything. Only then is the other removed
//! ([`Members::settle`]); its row says whose place it takes, so that this is also done when the volume was mounted anew
//! in between. A replica is removed only while the others fulfil the policy, and another is in sync.
//!
//! The label of a removed replica is overwritten, with every key slot. A device that is away keeps its label: it is left
//! out when it comes back, because no label in force names it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::super::assembled::Replica;
use super::super::content;
use super::super::create::prepare;
use super::super::destroy::Doomed;
use super::super::error::{Error, System};
use super::super::task::{Outcome, TaskKind};
use super::{Examination, Members};
use crate::audit::{Entry, Event, Known};
use crate::crypto::random_bytes;
use crate::device::AlignedBuf;
use crate::label::{self, Fields, Header, HeaderCopy, ReplicaRow};
use crate::limits::DEVICE_TIMEOUT_S;
use crate::mirror::State;
use crate::policy::clock::now_unix_s;
use crate::policy::{ApprovedDevice, ApprovedEntry};
use crate::problem::{Code, Problem};
use crate::registry::hex;
use crate::units::{BLOCK_SIZE, Uuid};

/// What a change of the table would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in words.
    pub steps: Vec<String>,
    /// Bytes that are copied.
    pub bytes: u64,
}

/// A replica that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its identifier in the registry.
    pub registry_id: String,
    /// Its device node; empty when it was not there.
    pub device: String,
    /// Why its label and key slots could not be overwritten, if they could not.
    pub not_wiped: Option<String>,
}

impl Members {
    /// What [`enrol`](Self::enrol) would do. Nothing is written.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol).
    pub fn plan_enrol(&self, device: &ApprovedDevice, replaces: Option<usize>) -> Result<Plan, Error> {
        self.check_newcomer(device, replaces)?;
        let usage = self.store.usage();
        let bytes = usage.total_blocks.saturating_sub(usage.free_blocks) * BLOCK_SIZE as u64;
        let id = device.registry_entry().registry_id.clone();
        let mut steps = vec![
            format!("write a label to {}, and enrol it as {id}", device.name()),
            format!("copy {bytes} bytes to it from the replicas in sync, while the volume is in use"),
        ];
        if let Some(old) = replaces {
            steps.push(format!("then remove {}, and overwrite its label and key slots", self.name(old)));
        }
        Ok(Plan { steps, bytes })
    }

    /// Enrols a device as a new replica, and begins to give it everything; with `replaces`, the replica of that row is
    /// removed when the new one is in sync. Returns the new replica's row.
    ///
    /// # Errors
    /// [`Error::Table`] and what the policy and the device say, before anything is written. After that, what writing says:
    /// the replica may be enrolled then, and not be resynced.
    pub fn enrol(&self, device: impl Into<Arc<ApprovedDevice>>, replaces: Option<usize>) -> Result<usize, Error> {
        let device = device.into();
        self.check_newcomer(&device, replaces)?;
        let bytes = label::usable_bytes(device.size_bytes());
        // Whoever comes back does not wait for what a device takes that nobody knows yet.
        self.confirm_newcomer(&device)?;
        prepare(&device, bytes)?;
        let _one_at_a_time = self.rejoining.lock();
        self.check_table(&device, replaces)?;
        let before = self.header();
        let full = || self.table(&device, Code::ReplicaTableFull, "the volume has as many replicas as it can have");
        let row = before.free_row().ok_or_else(full)?;
        let index = usize::from(row);
        let uuid = Uuid::from_random(random_bytes()?);
        let entry = device.registry_entry();
        self.confirm_newcomer(&device)?;
        self.store.mirror().enrol(index);
        self.store.set_device_bytes(index, bytes);
        self.begin_row(index, Some(&entry));
        let now = Known { registry_id: entry.registry_id.clone(), identity: hex(&entry.identity_digest) };
        let event = Event::ReplicaAdded { now, replaces: replaces.map(|old| self.registry_id(old)) };
        let added = Entry::done(self.audit.user(), self.audit.replica(index), event);
        let new = ReplicaRow {
            device: uuid,
            registry_id: entry.registry_id.clone(),
            identity: entry.identity_digest,
            replaces: replaces.and_then(|old| u16::try_from(old).ok()),
        };
        let changed = self.change_label(Some(&(device.clone(), row, uuid, bytes)), added, |fields| {
            fields.replicas[index] = Some(new);
            fields.last_row = row;
        });
        if let Err(error) = changed {
            if self.row(index).is_none() {
                // What the device has of a label is another's by the next change.
                self.begin_row(index, None);
                self.wipe(&device, uuid).unwrap_or_else(|why| log::warn!("{}: {why}", device.name()));
            }
            return Err(error);
        }
        let header = self.header().for_device(row, uuid, bytes).map_err(|source| self.unlabelled(&device, source))?;
        self.joining.fetch_or(1 << index, Ordering::AcqRel);
        let replica = Replica { device: device.clone(), copies: vec![header.clone()], header, damaged: Vec::new() };
        self.enter(index, &replica, Some(&device), true)?;
        self.watch_label(index, Some(replica.header));
        Ok(index)
    }

    /// What [`remove`](Self::remove) would do. Nothing is written.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn plan_remove(&self, index: usize) -> Result<Plan, Error> {
        self.check_leaver(index)?;
        let mut steps = vec![format!("remove {} from the volume", self.name(index))];
        steps.push(match self.device(index) {
            Some(device) => format!("overwrite its label and key slots on {}", device.name()),
            None => "its device is not there: its key slots stay on it, until scelle destroy".to_owned(),
        });
        Ok(Plan { steps, bytes: 0 })
    }

    /// Removes a replica from the volume, and overwrites its label.
    ///
    /// # Errors
    /// [`Error::Table`]: the others do not fulfil the policy without it, or none of them is in sync. After that, what the
    /// commit says.
    pub fn remove(&self, index: usize) -> Result<Removed, Error> {
        let _one_at_a_time = self.rejoining.lock();
        self.remove_locked(index, None)
    }

    fn remove_locked(&self, index: usize, replaced_by: Option<usize>) -> Result<Removed, Error> {
        let row = self.check_leaver(index)?;
        let (device, registry_id) = (self.device(index), row.registry_id.clone());
        let was_in_sync = self.state(index) == State::InSync;
        // From here on another may fail: then this one stays.
        if !self.store.mirror().withdraw(index, "it is being removed") {
            return Err(self.last(index));
        }
        let left = self.leave_table(index, &row, replaced_by, was_in_sync);
        if self.row(index).is_some() {
            let error = left.err().unwrap_or_else(|| self.last(index));
            if was_in_sync && let Err(why) = self.come_back_alone(index, false) {
                log::error!("{} was to be removed, stays, and does not come back: {why}", self.name(index));
            }
            return Err(error);
        }
        self.store.mirror().retire(index);
        self.begin_row(index, None);
        left?;
        let not_wiped = match &device {
            Some(_) if self.lacks(was_in_sync, replaced_by).is_some() => {
                Some("the others have become too few meanwhile: it may be needed".to_owned())
            }
            Some(device) => self.wipe(device, row.device).err(),
            None => Some("its device is not there".to_owned()),
        };
        let name = device.as_ref().map_or(String::new(), |device| device.name().to_owned());
        match &not_wiped {
            None => log::warn!("replica {registry_id} ({name}) is removed, and its label overwritten"),
            Some(why) => log::warn!("replica {registry_id} ({name}) is removed; its label is not overwritten: {why}"),
        }
        Ok(Removed { registry_id, device: name, not_wiped })
    }

    /// Takes a replica that is out of the set out of the newest root, and then out of the label in force.
    fn leave_table(
        &self,
        index: usize,
        row: &ReplicaRow,
        replaced_by: Option<usize>,
        was_in_sync: bool,
    ) -> Result<(), Error> {
        let object = self.audit.replica(index);
        // A root that names it would make it one that is missing. A commit under way may name it still.
        self.audit.observe();
        self.fs.checkpoint()?;
        if let Some((code, why)) = self.lacks(was_in_sync, replaced_by) {
            let what = format!("{} is not removed", self.name(index));
            return Err(Error::Table { what, code, why });
        }
        let before = Known { registry_id: row.registry_id.clone(), identity: hex(&row.identity) };
        let event = Event::ReplicaRemoved { before, replaced_by: replaced_by.map(|new| self.registry_id(new)) };
        let removed = Entry::done(self.audit.user(), object, event);
        self.change_label(None, removed, |fields| {
            fields.replicas[index] = None;
            let leaver = u16::try_from(index).ok();
            let others = fields.replicas.iter_mut().flatten();
            others.filter(|other| other.replaces == leaver).for_each(|other| other.replaces = None);
        })?;
        Ok(())
    }

    /// What the replicas in sync lack without one that `was_in_sync` and that another may have replaced.
    fn lacks(&self, was_in_sync: bool, replaced_by: Option<usize>) -> Option<(Code, String)> {
        if replaced_by.is_some_and(|new| self.state(new) != State::InSync) {
            return Some((Code::ReplicaLast, "the one that was to take its place is not in sync any more".to_owned()));
        }
        let (quorum, in_sync) = (self.store.quorum(), self.store.mirror().in_sync());
        if in_sync == 0 {
            return Some((Code::ReplicaLast, self.store.mirror().nothing_in_sync()));
        }
        let objection = quorum.objections(&quorum.entries(in_sync)).into_iter().next().filter(|_| was_in_sync);
        objection.map(|objection| (objection.code, format!("of the others, {}", objection.text)))
    }

    /// Does what follows from the end of a replica's resync: a replica that takes another's place takes it, one that was
    /// being added and is not to be is removed. Returns how the task has ended.
    pub(super) fn settle(&self, index: usize, outcome: Outcome) -> Outcome {
        let joining = self.joining.load(Ordering::Acquire) >> index & 1 == 1;
        if self.state(index) == State::InSync {
            self.joining.fetch_and(!(1 << index), Ordering::AcqRel);
        }
        match outcome {
            Outcome::Cancelled if joining || self.replaces(index).is_some() => {
                let _one_at_a_time = self.rejoining.lock();
                // Somebody may have brought it back meanwhile, or it was a whole replica before.
                let has_before = self.at_mount.lock().has_before.get(index).copied().unwrap_or_default();
                if self.state(index) != State::Stale
                    || self.store.mirror().last_root(index).is_some()
                    || has_before != 0
                {
                    return Outcome::Cancelled;
                }
                if let Err(error) = self.remove_locked(index, None) {
                    log::error!("{error}");
                    return Outcome::Failed(error.into());
                }
                Outcome::Cancelled
            }
            Outcome::Done => {
                self.take_place(index).map_or_else(|error| Outcome::Failed(error.into()), |()| Outcome::Done)
            }
            other => other,
        }
    }

    /// Removes the replica whose place another takes that is in sync by now.
    fn take_place(&self, index: usize) -> Result<(), Error> {
        let _one_at_a_time = self.rejoining.lock();
        let Some(old) = self.replaces(index).filter(|_| self.state(index) == State::InSync) else { return Ok(()) };
        let removed = self.remove_locked(old, Some(index)).inspect_err(|error| log::error!("{error}"))?;
        match (&*removed.device, removed.not_wiped) {
            ("", _) | (_, None) => Ok(()),
            (device, Some(why)) => {
                let what = format!("{} has taken the place of {}", self.name(index), removed.registry_id);
                let why = format!("the label and key slots on {device} could not be overwritten: {why}");
                Err(Error::Table { what, code: Code::LabelNotWiped, why })
            }
        }
    }

    /// Has every replica take the place that it is enrolled for, if it is in sync: the volume was closed between the two.
    pub(in crate::volume) fn finish_replacements(&self) {
        if self.store.lost().is_empty() {
            // What goes wrong is said by the log, and the other replica stays.
            self.rows().into_iter().for_each(|index| drop(self.take_place(index)));
        }
    }

    /// What a replica's resync is part of.
    pub(super) fn kind(&self, index: usize) -> TaskKind {
        let replica = self.registry_id(index);
        match self.replaces(index) {
            Some(old) => TaskKind::Replace { replica, old: self.registry_id(old) },
            None if self.joining.load(Ordering::Acquire) >> index & 1 == 1 => TaskKind::Add { replica },
            None => TaskKind::Resync { replica },
        }
    }

    /// Puts another label in force, and has the trail tell of it: see the [module](self).
    fn change_label(
        &self,
        newcomer: Option<&(Arc<ApprovedDevice>, u16, Uuid, u64)>,
        told: Entry,
        change: impl FnOnce(&mut Fields),
    ) -> Result<(), Error> {
        let mirror = self.store.mirror();
        let mut fields = Fields::clone(&self.header());
        change(&mut fields);
        fields.sequence += 1;
        let rows: Vec<(usize, Uuid)> =
            (0..).zip(&fields.replicas).filter_map(|(i, r)| Some((i, r.as_ref()?.device))).collect();
        let in_use: Vec<(usize, Uuid)> = rows.into_iter().filter(|(index, _)| self.is_in_use(*index)).collect();
        let of = |index: usize, device: Uuid, bytes: u64| {
            let row = u16::try_from(index).unwrap_or(u16::MAX);
            let failed = |source| Error::Label { device: self.name(index), source };
            fields.for_device(row, device, bytes).map_err(failed)
        };
        let headers: Vec<(usize, Header)> = in_use
            .into_iter()
            .map(|(index, device)| Ok((index, of(index, device, self.store.device_bytes(index))?)))
            .collect::<Result<_, Error>>()?;
        let Some((_, header)) = headers.first().cloned() else {
            let (what, why) = ("the label is not changed".to_owned(), mirror.nothing_in_sync());
            return Err(Error::Table { what, code: Code::ReplicaNoSource, why });
        };
        if let Some((device, row, uuid, bytes)) = newcomer {
            let block = self.encoded(&of(usize::from(*row), *uuid, *bytes)?);
            for copy in HeaderCopy::ALL {
                let written = device.write_durably(&[copy.offset(*bytes)], &block);
                written.map_err(|error| {
                    System::error(&format!("writing the label of {}", device.name()), std::io::Error::other(error))
                })?;
            }
        }
        let mut is_somewhere = false;
        for (index, header) in headers {
            let block = Arc::new(self.encoded(&header));
            // Who fails is fenced, and has the label rewritten when it comes back.
            let write = |copy: &HeaderCopy| mirror.write_label(index, copy.offset(header.device_bytes), &block);
            if HeaderCopy::ALL.iter().all(write) {
                is_somewhere = true;
                self.watch_label(index, Some(header));
            }
        }
        if !is_somewhere {
            let (what, why) = ("no replica has taken the new label".to_owned(), mirror.reasons());
            return Err(Error::Table { what, code: Code::ReplicaNoSource, why });
        }
        self.store.quorum().saw_label(header.id());
        self.audit.record(told);
        *self.header.lock() = Arc::new(header);
        self.fs.checkpoint()?;
        Ok(())
    }

    fn encoded(&self, header: &Header) -> AlignedBuf {
        let mut block = AlignedBuf::zeroed(label::HEADER_BYTES);
        block.copy_from_slice(&header.encode(&self.keys));
        block
    }

    /// A row has another replica from now on, of which nothing is known yet; or none.
    fn begin_row(&self, index: usize, entry: Option<&ApprovedEntry>) {
        {
            let mut at_mount = self.at_mount.lock();
            let rows = at_mount.left_at.len().max(index + 1);
            at_mount.left_at.resize(rows, Default::default());
            at_mount.has_before.resize(rows, 0);
            (at_mount.left_at[index], at_mount.has_before[index]) = Default::default();
        }
        self.ledger.set_replica(index, entry.map(|entry| &entry.identity_digest), now_unix_s());
        self.audit.set_replica(index, entry.map_or("", |entry| &entry.registry_id));
        if let Some(examination) = self.examinations.lock().get_mut(index) {
            *examination = Arc::new(Examination::default());
        }
        self.watch_label(index, None);
        for bits in [&*self.sourceless, &self.joining] {
            bits.fetch_and(!(1 << index), Ordering::AcqRel);
        }
    }

    /// Whether a device can become a replica, in the place of `replaces`.
    fn check_newcomer(&self, device: &ApprovedDevice, replaces: Option<usize>) -> Result<(), Error> {
        self.check_table(device, replaces)?;
        content::refuse(device)
    }

    /// Has the policy approve a device that is to become a replica once more, directly before it is written to.
    fn confirm_newcomer(&self, device: &ApprovedDevice) -> Result<(), Error> {
        match super::objections(self.store.quorum().registry(), device).first() {
            Some(reason) => Err(self.table(device, reason.code, &reason.text)),
            None => Ok(()),
        }
    }

    /// Whether the table has a place for it.
    fn check_table(&self, device: &ApprovedDevice, replaces: Option<usize>) -> Result<(), Error> {
        self.check_open(device.name())?;
        let refuse = |code, why: &str| Err(self.table(device, code, why));
        let (header, entry) = (self.header(), device.registry_entry());
        let rows = || header.replicas.iter().flatten();
        if let Some(row) =
            rows().find(|row| row.registry_id == entry.registry_id || row.identity == entry.identity_digest)
        {
            let why = format!(
                "it is enrolled already, as {}. scelle replica resync brings that replica back. If its label is gone, remove \
                 the replica first, then add the device",
                row.registry_id
            );
            return refuse(Code::ReplicaInUse, &why);
        }
        if let Some(old) = replaces {
            let row =
                self.row(old).ok_or_else(|| self.table(device, Code::ReplicaUnknown, "nothing is to be replaced"))?;
            let is_other = |other: &ReplicaRow| other.replaces.map(usize::from) == Some(old);
            if row.replaces.is_some() || rows().any(is_other) {
                let why = format!("{} is taking another's place, or another is taking its place", self.name(old));
                return refuse(Code::ReplicaChanging, &why);
            }
        }
        let (needed, room) = (header.data_blocks, label::data_blocks(device.size_bytes()));
        if room < needed {
            let bytes = needed * BLOCK_SIZE as u64 + 2 * crate::limits::LABEL_SIZE;
            let why = format!("it has {} bytes, and a replica of this volume takes {bytes}", device.size_bytes());
            return refuse(Code::DeviceSize, &why);
        }
        let mirror = self.store.mirror();
        let in_sync = mirror.in_sync();
        if in_sync == 0 {
            return refuse(Code::ReplicaNoSource, &mirror.nothing_in_sync());
        }
        if let Some(old) = replaces {
            let mut entries = self.store.quorum().entries(in_sync & !(1 << old));
            entries.push(entry);
            if let Some(objection) = self.store.quorum().objections(&entries).first() {
                return refuse(objection.code, &format!("in the place of {}: {objection}", self.name(old)));
            }
        }
        Ok(())
    }

    /// Whether a replica can leave the volume. Returns its row.
    fn check_leaver(&self, index: usize) -> Result<ReplicaRow, Error> {
        self.check_open(&self.name(index))?;
        let refuse = |code, why: &str| {
            let what = format!("{} is not removed", self.name(index));
            Err(Error::Table { what, code, why: why.to_owned() })
        };
        let Some(row) = self.row(index) else { return refuse(Code::ReplicaUnknown, "the volume has no such replica") };
        let in_sync = self.store.mirror().in_sync();
        let left = in_sync & !(1 << index);
        if left == 0 {
            return Err(self.last(index));
        }
        // One that is not in sync is not missed: the policy judges the others as they are.
        if left != in_sync {
            let quorum = self.store.quorum();
            if let Some(objection) = quorum.objections(&quorum.entries(left)).first() {
                return refuse(objection.code, &format!("of the others, {}", objection.text));
            }
        }
        Ok(row)
    }

    fn last(&self, index: usize) -> Error {
        let what = format!("{} is not removed", self.name(index));
        let why = "no other replica is in sync: nothing would be left that has everything".to_owned();
        Error::Table { what, code: Code::ReplicaLast, why }
    }

    fn table(&self, device: &ApprovedDevice, code: Code, why: &str) -> Error {
        let what = format!("{} does not become a replica of {}", device.name(), self.volume_label);
        Error::Table { what, code, why: why.to_owned() }
    }

    fn unlabelled(&self, device: &ApprovedDevice, source: label::Error) -> Error {
        Error::Label { device: device.name().to_owned(), source }
    }

    /// Overwrites the label of a device that has left the volume, and reads it back; only if the label shows that the
    /// device is `uuid` of this volume. A device that does not answer is left behind with that.
    fn wipe(&self, device: &Arc<ApprovedDevice>, uuid: Uuid) -> Result<(), String> {
        let Some(members) = self.me.upgrade() else { return Err("the volume is being closed".to_owned()) };
        let Some(registry) = self.store.quorum().registry() else { return Err("no registry is in force".to_owned()) };
        let (sender, answer) = mpsc::channel();
        let device = Arc::clone(device);
        let wipe = move || {
            // Whoever asked may have gone on.
            let _ = sender.send(members.is_label_of(&device, uuid).and_then(|()| {
                device.lift_fence();
                let wiped = Doomed::read(Arc::clone(&device)).and_then(|doomed| doomed.destroy(&registry));
                device.fence(Problem::new(Code::Fenced, "it has left the volume"));
                wiped.map_err(|error| error.to_string())
            }));
        };
        std::thread::Builder::new().name("wipe".into()).spawn(wipe).map_err(|error| error.to_string())?;
        let silent = |_| Err(format!("it did not answer within {DEVICE_TIMEOUT_S} s"));
        answer.recv_timeout(Duration::from_secs(DEVICE_TIMEOUT_S)).unwrap_or_else(silent)
    }

    /// Whether the label of a device was written for the device `uuid` of this volume: what another volume has there is not
    /// ours to overwrite.
    fn is_label_of(&self, device: &ApprovedDevice, uuid: Uuid) -> Result<(), String> {
        let found = label::read(device).map_err(|error| error.to_string())?;
        let is_its = |header: &Header| header.volume == self.volume && header.device == uuid;
        let strange = found.whole().iter().any(|raw| raw.claims().volume != self.volume);
        match found.authentic(&self.keys).iter().any(is_its) && !strange {
            true => Ok(()),
            false => Err("it does not show the label of this replica".to_owned()),
        }
    }
}
