//! Key found, labels authentic: which root the volume goes on from, and whether it may. The choice itself is
//! [`recovery`]'s, which is pure; here the devices are read for it. Nothing is written.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::diverged;
use super::error::{Error, System};
use super::recovery;
use super::side::Side;
use crate::audit::Accepted;
use crate::crypto::{self, Keys, VolumeKey};
use crate::device::BlockDevice;
use crate::label::{self, Header, HeaderCopy, KeySlot, Root};
use crate::mirror;
use crate::pages::provisional::Proof;
use crate::pages::{Store, StoreOptions};
use crate::policy::ApprovedDevice;
use crate::problem::{Code, Problem};
use crate::registry::{Date, VerifiedRegistry};
use crate::units::{Generation, Uuid};

/// How a volume is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// No change, not even of the label.
    pub read_only: bool,
    /// Go on although a replica that the newest root names is absent.
    pub degraded: bool,
    /// Go on from this generation, and from no other, where the last commit or the host's witness speak against it
    /// ([`Error::acceptable`]).
    pub accept_rollback: Option<Generation>,
    /// Enrol the devices anew that the registry lists otherwise than when they were enrolled ([`Assembled::swapped`]).
    pub enrol: bool,
    /// Go on, on this day (UTC), although the clock shows an earlier time than one that has been.
    pub accept_clock: Option<Date>,
    /// What the clock shows, in seconds since 1970; none: it is asked. Only tests know better.
    pub now_unix_s: Option<u64>,
    /// Most bytes of sealed blocks that are kept in memory after they were read; 0: none.
    pub cache_bytes: u64,
    /// Folder of the host's witness; none: no rollback is recognised.
    pub witness: Option<PathBuf>,
}

pub(super) struct Replica {
    pub(super) device: Arc<ApprovedDevice>,
    /// The newest of its label's copies.
    pub(super) header: Header,
    /// What each copy says that is authentic.
    pub(super) copies: Vec<Header>,
    /// Copies that cannot be read, or are older than the newest.
    pub(super) damaged: Vec<HeaderCopy>,
}

impl Replica {
    /// Its index in the replica table.
    pub(super) fn index(&self) -> usize {
        usize::from(self.header.replica_index)
    }

    /// The copies of its label that are to be written anew, when this label of the volume is in force.
    pub(super) fn outdated(&self, volume: &Header) -> &[HeaderCopy] {
        if self.header.id() == volume.id() { &self.damaged } else { &HeaderCopy::ALL }
    }

    /// Where its history lies.
    pub(super) fn place<'a>(&'a self, header: &'a Header, keys: &'a Keys) -> diverged::Place<'a> {
        let (device, index, device_bytes) = (&self.device, self.index(), self.header.device_bytes);
        diverged::Place { header, keys, device, index, device_bytes }
    }

    /// Compares the device with the volume's newest label, which must name this replica, and must have enrolled it with
    /// the entry of the registry that approves the device. A copy of a replica on another approved device is refused
    /// here: whatever its label says, the device is another.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`], [`Error::Swapped`].
    pub(super) fn check_enrolled(&self, volume: &Header) -> Result<(), Error> {
        let device = self.device.name();
        let row = volume.replicas.get(self.index()).and_then(Option::as_ref);
        let row = row.filter(|row| row.device == self.header.device && self.header.data_blocks == volume.data_blocks);
        let Some(row) = row else {
            return Err(Error::NotEnrolled { device: device.to_owned(), volume: volume.volume });
        };
        let entry = self.device.registry_entry();
        let (enrolled, listed) = (&row.registry_id, &entry.registry_id);
        let how = match (row.identity == entry.identity_digest, enrolled == listed) {
            (true, true) => return Ok(()),
            (true, false) => format!("the registry calls the same device {listed} now"),
            (false, true) => {
                format!("another device has the identifier {listed} in the registry now, and {device} is that")
            }
            (false, false) => {
                format!("{device} is {listed} in the registry: another device, with a copy of the replica")
            }
        };
        let what = format!("{device} shows replica {} of the volume, which was enrolled as {enrolled}", self.index());
        Err(Error::Swapped(format!("{what}; {how}")))
    }
}

/// A device that the registry lists otherwise than the label of its volume: who it was and who it is, each an
/// identifier and the digest of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    /// The replica that it shows.
    pub index: usize,
    /// The device.
    pub device: String,
    /// What was enrolled.
    pub enrolled: (String, [u8; 32]),
    /// The entry of the registry that approves the device.
    pub listed: (String, [u8; 32]),
}

/// A device that was given and is not used, because its label does not show that it is a replica of the volume.
pub(super) struct Unfit {
    pub(super) device: Arc<ApprovedDevice>,
    pub(super) why: label::Error,
}

impl Unfit {
    /// The error when no device can be used.
    pub(super) fn first(unfit: Vec<Self>) -> Error {
        match unfit.into_iter().next() {
            Some(Self { device, why }) => Error::Label { device: device.name().to_owned(), source: why },
            None => Error::DeviceCount { found: 0 },
        }
    }

    /// The row of the replica table for the entry of the registry that approved the device. What the label says of
    /// itself counts for nothing.
    pub(super) fn row(&self, volume: &Header) -> Option<usize> {
        let id = &self.device.registry_entry().registry_id;
        volume.replicas.iter().position(|row| row.as_ref().is_some_and(|row| row.registry_id == *id))
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is left out: {}", self.device.name(), self.why)
    }
}

/// A volume whose key is known and whose labels are authentic.
pub struct Assembled {
    pub(super) keys: Keys,
    /// The key slot that gave the key, if one was asked.
    opened_by: Option<KeySlot>,
    pub(super) header: Header,
    pub(super) replicas: Vec<Replica>,
    /// The devices that are left out because of their label.
    pub(super) unfit: Vec<Unfit>,
    /// The devices that are left out because the label in force does not name them.
    others: Vec<Replica>,
}

/// Where a volume goes on from.
pub(super) struct Chosen {
    pub(super) choice: recovery::Choice,
    /// What the replicas in sync lack of the root's commit.
    pub(super) proof: Proof,
    /// Why that is not the newest root.
    pub(super) incomplete: Option<String>,
    /// What was not decided by what is found, and that the administrator has accepted.
    pub(super) accepted: Option<String>,
    /// Slots of the ring that open on every replica in sync.
    pub(super) slots: u64,
}

impl Chosen {
    pub(super) fn new(choice: recovery::Choice, proof: Proof) -> Self {
        Self { choice, proof, incomplete: None, accepted: None, slots: 0 }
    }
}

impl Assembled {
    pub(super) fn new(
        keys: Keys,
        opened_by: Option<KeySlot>,
        replicas: Vec<Replica>,
        unfit: Vec<Unfit>,
    ) -> Result<Self, Error> {
        if replicas.is_empty() {
            return Err(Unfit::first(unfit));
        }
        // The newest label describes the volume: a replica that was away may have an older table.
        let newest = replicas.iter().max_by_key(|replica| replica.header.sequence);
        let header = newest.map(|replica| replica.header.clone()).ok_or(Error::DeviceCount { found: 0 })?;
        let mut assembled = Self { keys, opened_by, header, replicas, unfit, others: Vec::new() };
        assembled.leave_out_others();
        for pair in assembled.replicas.windows(2) {
            let [one, other] = pair else { continue };
            if one.header.replica_index == other.header.replica_index {
                let (first, second) = (one.device.name().to_owned(), other.device.name().to_owned());
                return Err(Error::SameDevice { first, second });
            }
        }
        assembled.left_out().for_each(|left_out| log::warn!("{left_out}"));
        Ok(assembled)
    }

    /// Leaves out the devices that the label does not name: a replica that was removed while its device was away, or one
    /// that was being added when the power failed. Whether a device is accepted that is another than the one enrolled is
    /// for whoever opens the volume to say.
    fn leave_out_others(&mut self) {
        let is_named =
            |replica: &Replica| !matches!(replica.check_enrolled(&self.header), Err(Error::NotEnrolled { .. }));
        let all = [std::mem::take(&mut self.replicas), std::mem::take(&mut self.others)].into_iter().flatten();
        (self.replicas, self.others) = all.partition(is_named);
        self.replicas.sort_by_key(Replica::index);
    }

    /// What is said of the devices that are left out.
    pub(super) fn left_out(&self) -> impl Iterator<Item = String> + '_ {
        self.unfit.iter().map(ToString::to_string).chain(self.others())
    }

    /// The same of those that the label in force does not name.
    pub(super) fn others(&self) -> impl Iterator<Item = String> + '_ {
        let said = |other: &Replica| format!("{} is left out: {}", other.device.name(), label::Error::NotEnrolled);
        self.others.iter().map(said)
    }

    /// Thinks of the label that the newest root of all devices names as the one in force: a label of a change that was
    /// abandoned may have the same number as a later one. Where no copy of that label is left, and several are newer, the
    /// one of a device that has the root counts.
    ///
    /// This refuses nothing: [`settle_label`](Self::settle_label) decides when the root is chosen.
    pub(super) fn presume_label(&mut self) {
        let all = || self.replicas.iter().chain(&self.others);
        let newest = |replica: &Replica| {
            let device_bytes = replica.header.device_bytes;
            let roots = label::read_roots(&*replica.device, device_bytes, &self.keys, self.header.volume).ok()?;
            roots.first().copied()
        };
        let roots: Vec<(&Replica, Root)> = all().filter_map(|replica| Some((replica, newest(replica)?))).collect();
        let Some(root) = roots.iter().map(|(_, root)| *root).max_by_key(|root| (root.epoch(), root.generation)) else {
            return;
        };
        let named = all().flat_map(|replica| &replica.copies).find(|header| header.id() == root.label);
        let holders = roots.iter().filter(|(_, found)| found.mount == root.mount).map(|(replica, _)| replica);
        let newer = holders.flat_map(|replica| &replica.copies).max_by_key(|header| header.sequence);
        if let Some(header) = named.or(newer).cloned() {
            self.header = header;
            self.leave_out_others();
        }
    }

    /// Goes by the label that the root names, and no other: whoever puts an old one back, which authenticates, brings
    /// nothing back with it, no key slot and no device.
    ///
    /// A label is changed on every replica before a root names it. When the power fails in between:
    ///
    /// * A copy of the label in force is left somewhere: the change is undone.
    /// * None is left: the newer label is in force.
    ///
    /// Returns whether that is another label than was thought: the replicas are others then, too.
    ///
    /// # Errors
    /// [`Error::LabelOutdated`] when every label is older, or another one of the same number;
    /// [`crypto::Error::WrongKey`] when the label has no such key slot as the one that gave the key.
    pub(super) fn settle_label(&mut self, root: &Root) -> Result<bool, Error> {
        let copies = || self.replicas.iter().flat_map(|replica| &replica.copies);
        let named = copies().find(|header| header.id() == root.label);
        let presumed = Some(&self.header).filter(|header| header.sequence > root.label.sequence);
        let newest = || copies().max_by_key(|header| header.sequence);
        let newer = || presumed.or_else(|| newest().filter(|header| header.sequence > root.label.sequence));
        let in_force = named.or_else(newer);
        let Some(header) = in_force.cloned() else {
            let (volume, named) = (self.header.volume, root.label.sequence);
            return Err(Error::LabelOutdated { volume, found: self.header.sequence, named });
        };
        let is_other = header.id() != self.header.id();
        if is_other {
            log::warn!(
                "volume {}: label {} is in force, label {} is not",
                header.volume,
                header.sequence,
                self.header.sequence
            );
        }
        self.header = header;
        self.leave_out_others();
        let has = |slot: &KeySlot| self.header.key_slots.iter().flatten().any(|one| one == slot);
        match self.opened_by.as_ref().is_none_or(has) {
            true => Ok(is_other),
            false => Err(Error::Crypto(crypto::Error::WrongKey)),
        }
    }

    /// The volume.
    pub fn uuid(&self) -> Uuid {
        self.header.volume
    }

    /// Its label.
    pub fn label(&self) -> &str {
        &self.header.label
    }

    /// The devices that are others than those enrolled, or are called otherwise by the registry.
    pub fn swapped(&self) -> Vec<Swapped> {
        let of = |replica: &Replica| {
            let row = self.header.replicas.get(replica.index())?.as_ref()?;
            let entry = replica.device.registry_entry();
            Some(Swapped {
                index: replica.index(),
                device: replica.device.name().to_owned(),
                enrolled: (row.registry_id.clone(), row.identity),
                listed: (entry.registry_id.clone(), entry.identity_digest),
            })
        };
        self.replicas.iter().filter_map(of).filter(|found| found.enrolled != found.listed).collect()
    }

    /// Refuses devices that are others than those enrolled.
    pub(super) fn refuse_swapped(&self) -> Result<(), Error> {
        self.replicas.iter().try_for_each(|replica| replica.check_enrolled(&self.header))
    }

    /// Enrols such devices in the label in memory, which is written when the volume is open.
    pub(super) fn enrol(&mut self) -> Result<Vec<Swapped>, Error> {
        let swapped = self.swapped();
        if swapped.is_empty() {
            return Ok(swapped);
        }
        let mut seen = HashSet::new();
        let header = self.header.clone().changed(|fields| {
            for found in &swapped {
                if let Some(row) = fields.replicas.get_mut(found.index).and_then(Option::as_mut) {
                    (row.registry_id, row.identity) = found.listed.clone();
                }
            }
        });
        let header = header.map_err(|source| Error::Label { device: self.label().to_owned(), source })?;
        for row in header.replicas.iter().flatten() {
            if !seen.insert(&row.registry_id) {
                let text = format!("{} would hold two replicas", row.registry_id);
                return Err(Error::Registry(vec![Problem::new(Code::DeviceUsedTwice, text)]));
            }
        }
        self.header = header;
        Ok(swapped)
    }

    /// The volume key, for [`Sealed::unlock_again`](super::Sealed::unlock_again).
    pub fn volume_key(&self) -> &VolumeKey {
        self.keys.volume_key()
    }

    /// Checks three things. The registry must be verified with the pinned anchors, or with those that their officers
    /// have put in their place. It must be of the volume's kind. It must be neither older than what the volume has seen,
    /// nor another document of the same version: then somebody shows different ones to different hosts.
    pub(super) fn check_registry(&self, registry: &VerifiedRegistry, root: &Root) -> Result<(), Error> {
        let refuse = |code, text: String| Err(Error::Registry(vec![Problem::new(code, text)]));
        if !registry.is_trusted_by(&root.trust_in_force(self.header.trust_digest)) {
            let text = "the trust anchors are neither those that the volume trusts nor successors that their officers have \
                        signed: another officer's key, another threshold, or an older trust.toml";
            return refuse(Code::RegistryOther, text.to_owned());
        }
        if registry.is_laboratory() != self.header.laboratory {
            let text = match self.header.laboratory {
                false => {
                    "the volume was made with a registry that is no laboratory's: it cannot be mounted with a laboratory registry"
                }
                true => "the volume was made with a laboratory registry: it cannot be mounted with another kind",
            };
            return refuse(Code::RegistryKindChanged, text.to_owned());
        }
        let seen = Accepted::recorded(root.registry_version, &root.registry);
        seen.admits(registry, "the volume").map_err(|problem| Error::Registry(vec![problem]))
    }

    /// Reads the roots of every replica, as [`recovery::choose`] wants them.
    pub(super) fn rings(&self) -> Vec<recovery::Ring> {
        let mut found = vec![None; self.header.rows()];
        for replica in &self.replicas {
            let device = &replica.device;
            let roots = label::read_roots(&**device, replica.header.device_bytes, &self.keys, self.header.volume);
            let roots = match roots {
                Ok(roots) => roots,
                Err(error) => {
                    // What this replica went through is not known: it is treated as if it were not there.
                    log::warn!("{}: root ring: {error}", device.name());
                    continue;
                }
            };
            if let Some(slot) = found.get_mut(replica.index()) {
                *slot = Some(roots);
            }
        }
        found
    }

    /// Decides which root to go on from, and in which state each replica is then. Leaves a root out of `rings` when its
    /// commit is incomplete, or when that is not known and the administrator accepts the rollback.
    pub(super) fn choose(
        &self,
        rings: &mut Vec<recovery::Ring>,
        degraded: bool,
        accept: Option<Generation>,
    ) -> Result<Chosen, Error> {
        let mut chosen = self.choose_root(rings, degraded, accept)?;
        self.mark_unfit(&mut chosen.choice);
        Ok(chosen)
    }

    /// Gives the devices that are left out their state.
    pub(super) fn mark_unfit(&self, choice: &mut recovery::Choice) {
        for (index, _) in self.unfit_rows() {
            if let Some(state) = choice.states.get_mut(index) {
                *state = mirror::State::Faulty;
            }
        }
    }

    fn choose_root(
        &self,
        rings: &mut Vec<recovery::Ring>,
        degraded: bool,
        accept: Option<Generation>,
    ) -> Result<Chosen, Error> {
        let choice = recovery::choose(rings).map_err(|conflict| match conflict {
            recovery::Conflict::NoRoot => Error::NoRoot(self.header.volume),
            recovery::Conflict::Diverged { one, other } => self.diverged(rings, one, other),
        })?;
        self.admit(&choice, degraded)?;
        if choice.root.provisional.is_none() {
            return Ok(Chosen::new(choice, Proof::default()));
        }
        let proof = self.prove(&choice.root, &choice);
        let on_from = acceptable(rings, &choice, &proof);
        self.refuse_loss(&choice, &proof, on_from, accept)?;
        let is_dropped = proof.unread.is_some() && accept.is_some() && accept == on_from;
        if proof.lost == 0 && !is_dropped {
            return Ok(Chosen::new(choice, proof));
        }
        let (volume, generation, lost) = (self.header.volume, choice.root.generation, proof.lost);
        let Some((earlier, before)) = recovery::choose_before(rings, &choice.root) else {
            log::error!(
                "volume {volume}: blocks of commit {generation} are damaged on every replica that is here, and the root of the \
                 commit before it is not there: what they held is lost"
            );
            return Ok(Chosen::new(choice, proof));
        };
        self.admit(&before, degraded)?;
        let found = match lost {
            0 => "may be incomplete, and the administrator accepted a rollback: not every block of it can be read"
                .to_owned(),
            _ => format!(
                "is incomplete: it seems that the power failed before it was answered for. At least {lost} of its blocks \
                 are on no replica that is here"
            ),
        };
        let absent = match &*choice.absent {
            [] => String::new(),
            absent => format!("; {} may have them, and loses them when the volume goes on without", self.names(absent)),
        };
        let why =
            format!("commit {generation} {found}{absent}. The volume goes on from commit {}", before.root.generation);
        log::warn!("volume {volume}: {why}");
        *rings = earlier;
        Ok(Chosen { incomplete: Some(why), ..Chosen::new(before, Proof::default()) })
    }

    /// The refusal of two histories, with all that is known of them, and the way out.
    fn diverged(&self, rings: &[recovery::Ring], one: usize, other: usize) -> Error {
        let side = |index: usize| {
            let root = rings.get(index).and_then(recovery::newest).unwrap_or_default();
            let host = self
                .replica(index)
                .and_then(|replica| diverged::last_host(&replica.place(&self.header, &self.keys), &root));
            Side::new(self.name(index), &root, host)
        };
        let device = |index: usize| self.replica(index).map_or("DEV", |replica| replica.device.name()).to_owned();
        let (one_device, other_device, one, other) = (device(one), device(other), side(one), side(other));
        let way_out = format!(
            "Choose one, and mount it alone: scelle mount -o degraded {one_device} MOUNTPOINT. Then have the other resynced: \
             scelle replica resync MOUNTPOINT {other_device} lists what only that one has, and with --discard-diverged {} it \
             is overwritten. The other way round it is {one_device} and --discard-diverged {}.",
            other.generation, one.generation
        );
        Error::Diverged { one: Box::new(one), other: Box::new(other), way_out }
    }

    /// Whether the volume can be used with this choice.
    pub(super) fn admit(&self, choice: &recovery::Choice, degraded: bool) -> Result<(), Error> {
        let usable = choice.states.contains(&mirror::State::InSync);
        if !usable || !choice.absent.is_empty() && !degraded {
            let mut absent = format!("{} of the last commit is absent or too old", self.names(&choice.absent));
            self.left_out().for_each(|left_out| absent += &format!("; {left_out}"));
            return Err(Error::Incomplete { volume: self.header.volume, absent, degraded });
        }
        Ok(())
    }

    /// Refuses to take blocks of the last commit for lost while a replica is absent that may have them. With that,
    /// the volume goes on from `on_from`, which can be accepted.
    pub(super) fn refuse_loss(
        &self,
        choice: &recovery::Choice,
        proof: &Proof,
        on_from: Option<Generation>,
        accept: Option<Generation>,
    ) -> Result<(), Error> {
        let is_accepted = accept.is_some() && accept == on_from;
        if is_accepted || proof.lost == 0 && proof.unread.is_none() || choice.absent.is_empty() {
            return Ok(());
        }
        let absent = self.names(&choice.absent);
        let why = match &proof.unread {
            Some((block, error)) => format!("block {} is on no device that can read it ({error})", block.0),
            None => format!("at least {} of its blocks are on no replica that is here", proof.lost),
        };
        let why = format!("{why}. {absent} may have what is missing: attach it");
        let (volume, generation) = (self.header.volume, choice.root.generation);
        Err(Error::Unproven { volume, generation, acceptable: on_from, given: accept, why })
    }

    /// Refuses to go on without a device that the label in force does not name, and that went on by itself under a label
    /// that is as new: each of two sides may have removed the other.
    pub(super) fn refuse_other_side(&self, root: &Root) -> Result<(), Error> {
        for other in self.others.iter().filter(|other| other.header.sequence >= self.header.sequence) {
            let device_bytes = other.header.device_bytes;
            let roots = label::read_roots(&*other.device, device_bytes, &self.keys, self.header.volume);
            let newest = roots.ok().and_then(|roots| roots.first().copied());
            if let Some(theirs) = newest.filter(|theirs| !recovery::is_past(theirs, other.index(), root)) {
                let device = other.device.name();
                let here = Side::new(format!("the volume without {device}"), root, None);
                let there = Side::new(device.to_owned(), &theirs, None);
                let way_out = format!(
                    "Each side has removed the other. Choose one, and mount its devices by name. To give {device} up, destroy it: \
                     scelle destroy {device}."
                );
                return Err(Error::Diverged { one: Box::new(here), other: Box::new(there), way_out });
            }
        }
        Ok(())
    }

    /// Refuses to overwrite a commit that a replica has whole and that the others went on without. Perhaps somebody was
    /// answered for it, and that replica is the only one that has not lost it.
    pub(super) fn refuse_left_commit(&self, choice: &recovery::Choice, rings: &[recovery::Ring]) -> Result<(), Error> {
        let holder = rings.iter().position(|ring| recovery::newest(ring) == Some(choice.root));
        for replica in &self.replicas {
            let index = replica.index();
            let newest = recovery::ring_of(rings, index).first();
            if let Some(found) = newest.filter(|found| recovery::went_on_without(found, &choice.root, rings))
                && has_whole(&self.keys, self.header.volume, &replica.device, found)
            {
                return Err(self.diverged(rings, holder.unwrap_or(index), index));
            }
        }
        Ok(())
    }

    /// Looks for the blocks of a root's commit on the replicas in sync. Writes nothing.
    pub(super) fn prove(&self, root: &Root, choice: &recovery::Choice) -> Proof {
        let in_sync = self.replicas.iter().filter(|r| choice.states.get(r.index()) == Some(&mirror::State::InSync));
        let devices: Vec<_> = in_sync.map(|r| (r.index(), &*r.device as &dyn BlockDevice)).collect();
        Proof::of(root, &self.keys, self.header.volume, &devices)
    }

    /// The replica with this index, if its device is here.
    pub(super) fn replica(&self, index: usize) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.index() == index)
    }

    /// How messages name a replica.
    pub(super) fn name(&self, index: usize) -> String {
        let id = self.header.replicas.get(index).and_then(Option::as_ref).map_or("?", |row| &row.registry_id);
        let device = self.replica(index).map(|replica| &replica.device);
        let unfit = || self.unfit_rows().find(|(row, _)| *row == index).map(|(_, unfit)| &unfit.device);
        match device.or_else(unfit) {
            Some(device) => format!("replica {index} ({id}, {})", device.name()),
            None => format!("replica {index} ({id})"),
        }
    }

    /// The devices that are left out, each with the replica whose place it has, which is not there otherwise.
    fn unfit_rows(&self) -> impl Iterator<Item = (usize, &Unfit)> {
        let is_there = |row: &usize| self.replica(*row).is_some();
        self.unfit.iter().filter_map(move |unfit| Some((unfit.row(&self.header).filter(|row| !is_there(row))?, unfit)))
    }

    pub(super) fn names(&self, indices: &[usize]) -> String {
        indices.iter().map(|index| self.name(*index)).collect::<Vec<_>>().join(", ")
    }

    /// The replica set in the order of the replica table, with the size of each device as its label says. A device that
    /// is left out has its place in the set too, with the reason, so that it is seen and can be taken back.
    pub(super) fn mirror(&self, states: &[mirror::State]) -> Result<(Arc<mirror::Mirror>, Vec<u64>), Error> {
        let mut rows: Vec<(Option<Arc<ApprovedDevice>>, mirror::State)> = states.iter().map(|s| (None, *s)).collect();
        let mut sizes = vec![0; states.len()];
        for replica in &self.replicas {
            let index = replica.index();
            if let (Some(row), Some(size)) = (rows.get_mut(index), sizes.get_mut(index)) {
                row.0 = Some(replica.device.clone());
                *size = replica.header.device_bytes;
            }
        }
        for (index, unfit) in self.unfit_rows() {
            if let Some(row) = rows.get_mut(index) {
                row.0 = Some(unfit.device.clone());
            }
        }
        let mirror = mirror::Mirror::new(rows).map_err(|e| System::error("starting a replica's thread", e))?;
        for (index, unfit) in self.unfit_rows() {
            mirror.explain(index, &unfit.to_string());
        }
        Ok((Arc::new(mirror), sizes))
    }

    /// The store at a root, in an epoch of its own. Writes nothing. What the root says of the ring counts for these slots.
    pub(super) fn store_at(
        &self,
        root: &Root,
        slots: u64,
        mirror: Arc<mirror::Mirror>,
        device_bytes: Vec<u64>,
    ) -> Result<Arc<Store>, Error> {
        let trust = root.trust_in_force(self.header.trust_digest);
        let root = Root { trust, ring: root.ring & slots, ..*root };
        // Invariant: 2^32 mounts, one a second, take 136 years.
        let epoch = root.epoch().saturating_add(1);
        let options = StoreOptions {
            keys: self.keys.volume_key().keys(self.header.volume),
            volume: self.header.volume,
            total_blocks: self.header.data_blocks,
            device_bytes,
            root,
            epoch,
        };
        Ok(Store::open(mirror, options)?)
    }
}

/// Whether a device has every block of the commit of `root` that can be told.
pub(super) fn has_whole(keys: &Keys, volume: Uuid, device: &ApprovedDevice, root: &Root) -> bool {
    let proof = Proof::of(root, keys, volume, &[(0, device as &dyn BlockDevice)]);
    proof.lost == 0 && proof.unread.is_none()
}

/// The generation that the volume goes on from when what is lost of the chosen commit, or cannot be read, is accepted.
pub(super) fn acceptable(rings: &[recovery::Ring], choice: &recovery::Choice, proof: &Proof) -> Option<Generation> {
    match recovery::choose_before(rings, &choice.root) {
        Some((_, before)) => Some(before.root.generation),
        None => proof.unread.is_none().then_some(choice.root.generation),
    }
}
