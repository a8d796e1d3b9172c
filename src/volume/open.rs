//! A volume in use: the filesystem, the thread that commits, the witness.
//!
//! Opening has three parts. `plan` decides and writes nothing. `open_store` opens the page store at the chosen root.
//! `into_open` puts the filesystem, the trail and the replicas over it. Which root is chosen, and why, is in
//! [`recovery`] and `assembled`; which replicas come and go later, in `members`.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::assembled::{Assembled, Chosen, OpenOptions, Swapped};
use super::error::{Error, System};
use super::losses::{self, Losses};
use super::members::resync::Resync;
use super::members::{AtMount, Members};
use super::recovery;
use super::sample::{self, Sample};
use super::scrub::Scrubs;
use super::witness::{self, Descent, Keeper};
use crate::audit::{Audit, Entry, Event, Known, Object, Reason, RegistryFacts, ReplicaFacts};
use crate::fs::Fs;
use crate::label::Root;
use crate::limits::{COMMIT_INTERVAL_MS, HOST_DISK_TIMEOUT_S};
use crate::mirror::{Incarnation, Mirror, State, device_offset};
use crate::pages::{self, Store, provisional::Lacking};
use crate::policy::clock::{self, Clock};
use crate::problem::{Code, Problem};
use crate::registry::{Date, VerifiedRegistry, hex};
use crate::units::{Generation, Uuid};

/// How often the commit thread wakes. It commits changes that it finds to have waited for two fifths of the promised
/// second.
const TICK: Duration = Duration::from_millis(COMMIT_INTERVAL_MS / 5);

/// How long the host's disk may take to show the witness or to take it, where something has to wait for that.
const WITNESS_PATIENCE: Duration = Duration::from_secs(HOST_DISK_TIMEOUT_S);

/// How long after a failure the list of lost blocks is put into the tables again.
const KEEP_AGAIN: Duration = Duration::from_mins(1);

/// How often the labels of the replicas in use are looked at.
const LABELS_INTERVAL: Duration = Duration::from_secs(10);

/// A volume in use.
pub struct Open {
    members: Arc<Members>,
    store: Arc<Store>,
    fs: Arc<Fs>,
    read_only: bool,
    witness: Option<Arc<Keeper>>,
    ticker: Option<Ticker>,
    losses: Option<Losses>,
    audit: Arc<Audit>,
    scrubs: Arc<Scrubs>,
    clock: Clock,
    pub(super) unremembered: bool,
}

struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Assembled {
    /// Opens the volume: chooses the root, refuses what [`super`] lists, makes this mount's epoch durable, and starts
    /// the thread that commits.
    ///
    /// # Errors
    /// See [`Error::code`]. On a refusal nothing has been written but what a replica lacked of the last commit.
    pub fn open(mut self, registry: &VerifiedRegistry, options: &OpenOptions) -> Result<Open, Error> {
        if !options.enrol {
            self.refuse_swapped()?;
        }
        self.presume_label();
        let mut plan = self.plan(registry, options)?;
        if self.settle_label(&plan.choice.root)? {
            plan = self.plan(registry, options)?;
        }
        self.refuse_other_side(&plan.choice.root)?;
        let enrolled = if options.enrol { self.enrol()? } else { Vec::new() };
        self.refuse_swapped()?;
        let store = self.open_store(registry, options, &mut plan)?;
        let store = match self.distrust(&store, &mut plan, options) {
            false => store,
            true => {
                drop(store);
                self.open_store(registry, options, &mut plan)?
            }
        };
        let Plan { choice, rings, behind, left_at, mut opening, seen, .. } = plan;
        opening.unremembered = is_unremembered(options, &choice.root, seen.as_ref(), &opening);
        opening.left_out = self.left_out().collect();
        let newer = store.quorum().saw_registry(&Arc::new(registry.clone()));
        opening.new_registry = store.quorum().saw_trust(registry.anchors_digest()) || newer;
        opening.enrolled = enrolled;
        opening.too_few = store.writable().err().map(|error| error.to_string());
        if options.read_only {
            store.poison_quietly("mounted read-only".to_owned());
        } else if store.poisoned().is_none() {
            self.confirm(registry)?;
            let newest: Vec<Option<Root>> = rings.iter().map(recovery::newest).collect();
            self.level_roots(&newest, &choice, store.mirror())?;
            // The epoch must be durable before anything else is sealed in it: this commit makes it so.
            store.commit(store.stage())?;
        }
        let remembered = seen.as_ref().map(|seen| seen.health().clone()).unwrap_or_default();
        let at_mount = AtMount { left_at, has_before: self.has_before(&choice, &rings), remembered };
        let replicas = std::mem::take(&mut self.replicas);
        let mut open = self.into_open(options, store, &choice, at_mount, Clock::starting_at(opening.clock.0))?;
        open.unremembered = opening.unremembered;
        losses::name_at_mount(&open.fs, &open.store);
        open.begin_audit(registry, options, &choice, &opening)?;
        if let Some(why) = open.store.poisoned().filter(|_| !options.read_only) {
            // Damage lets the volume only be read. So nobody is resynced. The thread tells the trail's reports what
            // happens.
            behind.iter().for_each(|resync| resync.abandon(&open.store, why));
            open.ticker = Some(open.start_ticker()?);
        } else if !options.read_only {
            replicas.iter().try_for_each(|replica| open.members.repair_label(replica))?;
            open.store.quorum().saw_label(open.members.header().id());
            open.begin_witness(options, seen.as_ref(), &choice.root)?;
            open.ticker = Some(open.start_ticker()?);
            for resync in behind {
                open.members.start_resync(resync, false)?;
            }
            open.members.finish_replacements();
        }
        open.losses = Some(Losses::start(&open.fs, &open.store)?);
        Ok(open)
    }

    /// Decides where the volume goes on from, and refuses what [`super`] lists. Writes nothing.
    fn plan(&self, registry: &VerifiedRegistry, options: &OpenOptions) -> Result<Plan, Error> {
        let volume = self.header.volume;
        if !options.read_only && !self.header.writable() {
            return Err(Error::ReadOnlyFeatures(volume));
        }
        let accept = options.accept_rollback;
        let (rings, Chosen { choice, proof, incomplete, accepted, slots }) = self.decide(options)?;
        // The last generation that a replica holds for certain. When its newest root is provisional, and the volume
        // does not go on from that root, whether all blocks of that commit are there is not known. So the generation
        // before it counts.
        let holds = |(index, root): (usize, Option<Root>)| match root {
            Some(root) if root.provisional.is_some() && root != choice.root => before(root.generation),
            // It lacks some of that root's commit.
            Some(root) if root == choice.root && choice.states.get(index) == Some(&State::Stale) => {
                before(root.generation)
            }
            root => root.map_or(Generation(0), |root| root.generation),
        };
        let left_at = rings.iter().map(recovery::newest).enumerate().map(holds).collect();
        self.check_registry(registry, &choice.root)?;
        let Seen { record: seen, written_unix_s, rolled_back, unreadable } = self.check_witness(options, &choice)?;
        if let Some(accepted) = seen.as_ref().and_then(witness::Record::registry) {
            accepted.admits(registry, "this host").map_err(|problem| Error::Registry(vec![problem]))?;
        }
        if let Some(given) = accept.filter(|given| *given != choice.root.generation) {
            let generation = choice.root.generation;
            log::warn!(
                "volume {volume}: nothing is accepted with accept-rollback={given}: it goes on from generation {generation}. Leave the option out"
            );
        }
        let clock = check_clock(options, volume, &choice.root, written_unix_s)?;
        let behind = if options.read_only { Vec::new() } else { self.left_behind(&choice, &rings) };
        let opening = Opening { rolled_back, unreadable, clock, incomplete, accepted, ..Opening::default() };
        Ok(Plan { choice, slots, rings, lacking: proof.lacking, behind, left_at, opening, seen })
    }

    /// Takes a sample of every replica, and plans for those that turn out to be hollow: they are stale, and resynced whole.
    /// Returns whether there are any.
    fn distrust(&self, store: &Arc<Store>, plan: &mut Plan, options: &OpenOptions) -> bool {
        let states = plan.choice.states.iter().enumerate();
        let in_sync = states.filter(|(_, state)| **state == State::InSync).map(|(index, _)| (index, u32::MAX));
        let behind = plan.behind.iter().map(|resync| (resync.index, resync.since_epoch));
        let in_sync: Vec<(usize, u32)> = in_sync.collect();
        let Sample { hollow, unproven } =
            sample::take(store, &in_sync.iter().copied().chain(behind).collect::<Vec<_>>());
        let is_unproven = |resync: &&mut Resync| unproven >> resync.index & 1 == 1;
        plan.behind.iter_mut().filter(is_unproven).for_each(|resync| resync.since_epoch = 0);
        if in_sync.iter().all(|(index, _)| hollow >> index & 1 == 1) {
            // There is nothing better to go on from. What is damaged is told of as it is found.
            return false;
        }
        for index in (0..plan.choice.states.len()).filter(|index| hollow >> index & 1 == 1) {
            log::error!(
                "{} does not hold what its label says: it is stale, and has to be copied whole",
                self.name(index)
            );
            plan.choice.states[index] = State::Stale;
            plan.left_at[index] = Generation(0);
            plan.behind.retain(|resync| resync.index != index);
            if !options.read_only {
                plan.behind.push(Resync::new(index, Incarnation::default(), 0));
            }
        }
        hollow != 0
    }

    /// Opens the store at the chosen root, in an epoch of its own.
    ///
    /// When the root is provisional, the replicas are first given what they lack of its commit, and the commit is made
    /// durable everywhere. A volume that is only read is not written to for that.
    fn open_store(
        &self,
        registry: &VerifiedRegistry,
        options: &OpenOptions,
        plan: &mut Plan,
    ) -> Result<Arc<Store>, Error> {
        let mut states = plan.choice.states.clone();
        for resync in &plan.behind {
            states[resync.index] = State::Resyncing;
        }
        let (mirror, device_bytes) = self.mirror(&states)?;
        mirror.cache_reads(options.cache_bytes);
        if options.read_only {
            mirror.stop_repairing();
        } else if plan.choice.root.provisional.is_some() || !plan.lacking.is_empty() {
            self.confirm(registry)?;
            self.complete(&plan.lacking, &mirror)?;
            for (index, state) in plan.choice.states.iter_mut().enumerate() {
                if *state == State::InSync && mirror.state(index).0 != State::InSync {
                    // The replica failed meanwhile. It may have the root, but not all that the root's commit wrote:
                    // what it holds for certain is the generation before.
                    *state = mirror.state(index).0;
                    plan.left_at[index] = before(plan.choice.root.generation);
                }
            }
        }
        self.store_at(&plan.choice.root, plan.slots, mirror, device_bytes)
    }

    /// Puts the filesystem, the trail and the replicas over an open store. The commit thread does not run yet.
    fn into_open(
        self,
        options: &OpenOptions,
        store: Arc<Store>,
        choice: &recovery::Choice,
        at_mount: AtMount,
        clock: Clock,
    ) -> Result<Open, Error> {
        let read_only = options.read_only;
        let fs = Arc::new(Fs::open(store.clone())?);
        let seed = self.keys.audit_seed();
        let audit = Audit::new(fs.clone(), &self.header, seed, options.witness.as_deref(), &choice.states)?;
        let audit = Arc::new(audit);
        let keys = self.keys.volume_key().keys(self.header.volume);
        let members = Members::new(self.header, keys, store.clone(), fs.clone(), audit.clone(), read_only, at_mount);
        let (witness, ticker, losses, unremembered) = (None, None, None, false);
        let scrubs = Scrubs::new(members.clone(), store.clone(), fs.clone(), audit.clone());
        Ok(Open { members, store, fs, read_only, witness, ticker, losses, audit, scrubs, clock, unremembered })
    }

    /// The replicas that are present but stale: the root does not name them, or they are too old. And what each of them
    /// has.
    fn left_behind(&self, choice: &recovery::Choice, rings: &[recovery::Ring]) -> Vec<Resync> {
        let mut behind = Vec::new();
        for replica in &self.replicas {
            let index = replica.index();
            if choice.states.get(index) != Some(&State::Stale) {
                continue;
            }
            let since = recovery::last_epoch_in_sync(recovery::ring_of(rings, index), index, &choice.root);
            behind.push(Resync::new(index, Incarnation::default(), since));
        }
        behind
    }

    /// Has the policy confirm every device. To be called directly before something is written for the first time: a
    /// device that was approved before the key was found may be another one by now.
    fn confirm(&self, registry: &VerifiedRegistry) -> Result<(), Error> {
        Ok(self.replicas.iter().try_for_each(|replica| replica.device.confirm(registry))?)
    }

    /// Completes the chosen root's commit on the in-sync replicas, in two steps:
    ///
    /// 1. A replica is given the blocks that it lacks, because the power failed before it had them.
    /// 2. All replicas are flushed: what was found on a device may be in its cache only.
    fn complete(&self, lacking: &[Lacking], mirror: &Mirror) -> Result<(), Error> {
        for lacking in lacking {
            for replica in &self.replicas {
                let index = replica.index();
                if lacking.replicas >> index & 1 == 0 {
                    continue;
                }
                let written = replica.device.write_at(device_offset(lacking.addr), &[IoSlice::new(&lacking.sealed)]);
                if let Err(error) = written {
                    mirror.failed(index, &error);
                }
            }
        }
        mirror.flush().map_err(pages::Error::from)?;
        Ok(())
    }

    /// Writes the chosen root to in-sync replicas that do not have it, because the power failed between the roots. The
    /// replicas that have the root keep theirs untouched.
    ///
    /// So no in-sync replica is ever more than one root behind, however often the power fails. A replica that is
    /// further behind was replaced by an old copy ([`super::recovery`]).
    fn level_roots(&self, newest: &[Option<Root>], choice: &recovery::Choice, mirror: &Mirror) -> Result<(), Error> {
        let sealed = choice.root.sealed(&self.keys, self.header.volume)?;
        for replica in &self.replicas {
            let index = replica.index();
            let has = newest.get(index).is_some_and(|found| *found == Some(choice.root));
            if has || choice.states.get(index) != Some(&State::InSync) {
                continue;
            }
            let offsets = choice.root.offsets(replica.header.device_bytes);
            if let Err(error) = replica.device.write_durably(&offsets, &sealed) {
                mirror.failed(index, &error);
            }
        }
        Ok(())
    }
}

/// Whether this host has no witness of a volume that was mounted before. A volume that was only made has nothing that it
/// could have been set back from.
fn is_unremembered(options: &OpenOptions, root: &Root, seen: Option<&witness::Record>, opening: &Opening) -> bool {
    let is = options.witness.is_some() && seen.is_none() && opening.unreadable.is_none() && root.epoch() > EPOCH_MADE;
    if is {
        log::warn!(
            "this host has no witness of the volume: perhaps it was never mounted here. If all devices were set back to \
             generation {}, nothing would show it",
            root.generation
        );
    }
    is
}

/// The generation before.
fn before(generation: Generation) -> Generation {
    Generation(generation.0.saturating_sub(1))
}

/// The epoch in which a volume is made ([`super::create`]).
const EPOCH_MADE: u32 = 1;

/// What an opening has decided before anything is written.
struct Plan {
    choice: recovery::Choice,
    /// Slots of the ring that open on every replica in sync.
    slots: u64,
    rings: Vec<recovery::Ring>,
    /// What replicas in sync lack of the root's commit.
    lacking: Vec<Lacking>,
    /// The replicas that are to be resynced.
    behind: Vec<Resync>,
    /// The last generation that each replica holds for certain.
    left_at: Vec<Generation>,
    opening: Opening,
    /// What the host remembers.
    seen: Option<witness::Record>,
}

/// What the trail is to tell of an opening.
#[derive(Default)]
struct Opening {
    /// The generation that the witness had seen, when an older one was accepted.
    rolled_back: Option<Generation>,
    /// The time from which the days are counted, in seconds since 1970; and the problem with the clock that the
    /// administrator accepted.
    clock: (u64, Option<Problem>),
    /// Why the witness could not be read, when the administrator goes on without it.
    unreadable: Option<String>,
    /// Whether the registry is newer than any before, or its officers are others.
    new_registry: bool,
    /// Why the policy lets the volume only be read.
    too_few: Option<String>,
    /// Why the volume does not go on from the newest root.
    incomplete: Option<String>,
    /// What the administrator has accepted of what could not be decided.
    accepted: Option<String>,
    /// Whether the host has no witness of the volume, though it was mounted before.
    unremembered: bool,
    /// Which devices are enrolled anew.
    enrolled: Vec<Swapped>,
    /// The devices that are left out, and why.
    left_out: Vec<String>,
}

/// What the host's witness says of the chosen root.
#[derive(Default)]
struct Seen {
    record: Option<witness::Record>,
    /// When the host wrote it, in seconds since 1970.
    written_unix_s: Option<u64>,
    /// The generation that the witness had seen, when the administrator accepts that it is not in the root's history.
    rolled_back: Option<Generation>,
    /// Why the witness cannot be read, when the administrator accepts that.
    unreadable: Option<String>,
}

impl Assembled {
    /// Compares the chosen root with the witness.
    fn check_witness(&self, options: &OpenOptions, choice: &recovery::Choice) -> Result<Seen, Error> {
        let Some(folder) = &options.witness else { return Ok(Seen::default()) };
        let volume = self.header.volume;
        let (record, written_unix_s) = match witness::read_within(folder, volume, WITNESS_PATIENCE) {
            Ok(Some(seen)) => seen,
            Ok(None) => return Ok(Seen::default()),
            Err(source) => {
                let (folder, given) = (folder.display().to_string(), options.accept_rollback);
                let error = Error::Witness { volume, folder, found: choice.root.generation, given, source };
                if given != error.acceptable() {
                    return Err(error);
                }
                log::warn!("{error}: the administrator goes on without it");
                return Ok(Seen { unreadable: Some(error.to_string()), ..Seen::default() });
            }
        };
        let (seen, found) = (record.generation(), choice.root.generation);
        let why = match record.descent(&choice.root) {
            Descent::Proved => return Ok(Seen { record: Some(record), written_unix_s, ..Seen::default() }),
            Descent::Forgotten => {
                "that was more mounts ago than the volume remembers, and whether it went through that \
                                   generation cannot be told"
                    .to_owned()
            }
            Descent::Disproved if found < seen => "the devices that are here show an older state".to_owned(),
            Descent::Disproved => {
                "the devices show a history that did not go through it. They were set back to an older \
                                   state and used elsewhere"
                    .to_owned()
            }
        };
        let is_here = |index: &usize| matches!(choice.states.get(*index), Some(State::InSync | State::Stale));
        let away: Vec<usize> = record.in_sync().iter().copied().filter(|index| !is_here(index)).collect();
        let why = match away.is_empty() {
            true => why,
            false => format!("{why}. {} held that generation: attach it", self.names(&away)),
        };
        let given = options.accept_rollback;
        if given == Some(found) {
            log::warn!(
                "volume {volume}: rollback from generation {seen} to {found} accepted by the administrator: {why}"
            );
            return Ok(Seen { record: Some(record), written_unix_s, rolled_back: Some(seen), unreadable: None });
        }
        Err(Error::RolledBack { volume, found, seen, given, why })
    }
}

/// Compares the clock with the time of the last commit, and with when the host noted it. Returns the time from which the
/// days are counted, and the problem with the clock when the administrator accepts that.
fn check_clock(
    options: &OpenOptions,
    volume: Uuid,
    root: &Root,
    noted: Option<u64>,
) -> Result<(u64, Option<Problem>), Error> {
    let now = options.now_unix_s.unwrap_or_else(clock::now_unix_s);
    let committed = u64::try_from(root.committed_unix_ns / 1_000_000_000).unwrap_or(0);
    let mut known = vec![clock::Known { from: "the last commit of the volume", unix_s: committed }];
    known.extend(noted.map(|unix_s| clock::Known { from: "this host's note of the volume", unix_s }));
    let Err(problem) = clock::check(&known, now) else {
        return Ok((known.iter().map(|known| known.unix_s).fold(now, u64::max), None));
    };
    if options.accept_clock.is_none() || options.accept_clock != Date::from_unix(now) {
        return Err(Error::Registry(vec![problem]));
    }
    log::warn!("volume {volume}: {}; accepted by the administrator", problem.text);
    Ok((now, Some(problem)))
}

impl Open {
    /// The filesystem.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// The replicas: which is refused, which comes back.
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// The scrubs: begun, made to wait, ended.
    pub fn scrubs(&self) -> &Arc<Scrubs> {
        &self.scrubs
    }

    /// The days, as they are known to this volume.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The page store below it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The volume.
    pub fn uuid(&self) -> Uuid {
        self.members.volume()
    }

    /// Its label.
    pub fn label(&self) -> &str {
        self.members.volume_label()
    }

    /// The audit trail.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// Records the opening. The record is durable before anything else happens to the volume.
    fn begin_audit(
        &self,
        registry: &VerifiedRegistry,
        options: &OpenOptions,
        choice: &recovery::Choice,
        opening: &Opening,
    ) -> Result<(), Error> {
        let (audit, mirror) = (&self.audit, self.store.mirror());
        let replica = |(index, state): (usize, &State)| {
            let entry = mirror.device(index).map(|device| device.registry_entry());
            let site = entry.as_ref().map(|entry| entry.site.as_str());
            ReplicaFacts::new(index, &self.members.registry_id(index), &mirror.device_name(index), site, *state)
        };
        let rows = self.members.rows();
        let mounted = Event::Mounted {
            host: audit.host().to_owned(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            read_only: self.read_only,
            degraded: options.degraded,
            after_crash: audit.ended_by_crash()?,
            generation: choice.root.generation.0,
            registry: RegistryFacts::of(registry),
            replicas: choice.states.iter().enumerate().filter(|(index, _)| rows.contains(index)).map(replica).collect(),
        };
        let too_few = opening.too_few.as_ref().map(|why| Reason::new(Code::Policy, why));
        let incomplete = opening.incomplete.as_ref().map(|why| Reason::new(Code::CommitIncomplete, why));
        let accepted = opening.accepted.as_ref().map(|why| Reason::new(Code::VolumeUnproven, why));
        let left_out = opening.left_out.iter().map(|why| Reason::new(Code::LabelDamaged, why));
        let unreadable = opening.unreadable.as_ref().map(|why| Reason::new(Code::WitnessUnavailable, why));
        let unasked = self.store.poisoned().filter(|_| !self.read_only);
        let damaged = unasked.map(|why| Reason::new(self.store.read_only_code(), why));
        let reasons =
            too_few.into_iter().chain(incomplete).chain(accepted).chain(left_out).chain(unreadable).chain(damaged);
        let mut entries = vec![Entry::done(audit.user(), Object::Volume, mounted).because(reasons)];
        if let Some(seen) = opening.rolled_back {
            let event = Event::RollbackAccepted { seen: seen.0, found: choice.root.generation.0 };
            entries.push(Entry::done(audit.user(), Object::Volume, event));
        }
        if opening.unremembered {
            entries.push(Entry::noticed(Object::Volume, Event::WitnessMissing));
        }
        for swapped in &opening.enrolled {
            let known = |(id, digest): &(String, [u8; 32])| Known { registry_id: id.clone(), identity: hex(digest) };
            let event = Event::ReplicaEnrolled { before: known(&swapped.enrolled), now: known(&swapped.listed) };
            entries.push(Entry::done(audit.user(), audit.replica(swapped.index), event));
        }
        if let Some(problem) = &opening.clock.1 {
            entries.push(Entry::done(audit.user(), Object::Volume, Event::ClockAccepted).because([problem.into()]));
        }
        if opening.new_registry {
            entries.push(Audit::registry_accepted(registry));
        }
        audit.begin(entries)?;
        audit.observe();
        Ok(())
    }

    /// Makes the last commit and closes the volume. This always ends: a device that does not answer is fenced.
    ///
    /// # Errors
    /// When the last commit fails; the volume is closed all the same.
    pub fn close(mut self) -> Result<(), Error> {
        self.stop();
        self.audit.end();
        if self.read_only {
            return Ok(());
        }
        if let Err(error) = self.fs.keep_lost() {
            log::warn!("which blocks are lost is not written down: {error}");
        }
        let result = match self.store.committable() {
            // When no operation waits for a commit, none has to be made, and no replica is needed for it.
            Err(error) if self.fs.is_clean() => {
                self.audit.hand_over(&error.into());
                Ok(())
            }
            // The first commit's root may be provisional, and so depend on the blocks written with it. The second's is
            // not.
            _ => self.fs.checkpoint().and_then(|()| self.fs.checkpoint()),
        };
        if result.is_err() {
            // The host must know of what the failure changed.
            self.audit.observe();
        }
        self.end_witness();
        Ok(result?)
    }

    fn stop(&mut self) {
        self.losses.take().into_iter().for_each(Losses::stop);
        self.scrubs.close();
        self.members.stop();
        let Some(Ticker { stop, thread }) = self.ticker.take() else { return };
        *stop.0.lock() = true;
        stop.1.notify_all();
        if thread.join().is_err() {
            log::error!("the commit thread panicked");
        }
    }

    /// Starts the thread that writes the witness, and has it remember this opening.
    ///
    /// From here on a commit that leaves a replica behind waits for the witness. The opening itself may leave one
    /// behind: then the volume takes changes only if the host remembers that.
    fn begin_witness(
        &mut self,
        options: &OpenOptions,
        seen: Option<&witness::Record>,
        chosen: &Root,
    ) -> Result<(), Error> {
        let Some(folder) = options.witness.clone() else { return Ok(()) };
        let keeper = Keeper::start(folder, self.uuid(), seen);
        let keeper = Arc::new(keeper.map_err(|source| System::error("starting the witness's thread", source))?);
        let remember = keeper.clone();
        self.store.on_departure(Box::new(move |store| remember.cover(store, WITNESS_PATIENCE)));
        if let Err(why) = keeper.cover(&self.store, WITNESS_PATIENCE)
            && chosen.in_sync & !self.store.root().in_sync != 0
        {
            let why = format!("a replica was left behind, and this host could not remember that: {why}");
            self.store.poison_because(Code::WitnessUnavailable, why);
        }
        self.witness = Some(keeper);
        Ok(())
    }

    /// Has the witness remember the last commit, and ends its thread. The wait is bounded.
    fn end_witness(&self) {
        let Some(keeper) = &self.witness else { return };
        keeper.remember(self.members.health());
        if let Err(why) = keeper.cover(&self.store, WITNESS_PATIENCE) {
            log::error!("{why}");
        } else {
            keeper.finish(WITNESS_PATIENCE);
        }
        keeper.end();
    }

    fn start_ticker(&self) -> Result<Ticker, Error> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (fs, store, witness) = (self.fs.clone(), self.store.clone(), self.witness.clone());
        let (audit, members) = (self.audit.clone(), self.members.clone());
        let signal = stop.clone();
        let run = move || {
            let mut before = store.generation();
            let mut looked = Instant::now();
            let mut kept = None;
            loop {
                let mut stopped = signal.0.lock();
                signal.1.wait_while_for(&mut stopped, |stopped| !*stopped, TICK);
                if *stopped {
                    return;
                }
                drop(stopped);
                audit.take_back();
                audit.observe();
                members.tell_of_unreliable();
                if looked.elapsed() >= LABELS_INTERVAL {
                    looked = Instant::now();
                    members.look_at_labels();
                }
                if kept.is_none_or(|at: Instant| at.elapsed() >= KEEP_AGAIN)
                    && store.committable().is_ok()
                    && let Err(error) = fs.keep_lost()
                {
                    log::warn!("which blocks are lost is not written down yet: {error}");
                    kept = Some(Instant::now());
                }
                if fs.dirty_since().is_some_and(|since| since.elapsed() >= TICK * 2) && store.committable().is_ok() {
                    // When the commit fails, the store has the reason from now on, and every answer gives it.
                    let _ = fs.sync();
                } else if store.generation() == before && store.is_provisional() && store.committable().is_ok() {
                    // Nothing goes on: a commit with a root that is not provisional makes the last one need no proof.
                    let _ = fs.checkpoint();
                }
                if let Some(keeper) = &witness {
                    keeper.remember(members.health());
                    if store.generation() != before {
                        keeper.note(&store);
                    }
                }
                before = store.generation();
            }
        };
        let thread = std::thread::Builder::new().name("commit".to_owned()).spawn(run);
        let thread = thread.map_err(|source| System::error("starting the commit thread", source))?;
        Ok(Ticker { stop, thread })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop();
    }
}
