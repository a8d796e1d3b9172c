//! The replicas of a volume in use: which is refused and when, which comes back and how.
//!
//! What the policy demands is not known here ([`policy`](crate::policy)), nor how a replica is written to
//! ([`mirror`](crate::mirror)). [`enrolment`] adds and removes replicas; [`recheck`] has the policy examine the devices again; [`resync`] copies what a replica
//! lacks.
//!
//! [`Members::check`] examines every device and fences the refused ones at once. [`Members::apply`] then does what
//! follows from the findings.
//!
//! Two kinds of replicas come back by themselves: one that was refused and is approved again, and one whose resync
//! ended because none was left to copy from. Every other comes back when somebody asks for it ([`Members::rejoin`],
//! [`Members::take_in`]): its device failed, or was unplugged, or was not there at the mount.
//!
//! # Coming back
//!
//! A device is taken back only when
//!
//! 1. the policy approves it,
//! 2. its label names it as this replica,
//! 3. and its newest root is one of this mount or of its past. A replica that went on elsewhere meanwhile is refused.
//!
//! What the replica then has is known in one of two ways:
//!
//! * It left during this mount and still shows the last root that it took part in. Then it lacks what was written since
//!   it last flushed ([`crate::mirror`]), which may be nothing.
//! * Otherwise it lacks what was written since the last mount whose roots name it, that mount's own writes included.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::assembled::{Replica, has_whole};
use super::diverged::{self, OnlyThere};
use super::error::{Error, System};
use super::health::{Health, Ledger, Tally};
use super::recovery;
use super::side::Side;
use super::task::{Outcome, Task, Tasks, Work};
use crate::audit::record::Digest;
use crate::audit::{self, Audit, Entry, Event};
use crate::crypto::Keys;
use crate::fs::Fs;
use crate::label::{self, Header, Root};
use crate::limits::{DEVICE_TIMEOUT_S, REPLICAS_MAX};
use crate::mirror::{Incarnation, RejoinError, State};
use crate::pages::Store;
use crate::policy::ApprovedDevice;
use crate::policy::clock::now_unix_s;
use crate::problem::{Code, Problem};
use crate::registry::VerifiedRegistry;
use crate::units::{Generation, Uuid};

/// How long a replica that comes back may take to finish the write that was under way when it was refused.
const REST_WAIT: Duration = Duration::from_secs(2);

/// How long a device that comes back may take to say who it is while commits wait for that.
const CONFIRM_WAIT: Duration = Duration::from_secs(5);

/// How often a wait looks whether a resync, or a write, has ended.
const POLL: Duration = Duration::from_millis(2);

mod enrolment;
mod labels;
mod recheck;
pub(super) mod resync;

pub use enrolment::{Plan, Removed};
pub(super) use labels::places;
pub use recheck::Findings;

use labels::Watched;
use recheck::Examination;
use resync::{Resync, is_lost};

/// The replicas of a volume in use.
pub struct Members {
    /// The members themselves, for the threads that they start.
    me: Weak<Self>,
    /// The label in force. Changed with `rejoining` locked.
    header: Mutex<Arc<Header>>,
    volume: Uuid,
    volume_label: String,
    keys: Keys,
    store: Arc<Store>,
    fs: Arc<Fs>,
    read_only: bool,
    audit: Arc<Audit>,
    at_mount: Mutex<AtMount>,
    /// What went wrong with each replica.
    ledger: Ledger,
    resyncs: Mutex<Vec<Resyncing>>,
    tasks: Tasks,
    /// The examination of each device, which may be under way.
    examinations: Mutex<Vec<Arc<Examination>>>,
    /// Held while a replica comes back: one does so at a time.
    rejoining: Mutex<()>,
    /// Replicas whose resync ended because none was left to copy from, bit `i` for replica `i`. They come back by
    /// themselves, as the refused do.
    sourceless: Arc<AtomicU64>,
    closing: AtomicBool,
    /// The label of each replica in use.
    labels: Mutex<Vec<Watched>>,
    /// The replicas whose label is being looked at: bit `i` for replica `i`.
    looking: AtomicU64,
    /// The replicas that were enrolled in this mount and have not had everything yet: bit `i` for replica `i`.
    joining: AtomicU64,
}

/// What each replica was found to have at the mount.
pub(super) struct AtMount {
    /// The generation of each replica at the mount: what a replica has that has not been in sync since.
    pub left_at: Vec<Generation>,
    /// For each replica an epoch: when its device was opened, the replica held every unit of the epochs before
    /// ([`super::place`]).
    pub has_before: Vec<u32>,
    /// What the host remembers of the volume's health.
    pub remembered: Health,
}

struct Resyncing {
    resync: Arc<Resync>,
    task: Arc<Task>,
    thread: JoinHandle<()>,
}

impl Work for Resync {
    fn progress(&self) -> (u64, u64) {
        Resync::progress(self)
    }
}

impl Members {
    pub(super) fn new(
        header: Header,
        keys: Keys,
        store: Arc<Store>,
        fs: Arc<Fs>,
        audit: Arc<Audit>,
        read_only: bool,
        at_mount: AtMount,
    ) -> Arc<Self> {
        let examinations = (0..REPLICAS_MAX).map(|_| Arc::default()).collect();
        let ledger = Ledger::new(&header, &at_mount.remembered, now_unix_s());
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            volume: header.volume,
            volume_label: header.label.clone(),
            header: Mutex::new(Arc::new(header)),
            keys,
            store,
            fs,
            read_only,
            audit,
            at_mount: Mutex::new(at_mount),
            ledger,
            resyncs: Mutex::default(),
            tasks: Tasks::default(),
            examinations: Mutex::new(examinations),
            rejoining: Mutex::default(),
            sourceless: Arc::default(),
            closing: AtomicBool::new(false),
            labels: Mutex::default(),
            looking: AtomicU64::new(0),
            joining: AtomicU64::new(0),
        })
    }

    /// For each replica, the first epoch of which it may lack something.
    pub(super) fn has_before(&self) -> Vec<u32> {
        self.at_mount.lock().has_before.clone()
    }

    /// What went wrong with a replica over all mounts on this host.
    pub(super) fn total(&self, index: usize) -> Tally {
        self.ledger.total(index, self.store.mirror().errors(index))
    }

    /// What the host is to remember of the volume's health.
    pub(super) fn health(&self) -> Health {
        self.ledger.health(|index| self.store.mirror().errors(index))
    }

    /// Has the trail tell which replicas have become unreliable.
    pub(super) fn tell_of_unreliable(&self) {
        for index in 0..self.store.mirror().len() {
            let news = self.ledger.news(index, self.store.mirror().errors(index), now_unix_s());
            if !news.is_empty() {
                news.iter().for_each(|why| log::error!("{}: {why}", self.name(index)));
                let entry = Entry::noticed(self.audit.replica(index), Event::ReplicaUnreliable);
                self.audit.record(entry.because(news.iter().map(audit::Reason::from)));
            }
        }
    }

    /// The audit trail of the volume.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// The label in force.
    pub(super) fn header(&self) -> Arc<Header> {
        self.header.lock().clone()
    }

    /// The volume.
    pub(super) fn volume(&self) -> Uuid {
        self.volume
    }

    /// The volume's label.
    pub(super) fn volume_label(&self) -> &str {
        &self.volume_label
    }

    /// The rows of the replica table that hold a replica, in order.
    pub fn rows(&self) -> Vec<usize> {
        let header = self.header();
        (0..self.store.mirror().len())
            .filter(|index| header.replicas.get(*index).is_some_and(Option::is_some))
            .collect()
    }

    /// The last generation that replica `index` holds for certain.
    pub(super) fn generation(&self, index: usize) -> Generation {
        if self.state(index) == State::InSync {
            return self.store.generation();
        }
        let at_the_mount = self.at_mount.lock().left_at.get(index).copied().unwrap_or_default();
        self.store.mirror().last_root(index).unwrap_or(at_the_mount)
    }

    /// Bytes done and bytes in all of a replica's resync; nothing when the replica is not being resynced.
    pub(super) fn progress(&self, index: usize) -> Option<(u64, u64)> {
        self.under_way(index, |r| (self.state(index) == State::Resyncing).then(|| r.resync.progress()))?
    }

    /// The long work on the replicas: what is under way, and what has ended.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The task by which a replica is being resynced.
    pub fn task(&self, index: usize) -> Option<u64> {
        self.under_way(index, |r| r.task.id())
    }

    /// What `of` says of the resync of a replica that is under way.
    fn under_way<T>(&self, index: usize, of: impl FnOnce(&Resyncing) -> T) -> Option<T> {
        let resyncs = self.resyncs.lock();
        resyncs.iter().rev().find(|r| r.resync.index == index && !r.thread.is_finished()).map(of)
    }

    /// The replica that the registry calls `id`.
    pub fn by_registry_id(&self, id: &str) -> Option<usize> {
        self.header().replicas.iter().position(|row| row.as_ref().is_some_and(|row| row.registry_id == id))
    }

    /// Replicas that are not in use, in the order of the replica table.
    pub fn absent(&self) -> Vec<usize> {
        let in_use = |index: usize| matches!(self.state(index), State::InSync | State::Resyncing);
        self.rows().into_iter().filter(|index| !in_use(*index)).collect()
    }

    /// Records why a replica that is not in use is not taken back, for the status.
    pub fn explain(&self, index: usize, why: &str) {
        self.store.mirror().explain(index, why);
    }

    /// State of a replica.
    pub fn state(&self, index: usize) -> State {
        self.store.mirror().state(index).0
    }

    /// Identifier of a replica in the registry.
    pub fn registry_id(&self, index: usize) -> String {
        self.row(index).map_or_else(String::new, |row| row.registry_id)
    }

    /// Digest of the identity that a replica was enrolled with.
    pub(super) fn identity(&self, index: usize) -> [u8; 32] {
        self.row(index).map_or_else(Default::default, |row| row.identity)
    }

    /// The device of a replica, when there is one.
    pub fn device(&self, index: usize) -> Option<Arc<ApprovedDevice>> {
        self.store.mirror().device(index)
    }

    /// The replica in whose place a replica comes once it has everything.
    pub(super) fn replaces(&self, index: usize) -> Option<usize> {
        self.row(index)?.replaces.map(usize::from)
    }

    fn row(&self, index: usize) -> Option<label::ReplicaRow> {
        self.header().replicas.get(index)?.clone()
    }

    /// How messages name a replica.
    fn name(&self, index: usize) -> String {
        match self.device(index) {
            Some(device) => format!("replica {} ({})", self.registry_id(index), device.name()),
            None => format!("replica {}", self.registry_id(index)),
        }
    }

    /// Brings a replica back whose device is still open, because it was refused or failed, and because somebody asks for
    /// it. Returns its new state: in sync when it lacks nothing, else resyncing.
    ///
    /// # Errors
    /// [`Error::Rejoin`]; what reading the label says.
    pub fn rejoin(&self, index: usize) -> Result<State, Error> {
        self.come_back(index, true)
    }

    /// As [`Members::rejoin`], with or without somebody who `asked` for it.
    fn come_back(&self, index: usize, asked: bool) -> Result<State, Error> {
        let _one_at_a_time = self.rejoining.lock();
        self.come_back_alone(index, asked)
    }

    /// As [`Members::come_back`], with `rejoining` locked.
    fn come_back_alone(&self, index: usize, asked: bool) -> Result<State, Error> {
        self.check_open(&self.name(index))?;
        let missing = || self.refusal(index, Code::ReplicaMissing, "its device is not there");
        let device = self.device(index).ok_or_else(missing)?;
        let replica = self.identify(&device)?;
        if replica.index() != index {
            return Err(self.refusal(index, Code::DeviceNotEnrolled, "its device shows another replica"));
        }
        // Not known yet of a device whose label could not be read at the mount.
        self.store.set_device_bytes(index, replica.header.device_bytes);
        let state = self.enter(index, &replica, None, asked)?;
        self.repair_label(&replica)?;
        Ok(state)
    }

    /// Takes in a device that was opened anew: it was not there at the mount, or was unplugged and has come back as
    /// another device node. Returns which replica it is, and the replica's new state.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`], [`Error::Swapped`], [`Error::MixedVolumes`], [`Error::Rejoin`]; what reading the label says.
    pub fn take_in(&self, device: impl Into<Arc<ApprovedDevice>>) -> Result<(usize, State), Error> {
        let device = device.into();
        let _one_at_a_time = self.rejoining.lock();
        self.check_open(device.name())?;
        let replica = self.identify(&device)?;
        let index = replica.index();
        if !self.absent().contains(&index) {
            return Err(self.refusal(index, Code::ReplicaInUse, "it is in use already"));
        }
        let before = self.store.device_bytes(index);
        self.store.set_device_bytes(index, replica.header.device_bytes);
        let state = self.enter(index, &replica, Some(&device), true).inspect_err(|_| {
            self.store.set_device_bytes(index, before);
        })?;
        // An examination that still waits for the facts of the device of before does not hold up that of this one.
        if let Some(examinations) = self.examinations.lock().get_mut(index) {
            *examinations = Arc::default();
        }
        self.repair_label(&replica)?;
        Ok((index, state))
    }

    /// Whether the volume is in a state in which replicas can come back.
    fn check_open(&self, replica: &str) -> Result<(), Error> {
        let refuse = |code, why: String| Err(Error::Rejoin { replica: replica.to_owned(), code, why });
        if self.read_only {
            return refuse(Code::MountedReadOnly, "the volume is mounted read-only".to_owned());
        }
        if self.closing.load(Ordering::Acquire) {
            return refuse(Code::Closing, "the volume is being closed".to_owned());
        }
        match self.store.poisoned() {
            Some(why) => refuse(Code::NeedsRemount, format!("the volume must be unmounted and mounted again: {why}")),
            None => Ok(()),
        }
    }

    fn refusal(&self, index: usize, code: Code, why: &str) -> Error {
        Error::Rejoin { replica: self.name(index), code, why: why.to_owned() }
    }

    /// Reads and authenticates the label of a device, which must be a replica of this volume.
    fn identify(&self, device: &Arc<ApprovedDevice>) -> Result<Replica, Error> {
        let name = || device.name().to_owned();
        let failed = |source| Error::Label { device: name(), source };
        let found = label::read(&**device).map_err(failed)?;
        let theirs = found.newest.claims().volume;
        if !found.claims_volume(self.volume) {
            return Err(Error::MixedVolumes {
                first: self.volume_label.clone(),
                first_volume: self.volume,
                second: name(),
                second_volume: theirs,
            });
        }
        let copies = found.authentic(&self.keys);
        let (header, damaged) = found.authenticate(&self.keys).map_err(failed)?;
        let replica = Replica { device: device.clone(), header, copies, damaged: places(damaged) };
        replica.check_enrolled(&self.header())?;
        Ok(replica)
    }

    /// Puts an identified replica back into the set; with its `device`, if that is another than before.
    fn enter(
        &self,
        index: usize,
        replica: &Replica,
        device: Option<&Arc<ApprovedDevice>>,
        asked: bool,
    ) -> Result<State, Error> {
        let roots = self.roots_of(replica)?;
        // The last root may name this replica, and the device not be as the replica left it. Then a root that does not
        // name the replica is committed before the device is written to, if a commit is possible.
        let ours = self.store.root();
        if let Some(theirs) = self.went_on_elsewhere(replica, &roots, &ours) {
            return Err(self.diverged(index, theirs, &ours));
        }
        if ours.names(index) && !self.is_as_it_left(index, roots.first(), &ours) && self.store.committable().is_ok() {
            // A commit that fails has said so.
            let _ = self.fs.checkpoint();
        }
        let since_epoch = recovery::last_epoch_in_sync(&roots, index, &ours);
        // Closing a device can take its time. The old one is held to the end of this function: no commit waits for
        // that.
        let _old = self.store.mirror().device(index);
        let mut deadline = None;
        let (state, incarnation) = loop {
            // However long the device takes to say who it is, nothing waits for that here.
            self.confirm(index, &replica.device)?;
            // Between commits: the root of a commit under way could overtake the root that `join` gives the replica
            // first.
            let joined = self.fs.between_commits(|| {
                // The commit that was waited for can take long, and a check made meanwhile does not examine a device
                // that is not in the set yet. So the device is examined once more.
                self.confirm_soon(index, &replica.device)?;
                self.join(index, device, roots.first())
            })?;
            match joined {
                Err(RejoinError::StillWriting)
                    if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + REST_WAIT) =>
                {
                    std::thread::sleep(POLL);
                }
                outcome => break outcome.map_err(|error| self.not_rejoined(index, replica, error))?,
            }
        };
        if device.is_some()
            && let Some(has_before) = self.at_mount.lock().has_before.get_mut(index)
        {
            *has_before = since_epoch;
        }
        if state == State::Resyncing {
            self.start_resync(Resync::new(index, incarnation, since_epoch), asked)?;
        } else {
            log::warn!("{} lacks nothing: it is in sync", self.name(index));
            // The next root names the replica, unless the last one does. A commit that fails has said so.
            let _ = self.fs.checkpoint();
        }
        Ok(state)
    }

    /// Has the replica set take back a replica whose newest root is `newest`. To be called between commits.
    ///
    /// What is written to the replica from now on may overwrite blocks that its own older roots refer to. So nobody may
    /// go on from those roots any more. Two cases:
    ///
    /// 1. The last root does not name the replica. Then that root is the first thing that the replica is given. With it
    ///    in the ring, whoever opens the volume finds the replica left behind, until a root names it.
    /// 2. The last root names the replica. Then the replica must be as it left, and needs no other root.
    fn join(
        &self,
        index: usize,
        device: Option<&Arc<ApprovedDevice>>,
        newest: Option<&Root>,
    ) -> Result<std::result::Result<(State, Incarnation), RejoinError>, Error> {
        self.check_open(&self.name(index))?;
        let ours = self.store.root();
        self.check_history(index, newest.copied(), ours)?;
        let is_as_it_left = self.is_as_it_left(index, newest, &ours);
        let first = if ours.names(index) {
            if !is_as_it_left {
                // `enter` could not commit a root that does not name the replica: none is in sync, so there is none to
                // copy from.
                return Ok(Err(RejoinError::NoSource));
            }
            None
        } else {
            let sealed = ours.sealed(&self.keys, self.volume)?;
            Some((ours.offsets(self.store.device_bytes(index)), Arc::new(sealed)))
        };
        Ok(self.store.mirror().rejoin(index, device.cloned(), is_as_it_left, first))
    }

    /// Whether a replica whose newest root is `newest` left during this mount, and has been left alone since. `ours` is
    /// the last root of this mount.
    fn is_as_it_left(&self, index: usize, newest: Option<&Root>, ours: &Root) -> bool {
        let last = self.store.mirror().last_root(index);
        newest.zip(last).is_some_and(|(newest, last)| newest.mount == ours.mount && newest.generation >= last)
    }

    /// Has the policy approve a device once more, directly before the device is written to again.
    fn confirm(&self, index: usize, device: &ApprovedDevice) -> Result<(), Error> {
        match objections(self.store.quorum().registry(), device).first() {
            Some(reason) => Err(self.refused(index, device, Code::ReplicaRefused, &reason.to_string())),
            None => Ok(()),
        }
    }

    /// As [`Members::confirm`], for a caller that holds others up: the device must answer within [`CONFIRM_WAIT`].
    fn confirm_soon(&self, index: usize, device: &Arc<ApprovedDevice>) -> Result<(), Error> {
        let (sender, answer) = mpsc::channel();
        let (registry, theirs) = (self.store.quorum().registry(), Arc::clone(device));
        let ask = move || {
            // Whoever asked may have gone on.
            let _ = sender.send(objections(registry, &theirs));
        };
        std::thread::Builder::new()
            .name(format!("facts-{index}"))
            .spawn(ask)
            .map_err(|source| System::error("starting an examination", source))?;
        match answer.recv_timeout(CONFIRM_WAIT).as_deref() {
            Ok([]) => Ok(()),
            Ok([reason, ..]) => Err(self.refused(index, device, Code::ReplicaRefused, &reason.to_string())),
            Err(_) => {
                let why = format!("its device does not say within {} s who it is", CONFIRM_WAIT.as_secs());
                Err(self.refused(index, device, Code::DeviceUnreadable, &why))
            }
        }
    }

    /// As [`Members::refusal`], of a device that need not be the one that the replica had.
    fn refused(&self, index: usize, device: &ApprovedDevice, code: Code, why: &str) -> Error {
        let replica = format!("replica {} ({})", self.registry_id(index), device.name());
        Error::Rejoin { replica, code, why: why.to_owned() }
    }

    fn not_rejoined(&self, index: usize, replica: &Replica, error: RejoinError) -> Error {
        let code = match error {
            RejoinError::InUse => Code::ReplicaInUse,
            RejoinError::NoDevice => Code::ReplicaMissing,
            RejoinError::StillWriting => Code::ReplicaBusy,
            RejoinError::NoSource => Code::ReplicaNoSource,
        };
        self.refused(index, &replica.device, code, &error.to_string())
    }

    /// Checks that the newest root of a replica is `ours`, or that the history of `ours` has left it behind.
    fn check_history(&self, index: usize, newest: Option<Root>, ours: Root) -> Result<(), Error> {
        if newest.is_some_and(|newest| newest.mount == ours.mount) {
            return Ok(());
        }
        let is_past = newest.is_none_or(|newest| recovery::is_past(&newest, index, &ours));
        let others = (0..self.store.mirror().len()).any(|i| i != index && ours.names(i));
        match (is_past, others) {
            (true, true) => Ok(()),
            (false, true) => Err(self.diverged(index, &newest.unwrap_or_default(), &ours)),
            _ => Err(self.refusal(index, Code::ReplicaNotCurrent, "it does not show the last state of this mount: an older copy was put in its place, or it was changed elsewhere")),
        }
    }

    /// The refusal of a replica that went on elsewhere, and the way out. `discard` writes the same with what only it has.
    fn diverged(&self, index: usize, theirs: &Root, ours: &Root) -> Error {
        let other = Side::new(self.name(index), theirs, None);
        let here = Side::new("this mount".to_owned(), ours, Some(self.audit.host().to_owned()));
        let way_out = format!(
            "To overwrite what it went on to: scelle replica resync VOLUME {} --discard-diverged {}. What only it has is \
             listed with this refusal, and is lost then; to save it, unmount, and mount that device alone (-o ro,degraded).",
            self.registry_id(index),
            theirs.generation
        );
        Error::Diverged { one: Box::new(here), other: Box::new(other), way_out }
    }

    /// What only a device has that went on elsewhere; nothing when it did not, or is no replica of this volume.
    ///
    /// # Errors
    /// When its history cannot be read.
    pub fn only_there(&self, device: &Arc<ApprovedDevice>) -> Result<Option<(Side, OnlyThere)>, Error> {
        let Ok(replica) = self.identify(device) else { return Ok(None) };
        let (roots, ours) = (self.roots_of(&replica)?, self.store.root());
        let Some(theirs) = self.went_on_elsewhere(&replica, &roots, &ours) else {
            return Ok(None);
        };
        let (side, only, _) = self.look_at(&replica, theirs, &ours)?;
        Ok(Some((side, only)))
    }

    fn roots_of(&self, replica: &Replica) -> Result<Vec<Root>, Error> {
        let name = || replica.device.name().to_owned();
        let roots = label::read_roots(&*replica.device, replica.header.device_bytes, &self.keys, self.volume);
        roots.map_err(|source| Error::Label { device: name(), source: source.into() })
    }

    /// The newest root of a replica whose history went on elsewhere, or that has the whole of a commit which this volume
    /// went on without.
    fn went_on_elsewhere<'a>(&self, replica: &Replica, roots: &'a [Root], ours: &Root) -> Option<&'a Root> {
        let newest = roots.first()?;
        let has_parted =
            || matches!(self.check_history(replica.index(), Some(*newest), *ours), Err(Error::Diverged { .. }));
        let rings = [Some(roots.to_vec())];
        let was_left_with = || {
            recovery::went_on_without(newest, ours, &rings)
                && has_whole(&self.keys, self.volume, &replica.device, newest)
        };
        (has_parted() || was_left_with()).then_some(newest)
    }

    /// A history that went on elsewhere: whose it is, what only it has, how many records its trail has and their digest.
    fn look_at(
        &self,
        replica: &Replica,
        theirs: &Root,
        ours: &Root,
    ) -> Result<(Side, OnlyThere, (u64, String)), Error> {
        let there = diverged::look(&replica.place(&self.header(), &self.keys), theirs)?;
        let host = audit::last_host(&there).ok().flatten();
        let last = there.audit_last(u64::MAX)?;
        let trail = last.map_or((0, String::new()), |(seq, bytes)| (seq, Digest::of(&bytes).to_string()));
        let only = diverged::only_there(&there, &self.fs, diverged::parted(theirs, ours))?;
        Ok((Side::new(self.name(replica.index()), theirs, host), only, trail))
    }

    /// Takes away from a device the history that it went on to elsewhere, which must end with this generation. Then it
    /// shows no root, so nothing that it has is believed, and it is resynced whole when it is brought back. The trail tells
    /// of it first.
    ///
    /// # Errors
    /// [`Code::NotDiverged`] when there is no such history, [`Error::Diverged`] when it ends with another generation; what
    /// reading and writing say.
    pub fn discard(&self, device: &Arc<ApprovedDevice>, generation: Generation) -> Result<(), Error> {
        let _one_at_a_time = self.rejoining.lock();
        self.check_open(device.name())?;
        let replica = &self.identify(device)?;
        let index = replica.index();
        if !self.absent().contains(&index) {
            return Err(self.refusal(index, Code::ReplicaInUse, "it is in use already"));
        }
        let (roots, ours) = (self.roots_of(replica)?, self.store.root());
        let Some(theirs) = self.went_on_elsewhere(replica, &roots, &ours) else {
            return Err(self.refusal(
                index,
                Code::NotDiverged,
                "it did not go on elsewhere, so there is nothing to discard",
            ));
        };
        if theirs.generation != generation {
            return Err(self.diverged(index, theirs, &ours));
        }
        let (side, only, (records, head)) = self.look_at(replica, theirs, &ours)?;
        log::warn!("{side}: that is discarded, with {} files and folders that only it has", only.count);
        let Side { committed, host, .. } = side;
        let event = Event::HistoryDiscarded {
            generation: generation.0,
            committed,
            host,
            only_there: only.count,
            records,
            head,
        };
        self.audit.record(Entry::done(self.audit.user(), self.audit.replica(index), event));
        self.fs.checkpoint()?;
        self.confirm(index, &replica.device)?;
        let ring = label::empty_ring()?;
        let at = label::Area::BOTH.map(|area| area.offset(replica.header.device_bytes) + label::RING_OFFSET);
        replica.device.lift_fence();
        replica.device.write_durably(&at, &ring).map_err(|error| {
            System::error(&format!("writing the label of {}", replica.device.name()), std::io::Error::other(error))
        })
    }

    /// Starts a resync, which somebody `asked` for or not.
    pub(super) fn start_resync(&self, resync: Resync, asked: bool) -> Result<(), Error> {
        self.ledger.resynced(resync.index, asked, now_unix_s());
        let resync = Arc::new(resync);
        log::warn!("{} is being resynced", self.name(resync.index));
        let task = self.tasks.begin(self.kind(resync.index), resync.clone());
        let (fs, store, job, theirs) = (self.fs.clone(), self.store.clone(), resync.clone(), task.clone());
        let (audit, sourceless, members) = (self.audit.clone(), self.sourceless.clone(), self.me.clone());
        sourceless.fetch_and(!(1 << resync.index), Ordering::AcqRel);
        let thread = std::thread::Builder::new().name(format!("resync-{}", resync.index)).spawn(move || {
            let outcome = job.run(&fs, &store, &audit, theirs.stop());
            let outcome = ended(&job, &store, &theirs, &sourceless, outcome);
            let members = members.upgrade();
            theirs.end(members.map_or(outcome.clone(), |members| members.settle(job.index, outcome)));
        });
        let mut resyncs = self.resyncs.lock();
        resyncs.retain(|earlier| !earlier.thread.is_finished());
        match thread {
            Ok(thread) => {
                resyncs.push(Resyncing { resync, task, thread });
                Ok(())
            }
            Err(source) => {
                resync.abandon(&self.store, "its resync could not be started");
                task.end(Outcome::Failed(Problem::new(Code::System, format!("starting a resync: {source}"))));
                Err(System::error("starting a resync", source))
            }
        }
    }

    /// Ends the resyncs, and lets no replica come back any more. The wait is bounded: a thread that hangs in the kernel
    /// is left behind.
    pub(super) fn stop(&self) {
        self.closing.store(true, Ordering::Release);
        let resyncs = std::mem::take(&mut *self.resyncs.lock());
        resyncs.iter().for_each(|r| r.task.stop().store(true, Ordering::Relaxed));
        let deadline = Instant::now() + Duration::from_secs(DEVICE_TIMEOUT_S);
        for resyncing in resyncs {
            while !resyncing.thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
            if !resyncing.thread.is_finished() {
                log::error!("the resync of replica {} does not end; it is left behind", resyncing.resync.index);
            } else if resyncing.thread.join().is_err() {
                log::error!("a resync panicked");
            }
        }
    }
}

/// Why the policy does not approve a device, asked now, under the registry in force; nothing when it does.
fn objections(registry: Option<Arc<VerifiedRegistry>>, device: &ApprovedDevice) -> Vec<Problem> {
    // Invariant: a volume in use has seen a registry.
    let refused = registry.and_then(|registry| device.confirm(&registry).err());
    refused.map_or_else(|| device.verdict().reasons, |refused| refused.verdict.reasons)
}

/// What the end of a resync means for the replica, the volume and the task.
fn ended(job: &Resync, store: &Store, task: &Task, sourceless: &AtomicU64, outcome: Result<bool, Error>) -> Outcome {
    let interrupted = |why: &str| Outcome::Failed(Problem::new(Code::ResyncEnded, why));
    match outcome {
        Ok(true) => job.lost().map_or(Outcome::Done, |lost| Outcome::Failed(Problem::new(Code::BlocksLost, lost))),
        Ok(false) if task.is_cancelled() && job.is_current(store) => {
            job.abandon(store, "its resync was cancelled");
            Outcome::Cancelled
        }
        Ok(false) if task.stop().load(Ordering::Relaxed) => interrupted("the volume was closed before all was copied"),
        Ok(false) => interrupted("the replica left the set before all was copied"),
        Err(error) => {
            log::error!("resync of replica {} ended: {error}", job.index);
            if job.is_current(store) {
                if is_lost(store, &error) {
                    store.poison(format!(
                        "what was written in the moment before all replicas were refused is on none of them ({error}). What \
                         was fsynced is safe; unmount and mount again"
                    ));
                }
                sourceless.fetch_or(u64::from(store.mirror().in_sync() == 0) << job.index, Ordering::AcqRel);
                job.abandon(store, &format!("its resync ended: {error}"));
            }
            Outcome::Failed(error.into())
        }
    }
}
