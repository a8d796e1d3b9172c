//! The label copies of a volume's devices: which are damaged, and how they are written anew, at the mount and while the
//! volume is in use. What a label is, is told in [`label`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::assembled::Replica;
use super::super::error::Error;
use super::Members;
use crate::audit::{Entry, Event, Reason};
use crate::device::AlignedBuf;
use crate::label::{self, Header, HeaderCopy};
use crate::mirror::State;
use crate::policy::ApprovedDevice;
use crate::problem::Code;

/// What became of a damaged label.
const REWRITTEN: &str = "was written anew";

/// How often a scrub looks at a label that is not as it must be, and how long it waits in between.
const SCRUB_LOOKS: u32 = 20;
const SCRUB_PAUSE: Duration = Duration::from_millis(100);

/// The copies that could not be read.
pub(in crate::volume) fn places(damaged: Vec<(HeaderCopy, label::Error)>) -> Vec<HeaderCopy> {
    damaged.into_iter().map(|(place, _)| place).collect()
}

/// The label of a replica in use, as this program left it.
#[derive(Default)]
pub(super) struct Watched {
    /// What every copy holds.
    header: Option<Header>,
    /// What was found in its place, if that ever was something else.
    damage: Option<String>,
}

impl Members {
    /// Writes damaged or outdated label copies of a replica in use anew, and watches the label from now on. A replica
    /// that fails is fenced.
    pub(in crate::volume) fn repair_label(&self, replica: &Replica) -> Result<(), Error> {
        let (volume, index) = (&*self.header(), replica.index());
        if !self.is_in_use(index) {
            return Ok(());
        }
        let (mut header, copies) = (replica.header.clone(), replica.outdated(volume));
        if header.id() != volume.id() {
            let device = replica.device.name().to_owned();
            header = volume
                .for_device(header.replica_index, header.device, header.device_bytes)
                .map_err(|source| Error::Label { device, source })?;
        }
        self.write_label(index, &replica.device, &header, copies);
        self.watch_label(index, Some(header));
        Ok(())
    }

    /// Watches the label of a replica from now on; or no label, when the replica has left.
    pub(super) fn watch_label(&self, index: usize, header: Option<Header>) {
        let mut labels = self.labels.lock();
        if labels.len() <= index {
            labels.resize_with(index + 1, Watched::default);
        }
        labels[index] = Watched { header, damage: None };
    }

    pub(super) fn is_in_use(&self, index: usize) -> bool {
        matches!(self.state(index), State::InSync | State::Resyncing)
    }

    fn write_label(&self, index: usize, device: &ApprovedDevice, header: &Header, copies: &[HeaderCopy]) {
        let mut block = AlignedBuf::zeroed(label::HEADER_BYTES);
        block.copy_from_slice(&header.encode(&self.keys));
        for copy in copies {
            log::warn!("{}: label copy {copy:?} is written anew", device.name());
            if let Err(error) = device.write_durably(&[copy.offset(header.device_bytes)], &block) {
                self.store.mirror().failed(index, &error);
                return;
            }
        }
    }

    /// How the label of a replica was found damaged since the replica came into use, if it was.
    pub(in crate::volume) fn label_damage(&self, index: usize) -> Option<String> {
        self.labels.lock().get(index)?.damage.clone()
    }

    /// Looks at the labels of all replicas in use, each in a thread of its own: a device that does not answer keeps nobody
    /// waiting, and is not looked at again before that look has ended.
    pub(in crate::volume) fn look_at_labels(self: &Arc<Self>) {
        for index in 0..self.store.mirror().len() {
            let bit = 1 << index;
            if self.looking.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
                continue;
            }
            let members = self.clone();
            let look = move || {
                members.look_at_label(index);
                members.looking.fetch_and(!bit, Ordering::AcqRel);
            };
            if let Err(error) = std::thread::Builder::new().name(format!("label-{index}")).spawn(look) {
                log::error!("the label of {} is not looked at: {error}", self.name(index));
                self.looking.fetch_and(!bit, Ordering::AcqRel);
            }
        }
    }

    /// Looks at one label. A copy that something else wrote over is written anew, because with the last copy the way to
    /// the volume's key would be gone; the status and the trail tell of it.
    fn look_at_label(&self, index: usize) {
        let Some(header) = self.labels.lock().get(index).and_then(|watched| watched.header.clone()) else { return };
        let Some((device, found, copies)) = self.damaged_copies(index, &header) else { return };
        // A replica that comes back has its label written. What was read before that is of no account.
        let Some(_one_at_a_time) = self.rejoining.try_lock() else { return };
        let is_same = self.device(index).is_some_and(|now| Arc::ptr_eq(&now, &device));
        if !is_same || self.labels.lock().get(index).is_none_or(|watched| watched.header.as_ref() != Some(&header)) {
            return;
        }
        let block = header.encode(&self.keys);
        let write = |copy: &HeaderCopy| self.store.mirror().rewrite(index, copy.offset(header.device_bytes), &block);
        let how = match &*copies {
            [] => "was left as it is",
            copies if copies.iter().all(write) => REWRITTEN,
            _ => "could not be written anew",
        };
        let damage = format!("its label was not what it had to be ({found}), and {how}");
        let is_new = {
            let mut labels = self.labels.lock();
            labels
                .get_mut(index)
                .is_some_and(|watched| watched.damage.replace(damage.clone()).as_ref() != Some(&damage))
        };
        if is_new || how == REWRITTEN {
            self.ledger.label_overwritten(index);
        }
        if is_new {
            log::error!("{}: {damage}", device.name());
            let entry = Entry::noticed(self.audit.replica(index), Event::DamageFound);
            self.audit.record(entry.because([Reason::new(Code::LabelOverwritten, &damage)]));
        }
    }

    /// Looks at the label of a replica now. Says what is wrong with it, if anything is, and whether it is as it must be
    /// again.
    pub(in crate::volume) fn scrub_label(&self, index: usize) -> Option<(String, bool)> {
        let watched = || self.labels.lock().get(index).and_then(|watched| watched.header.clone());
        let Some(header) = watched() else {
            // A volume that is only read has its labels left as they are.
            let found = label::read(&*self.device(index)?).and_then(|found| found.authenticate(&self.keys));
            let says = match found {
                Ok((_, damaged)) => damaged.iter().map(|(copy, why)| format!("copy {copy:?}: {why}")).collect(),
                Err(error) => vec![error.to_string()],
            };
            return (!says.is_empty()).then(|| (says.join("; "), false));
        };
        let (_, says, _) = self.damaged_copies(index, &header)?;
        // While a replica comes back, no header is written anew.
        for _ in 0..SCRUB_LOOKS {
            self.look_at_label(index);
            // The table may change meanwhile, and the label with it.
            let now = watched()?;
            if self.damaged_copies(index, &now).is_none() {
                return (now == header).then_some((says, true));
            }
            std::thread::sleep(SCRUB_PAUSE);
        }
        Some((says, false))
    }

    /// The device of a replica in use, what is wrong with its label, and the copies that are to be written anew. Nothing
    /// when all is well, or when the device is not in use any more.
    fn damaged_copies(&self, index: usize, header: &Header) -> Option<(Arc<ApprovedDevice>, String, Vec<HeaderCopy>)> {
        let device = self.device(index)?;
        let found = label::read(&*device).and_then(|found| found.authenticate(&self.keys));
        let (says, copies) = match found {
            Ok((found, damaged)) if found == *header => {
                let each: Vec<String> = damaged.iter().map(|(copy, why)| format!("copy {copy:?}: {why}")).collect();
                (each.join("; "), places(damaged))
            }
            // It was written by somebody who has the key, and who may know more.
            Ok((found, _)) => (format!("another label of this volume, number {}", found.sequence), Vec::new()),
            Err(error) => (error.to_string(), HeaderCopy::ALL.to_vec()),
        };
        let is_known = self.is_in_use(index) && device.verdict().approved && !self.closing.load(Ordering::Acquire);
        (is_known && !says.is_empty()).then_some((device, says, copies))
    }
}
