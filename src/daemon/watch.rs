//! The daemon's watch over the registry and the devices (promise P2). It checks the registry and the facts of every
//! device
//!
//! * when the kernel says that a device came, went or changed,
//! * when the registry, a signature or the trust anchors change, however they are replaced,
//! * at midnight (UTC), when validities end, and two seconds before; and when the clock is set,
//! * and at least every [`INTERVAL`], whatever was or was not said; sooner while a device has not answered.
//!
//! The watch decides when to check. What a check finds is [`crate::policy`]'s and [`crate::volume`]'s. The watch never
//! waits for a transfer: another thread applies the findings, up to the commit ([`Queue`]).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::devices;
use super::report::log_problem;
use super::request::Documents;
use crate::audit::{Audit, Entry, Event, Object, Reason};
use crate::control::WatchStatus;

use crate::limits::{DEVICE_TIMEOUT_S, LEASE_S, SIGNATURES_MAX};
use crate::os::events::{Events, Waker};
use crate::os::syslog::{Standing, Syslog};
use crate::policy::clock::{Clock, now_unix_s};
use crate::policy::{Classified, kind};
use crate::probe::host::HostFacts;
use crate::probe::sys::Kernel;
use crate::problem::{Code, Problem};
use crate::registry::{Date, VerifiedRegistry};
use crate::volume::{Findings, Members};

/// Longest time between two checks.
const INTERVAL: Duration = Duration::from_secs(30);

/// How often the registry file is looked at while the kernel does not tell of its changes.
const TICK: Duration = Duration::from_secs(1);

/// How long the files must have been left alone: a registry and its signatures seldom arrive in one piece.
const SETTLED: Duration = Duration::from_millis(100);

/// Longest wait for that.
const SETTLING_MAX: Duration = Duration::from_secs(2);

/// Shortest time between two checks: a bus that is rescanned sends hundreds of messages.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the watch's threads are asked whether they have ended.
const POLL: Duration = Duration::from_millis(1);

/// Longest time between two checks while a device has not answered.
const IMPATIENT: Duration = Duration::from_millis(500);

/// How long a check may take before that is said.
const STALLED: Duration = Duration::from_secs(10);

/// An approval is renewed at least twice before it ends.
const _: () = assert!(2 * INTERVAL.as_secs() <= LEASE_S);

const DAY_S: u64 = 24 * 60 * 60;

/// How long before midnight the volume is prepared for devices whose approval ends with the day.
const EVE_S: u64 = 2;

/// What is in force, as the last check found it.
#[derive(Clone, Debug)]
pub(super) struct InForce {
    /// The registry in force: the last one that verified.
    pub(super) registry: Arc<VerifiedRegistry>,
    /// What kind it is on this host.
    pub(super) kind: Classified,
    /// Why the registry file is not the registry in force, when it is not.
    pub(super) concerns: Vec<Problem>,
    /// What makes the watch check.
    pub(super) watching: WatchStatus,
}

/// Checks the registry and the devices, for whoever asks.
pub(super) struct Checker {
    documents: Documents,
    members: Arc<Members>,
    found: Mutex<InForce>,
    /// The days. Held for a whole check, so that no older registry follows a newer one.
    turn: Mutex<Clock>,
    queue: Queue,
    /// Whether no findings are applied any more.
    closing: AtomicBool,
    ending: AtomicBool,
    /// Reads and verifies the registry.
    load: Loader,
    /// When the check that has not ended began.
    begun: Mutex<Option<Instant>>,
}

/// Reads and verifies the registry.
type Loader = Box<dyn Fn(&Documents) -> Result<VerifiedRegistry, Problem> + Send + Sync>;

/// The findings of checks, for the thread that applies them.
#[derive(Default)]
struct Queue {
    findings: Mutex<Option<Findings>>,
    more: Condvar,
}

/// A running watch.
pub(super) struct Watch {
    checker: Arc<Checker>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching the devices of a volume, which `registry` has approved.
    pub(super) fn start(
        documents: Documents,
        registry: VerifiedRegistry,
        members: Arc<Members>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        Self::start_with(documents, registry, members, clock, Box::new(devices::load_registry))
    }

    fn start_with(
        documents: Documents,
        registry: VerifiedRegistry,
        members: Arc<Members>,
        clock: Clock,
        load: Loader,
    ) -> std::io::Result<Self> {
        let mut events = Events::open()?;
        events.follow(&[&documents.registry, &documents.trust]);
        let watching = status(&events);
        let kind = kind::on_this_host(&registry);
        let found = Mutex::new(InForce { registry: Arc::new(registry), kind, concerns: Vec::new(), watching });
        let (queue, closing, ending) = (Queue::default(), AtomicBool::new(false), AtomicBool::new(false));
        let turn = Mutex::new(clock);
        let begun = Mutex::default();
        let checker = Arc::new(Checker { documents, members, found, turn, queue, closing, ending, load, begun });
        let mut watch = Self { checker: Arc::clone(&checker), waker: events.waker(), threads: Vec::new() };
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        let applying = Arc::clone(&checker);
        watch.threads.push(named("watch").spawn(move || checker.run(events))?);
        watch.threads.push(named("apply").spawn(move || applying.apply_findings())?);
        Ok(watch)
    }

    /// The checker, for other parts of the daemon that want a check.
    pub(super) fn checker(&self) -> &Arc<Checker> {
        &self.checker
    }

    /// Goes on with the checks alone, for a volume that is being closed: its last commit needs approved devices, and
    /// after it nothing may be written.
    pub(super) fn only_check(&mut self) {
        self.checker.closing.store(true, Ordering::Release);
        // The lock is taken so that the thread that applies is not between looking at `closing` and waiting.
        drop(self.checker.queue.findings.lock());
        self.checker.queue.more.notify_all();
        self.join(1);
    }

    /// Waits for the threads to end, but for the first `left`. The wait is bounded.
    fn join(&mut self, left: usize) {
        let deadline = Instant::now() + Duration::from_secs(DEVICE_TIMEOUT_S);
        for thread in self.threads.drain(left.min(self.threads.len())..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
            if !thread.is_finished() {
                log::error!("the watch waits for a device that does not answer; its thread is left behind");
            } else if thread.join().is_err() {
                log::error!("the watch panicked");
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.checker.ending.store(true, Ordering::Release);
        self.waker.wake();
        self.only_check();
        self.join(0);
    }
}

fn status(events: &Events) -> WatchStatus {
    WatchStatus { devices: events.sees_devices(), files: events.sees_files(), interval_s: INTERVAL.as_secs() }
}

impl Queue {
    fn add(&self, findings: Findings) {
        self.findings.lock().get_or_insert_default().append(findings);
        self.more.notify_all();
    }

    /// Waits for findings. None when the volume is being closed and all findings are applied.
    fn next(&self, closing: &AtomicBool) -> Option<Findings> {
        let mut findings = self.findings.lock();
        loop {
            let next = findings.take();
            if next.is_some() || closing.load(Ordering::Acquire) {
                return next;
            }
            self.more.wait(&mut findings);
        }
    }
}

impl Checker {
    /// What is in force, as the last check found it; and that the next one does not end, if it does not.
    pub(super) fn found(&self) -> InForce {
        let mut found = self.found.lock().clone();
        let lasting = self.begun.lock().map_or(Duration::ZERO, |begun| begun.elapsed());
        if lasting >= STALLED {
            let (registry, s) = (self.documents.registry.display(), lasting.as_secs());
            let text = format!(
                "the check of registry and devices has not ended for {s} s: perhaps {registry} cannot be read. Nothing is \
                 written to a device whose last check began {LEASE_S} s ago or earlier"
            );
            found.concerns.push(Problem::new(Code::ApprovalOverdue, text));
        }
        found
    }

    /// The replicas that are checked.
    pub(super) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    fn run(&self, mut events: Events) {
        let mut version = None;
        let mut log_fails = false;
        let (mut looked, mut interval) = (Instant::now(), INTERVAL);
        while !self.ending.load(Ordering::Acquire) {
            let now = self.timed(|| self.file_version());
            if version.as_ref() != Some(&now) || looked.elapsed() >= interval {
                let findings = self.check();
                interval = if findings.unsettled { IMPATIENT } else { INTERVAL };
                self.queue.add(findings);
                (version, looked) = (Some(now), Instant::now());
            }
            let log_waits = Syslog::in_use().is_some_and(|log| self.look_at_log(log, &mut log_fails));
            self.timed(|| events.follow(&[&self.documents.registry, &self.documents.trust]));
            events.alarm(next_alarm(now_unix_s()));
            self.found.lock().watching = status(&events);
            // A change that came before the files were followed shows here.
            let is_followed = events.sees_files() && version == Some(self.timed(|| self.file_version()));
            let most = if is_followed && !log_waits { INTERVAL } else { TICK };
            let mut happened = events.wait(most.min(interval.saturating_sub(looked.elapsed())));
            if happened.files {
                let begin = Instant::now();
                while happened.files && !happened.devices && begin.elapsed() < SETTLING_MAX {
                    happened = events.wait(SETTLED);
                }
            }
            if happened.devices {
                self.members.hold_those_with_paths();
            }
            if happened.devices || happened.clock {
                let early = PAUSE.saturating_sub(looked.elapsed());
                if !early.is_zero() {
                    std::thread::sleep(early);
                }
                // Check on the next turn.
                version = None;
            }
        }
    }

    /// Sends what waits for the system's log, and has the trail tell when that begins or ceases to fail. Returns whether to
    /// try again soon.
    fn look_at_log(&self, log: &Syslog, fails: &mut bool) -> bool {
        log.flush();
        let standing = log.standing();
        if standing.is_failing() != *fails {
            self.queue.add(log_findings(fails, &standing));
        }
        standing.is_failing()
    }

    /// A value that changes when somebody edits or replaces the registry, one of its signatures or the trust anchors.
    fn file_version(&self) -> Vec<(u64, u64, i64, i64)> {
        let version = |path: &Path| {
            let of = |m: std::fs::Metadata| (m.ino(), m.size(), m.ctime(), m.ctime_nsec());
            std::fs::metadata(path).map(of).unwrap_or_default()
        };
        let registry = &self.documents.registry;
        let mut versions = vec![version(registry), version(&self.documents.trust)];
        let (folder, name) = (registry.parent().unwrap_or(registry), registry.file_name().unwrap_or_default());
        let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let signatures = beside.filter(|entry| {
            let candidate = entry.file_name();
            candidate.as_encoded_bytes().starts_with(name.as_encoded_bytes()) && candidate != name
        });
        let mut signatures: Vec<_> = signatures.take(SIGNATURES_MAX).map(|entry| version(&entry.path())).collect();
        signatures.sort_unstable();
        versions.extend(signatures);
        versions
    }

    /// Applies the findings of checks, until the watch ends.
    fn apply_findings(&self) {
        while let Some(findings) = self.queue.next(&self.closing) {
            self.members.apply(findings);
        }
    }

    /// Checks the registry and every device now, and applies the findings.
    pub(super) fn check_and_apply(&self) {
        let findings = self.check();
        self.members.apply(findings);
    }

    /// Checks the registry and every device now. A device that is refused is fenced when this returns.
    fn check(&self) -> Findings {
        self.timed(|| self.check_at(&mut self.turn.lock()))
    }

    /// Does what may never end when a file cannot be reached, so that [`found`](Self::found) says so.
    fn timed<T>(&self, what: impl FnOnce() -> T) -> T {
        *self.begun.lock() = Some(Instant::now());
        let done = what();
        *self.begun.lock() = None;
        done
    }

    fn check_at(&self, clock: &mut Clock) -> Findings {
        let mut findings = Findings::default();
        let known = self.found();
        let today = match clock.today() {
            Ok(today) => today,
            Err(problem) => {
                // Its text has times, which differ each time.
                if !known.concerns.iter().any(|before| before.code == problem.code) {
                    log::error!("{problem}");
                }
                self.found.lock().concerns = vec![problem.clone()];
                return self.members.refuse(&problem);
            }
        };
        let (registry, concerns) = self.registry(&known, &mut findings);
        let host = HostFacts::read(&Kernel);
        findings.append(self.members.check(&registry, &host, today));
        let soon = Date::from_unix(now_unix_s() + EVE_S).filter(|day| *day != today);
        if let Some(tomorrow) = soon {
            findings.append(self.members.foresee(&registry, &host, tomorrow));
        }
        let kind = kind::on_this_host(&registry);
        let mut found = self.found.lock();
        if found.kind != kind {
            log::warn!("the volume is {} now{}", kind.kind, because(&kind));
        }
        (found.registry, found.kind, found.concerns) = (registry, kind, concerns);
        findings
    }

    /// The registry that is in force from now on; and, if the file is another one, the problem with it.
    fn registry(&self, known: &InForce, findings: &mut Findings) -> (Arc<VerifiedRegistry>, Vec<Problem>) {
        let concern = match (self.load)(&self.documents) {
            Ok(registry) if registry.version() < known.registry.version() => Problem::new(
                Code::RegistryRolledBack,
                format!(
                    "{} is of version {}, version {} is in force",
                    self.documents.registry.display(),
                    registry.version(),
                    known.registry.version()
                ),
            ),
            Ok(registry)
                if registry.version() == known.registry.version()
                    && registry.document_digest() != known.registry.document_digest() =>
            {
                Problem::new(
                    Code::RegistryEquivocal,
                    format!(
                        "{} is another document than the registry of the same version {} that is in force, which stays",
                        self.documents.registry.display(),
                        registry.version()
                    ),
                )
            }
            Ok(registry) if !registry.is_trusted_by(&known.registry.anchors_digest()) => Problem::new(
                Code::RegistryOther,
                format!(
                    "{} is no longer what the volume was created with; the registry in force stays",
                    self.documents.trust.display()
                ),
            ),
            Ok(registry) => {
                if registry.document_digest() != known.registry.document_digest() {
                    findings.tell(Audit::registry_accepted(&registry));
                }
                return (Arc::new(registry), Vec::new());
            }
            Err(problem) => Problem { text: format!("{}; the registry in force stays", problem.text), ..problem },
        };
        if !known.concerns.contains(&concern) {
            log::error!("{concern}");
            findings.tell(Audit::registry_refused(&concern));
        }
        (Arc::clone(&known.registry), vec![concern])
    }
}

/// What a volume lacks to be sovereign, for the log.
fn because(found: &Classified) -> String {
    found.lacking.iter().map(|lacking| format!("; {lacking}")).collect()
}

/// What the trail is to tell of the system's log; `fails` becomes what it is told.
fn log_findings(fails: &mut bool, log: &Standing) -> Findings {
    *fails = log.is_failing();
    let (waiting, lost) = (log.waiting, log.lost);
    let event = if log.is_failing() { Event::LogUnavailable { waiting, lost } } else { Event::LogAvailable { lost } };
    let reason = log_problem(log).map(|problem| Reason::from(&problem));
    let mut findings = Findings::default();
    findings.tell(Entry::noticed(Object::Volume, event).because(reason));
    findings
}

/// When to check next because of the clock, in seconds since 1970: at the end of the day (UTC), when validities end, or
/// shortly before.
fn next_alarm(now_unix_s: u64) -> u64 {
    let midnight = (now_unix_s / DAY_S + 1) * DAY_S;
    if now_unix_s < midnight - EVE_S { midnight - EVE_S } else { midnight }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::{KdfParams, Secret};
    use crate::device::IdentifiedDevice;
    use crate::device::faulty::{Effect, Face, Fault, FaultyDevice, Operation};
    use crate::device::memory::MemoryDevice;
    use crate::fs::Caller;
    use crate::mirror::State;
    use crate::policy::laboratory::{self, Officers};
    use crate::policy::{ApprovedDevice, clock};
    use crate::registry::{Registry, Status};
    use crate::units::Ino;
    use crate::volume::{self, CreateOptions, OpenOptions, Sealed};

    /// A volume on three devices in memory, and its documents in a folder.
    struct Watched {
        dir: tempfile::TempDir,
        officers: Officers,
        registry: Mutex<Registry>,
        devices: Vec<Arc<FaultyDevice>>,
    }

    impl Watched {
        fn new() -> Self {
            let device = |i| Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(&format!("m{i}"), 17 << 20))));
            let devices: Vec<_> = (0..3).map(device).collect();
            let today = Date::today().unwrap();
            let until = Date::from_unix(now_unix_s() + 30 * DAY_S).unwrap();
            let facts: Vec<_> = ["a", "b", "c"].into_iter().zip(devices.iter().map(|d| d.facts().unwrap())).collect();
            let registry = Mutex::new(laboratory::registry_for(&facts, today, until));
            let dir = tempfile::tempdir().unwrap();
            let watched = Self { dir, officers: Officers::new(&["officer"]).unwrap(), registry, devices };
            std::fs::write(watched.documents().trust, watched.officers.trust()).unwrap();
            watched.issue(|_| {});
            watched
        }

        fn documents(&self) -> Documents {
            let path = |name: &str| self.dir.path().join(name);
            Documents { registry: path("registry.toml"), trust: path("trust.toml") }
        }

        /// Issues the next version of the registry.
        fn issue(&self, change: impl FnOnce(&mut Registry)) {
            self.reissue(|registry| {
                change(registry);
                registry.version += 1;
            });
        }

        /// Issues the registry once more, changed, with or without another version.
        fn reissue(&self, change: impl FnOnce(&mut Registry)) {
            let mut registry = self.registry.lock();
            change(&mut registry);
            let signed = self.officers.sign(&registry).unwrap();
            for (officer, signature) in signed.signatures {
                std::fs::write(self.dir.path().join(format!("registry.toml.{officer}.minisig")), signature).unwrap();
            }
            std::fs::write(self.documents().registry, signed.registry).unwrap();
        }

        fn open(&self) -> (volume::Open, VerifiedRegistry) {
            let registry = devices::load_registry(&self.documents()).unwrap();
            let (host, today) = (HostFacts::read(&Kernel), devices::today().unwrap());
            let approve = |d: &Arc<FaultyDevice>| ApprovedDevice::approve(d.clone(), &registry, &host, today).unwrap();
            let approved = || self.devices.iter().map(approve).collect();
            let secret = Secret::new(b"correct horse".to_vec()).unwrap();
            let options = CreateOptions { kdf: KdfParams::FLOOR, ..CreateOptions::default() };
            volume::create(approved(), &registry, &secret, &options).unwrap();
            (self.mount(&OpenOptions::default()).unwrap(), registry)
        }

        /// Opens the volume, which is there already, under the registry as it is now.
        fn mount(&self, options: &OpenOptions) -> Result<volume::Open, volume::Error> {
            let registry = devices::load_registry(&self.documents()).unwrap();
            let (host, today) = (HostFacts::read(&Kernel), devices::today().unwrap());
            let approve = |d: &Arc<FaultyDevice>| ApprovedDevice::approve(d.clone(), &registry, &host, today).unwrap();
            let secret = Secret::new(b"correct horse".to_vec()).unwrap();
            Sealed::read(self.devices.iter().map(approve).collect())?.unlock(&secret)?.open(&registry, options)
        }
    }

    #[track_caller]
    fn within(most: Duration, what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < most, "{what}: not within {most:?}");
            std::thread::sleep(POLL);
        }
    }

    /// One device does not answer, and another is revoked meanwhile: that is noticed as fast as ever.
    fn revoked_while_another_hangs(operation: Operation) {
        let watched = Watched::new();
        let (open, registry) = watched.open();
        let members = Arc::clone(open.members());
        let watch = Watch::start(watched.documents(), registry, Arc::clone(&members), open.clock()).unwrap();
        let version = |watch: &Watch| watch.checker().found().registry.version();
        within(SETTLING_MAX * 5, "the first look", || watch.checker.queue.findings.lock().is_none());
        watched.devices[0].inject(Fault::always(operation, Effect::Hang));
        // A new registry is recorded in a root: this commit waits for the device.
        watched.issue(|_| {});
        within(SETTLING_MAX * 5, "the new registry", || version(&watch) == 3);
        watched.issue(|registry| registry.devices[1].status = Status::Revoked);
        within(SETTLING_MAX * 5, "the fence", || members.state(1) == State::Refused);
        assert!(members.device(1).unwrap().fence_reason().is_some());
        assert_ne!(members.state(0), State::Faulty, "the device was fenced before: nothing was waited for");
        watched.issue(|registry| registry.devices[1].status = Status::Approved);
        within(SETTLING_MAX * 5, "the approval", || members.device(1).unwrap().verdict().approved);
        watched.devices[0].heal();
        let all = || (0..3).all(|index| members.state(index) == State::InSync);
        within(Duration::from_secs(60), "all of them", all);
        drop(watch);
        open.close().unwrap();
    }

    #[test]
    fn the_trail_tells_when_the_log_fails_and_when_it_does_no_longer() {
        let error = Some("/dev/log: Connection refused".to_owned());
        let mut fails = false;
        let broken = Standing { sent: 1, waiting: 2, lost: 3, error };
        let told = format!("{:?}", log_findings(&mut fails, &broken));
        assert!(fails && told.contains("LogUnavailable { waiting: 2, lost: 3 }"), "{told}");
        assert!(told.contains("log-unavailable") && told.contains("Connection refused"), "{told}");
        let told = format!("{:?}", log_findings(&mut fails, &Standing { error: None, ..broken.clone() }));
        assert!(!fails && told.contains("LogAvailable { lost: 3 }"), "{told}");
        assert_eq!(log_problem(&broken).map(|problem| problem.code), Some(Code::LogUnavailable));
        // A host that never had a log.
        assert_eq!(log_problem(&Standing { sent: 0, lost: 0, ..broken }), None);
    }

    #[test]
    fn p2_a_device_revoked_while_a_commit_waits_for_another_is_fenced_at_once() {
        revoked_while_another_hangs(Operation::Flush);
    }

    #[test]
    fn p2_a_device_revoked_while_another_does_not_say_who_it_is_is_fenced_at_once() {
        revoked_while_another_hangs(Operation::Facts);
    }

    #[test]
    fn p1_a_device_that_may_have_a_new_path_gets_nothing_until_it_is_asked() {
        let watched = Watched::new();
        watched.devices[0].show(Face::Shared);
        let (open, registry) = watched.open();
        let (registry, host, today) = (Arc::new(registry), HostFacts::read(&Kernel), Date::today().unwrap());
        let members = open.members();
        let held = |index| members.device(index).unwrap().fence_reason().map(|reason| reason.code);
        let check = || members.check(&registry, &host, today);
        members.hold_those_with_paths();
        assert_eq!((held(0), held(1)), (Some(Code::DeviceSilent), None));
        assert!(!check().unsettled);
        assert_eq!(held(0), None);
        // An answer to a question that was asked before the path came says nothing of it.
        watched.devices[0].inject(Fault::always(Operation::Facts, Effect::Hang));
        assert!(check().unsettled);
        members.hold_those_with_paths();
        watched.devices[0].heal();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(held(0), Some(Code::DeviceSilent));
        within(Duration::from_secs(5), "the next question", || !check().unsettled && held(0).is_none());
        open.close().unwrap();
    }

    /// Two documents of one version, both signed. The volume takes what it has seen along, to whatever host.
    #[test]
    fn p1_another_registry_of_the_same_version_is_refused_on_every_host() {
        let watched = Watched::new();
        watched.open().0.close().unwrap();
        let code = |result: Result<volume::Open, volume::Error>| result.err().map(|error| error.code());
        watched.reissue(|registry| registry.policy.certifications = vec!["another".into()]);
        watched.reissue(|registry| registry.policy.certifications.clear());
        watched.mount(&OpenOptions::default()).unwrap().close().unwrap();
        let until = watched.registry.lock().valid_until;
        let longer = Date::from_unix(now_unix_s() + 60 * DAY_S).unwrap();
        for read_only in [false, true] {
            watched.reissue(|registry| registry.valid_until = longer);
            let options = OpenOptions { read_only, ..OpenOptions::default() };
            assert_eq!(code(watched.mount(&options)), Some(Code::RegistryEquivocal));
            watched.reissue(|registry| registry.valid_until = until);
            watched.mount(&options).unwrap().close().unwrap();
        }
        // The next version may say what it likes, once.
        watched.issue(|registry| registry.valid_until = longer);
        watched.mount(&OpenOptions::default()).unwrap().close().unwrap();
        watched.reissue(|registry| registry.valid_until = until);
        assert_eq!(code(watched.mount(&OpenOptions::default())), Some(Code::RegistryEquivocal));
    }

    /// Devices that were set back do not know of it any more; the host does.
    #[test]
    fn p1_a_registry_before_the_one_that_this_host_has_seen_is_refused() {
        let watched = Watched::new();
        let folder = tempfile::tempdir().unwrap();
        let with = OpenOptions { witness: Some(folder.path().to_owned()), ..OpenOptions::default() };
        let (open, registry) = watched.open();
        let file = folder.path().join(format!("{}.witness", open.uuid()));
        open.close().unwrap();
        let open = watched.mount(&with).unwrap();
        let accept = Some(open.store().generation());
        open.close().unwrap();
        let seen = std::fs::read_to_string(&file).unwrap();
        let digest = crate::registry::hex(&registry.document_digest());
        assert!(seen.contains(&digest) && seen.contains("version = 2\n"), "{seen}");
        let later = seen.replace("version = 2\n", "version = 3\n");
        let other = seen.replace(&digest, &"0".repeat(64));
        for (seen, expected) in [(later, Code::RegistryRolledBack), (other, Code::RegistryEquivocal)] {
            for options in [with.clone(), OpenOptions { accept_rollback: accept, ..with.clone() }] {
                std::fs::write(&file, &seen).unwrap();
                let refused = watched.mount(&options).err().unwrap();
                assert!(refused.code() == expected && refused.to_string().contains("this host"), "{refused}");
                assert_eq!(std::fs::read_to_string(&file).unwrap(), seen);
            }
        }
        watched.issue(|_| {});
        watched.mount(&with).unwrap().close().unwrap();
    }

    #[test]
    fn p1_another_registry_of_the_same_version_does_not_come_into_force_while_mounted() {
        let watched = Watched::new();
        watched.issue(|registry| registry.devices[1].status = Status::Revoked);
        watched.issue(|registry| registry.devices[1].status = Status::Approved);
        let (open, registry) = watched.open();
        let watch = Watch::start(watched.documents(), registry, Arc::clone(open.members()), open.clock()).unwrap();
        watched.issue(|registry| registry.devices[1].status = Status::Revoked);
        // The fence comes first, and then the registry counts as found.
        let is_found = || watch.checker().found().registry.devices()[1].status == Status::Revoked;
        within(SETTLING_MAX * 5, "the fence", || open.members().state(1) == State::Refused && is_found());
        let digest = watch.checker().found().registry.document_digest();
        watched.reissue(|registry| registry.devices[1].status = Status::Approved);
        let said = || watch.checker().found().concerns.iter().any(|why| why.code == Code::RegistryEquivocal);
        within(SETTLING_MAX * 5, "the refusal", said);
        assert_eq!(watch.checker().found().registry.document_digest(), digest);
        assert!(open.members().device(1).unwrap().fence_reason().is_some());
        watched.issue(|_| {});
        within(SETTLING_MAX * 5, "the next version", || open.members().device(1).unwrap().verdict().approved);
        within(SETTLING_MAX * 5, "no concern", || watch.checker().found().concerns.is_empty());
        drop(watch);
        open.close().unwrap();
    }

    #[test]
    fn p2_a_volume_is_refused_under_a_clock_that_was_set_back() {
        let watched = Watched::new();
        watched.open().0.close().unwrap();
        let code = |options: &OpenOptions| watched.mount(options).err().map(|error| error.code());
        let at = |now_unix_s| OpenOptions { now_unix_s: Some(now_unix_s), ..OpenOptions::default() };
        let before = now_unix_s() - clock::TOLERANCE_S;
        assert_eq!(code(&at(before - 60)), Some(Code::ClockWentBack));
        assert_eq!(code(&OpenOptions { read_only: true, ..at(before - 60) }), Some(Code::ClockWentBack));
        assert_eq!(code(&at(before + 600)), None);
        // The note of this host, of a time that the devices do not know.
        let folder = tempfile::tempdir().unwrap();
        let noted = OpenOptions { witness: Some(folder.path().to_owned()), ..OpenOptions::default() };
        watched.mount(&noted).unwrap().close().unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap().flatten() {
            let later = std::time::SystemTime::now() + Duration::from_secs(clock::TOLERANCE_S + 60);
            std::fs::File::options().append(true).open(entry.path()).unwrap().set_modified(later).unwrap();
        }
        assert_eq!(code(&noted), Some(Code::ClockWentBack));
        // Accepted for one day, and said.
        let today = devices::today().unwrap();
        let yesterday = Date::from_unix(now_unix_s() - DAY_S);
        assert_eq!(code(&OpenOptions { accept_clock: yesterday, ..noted.clone() }), Some(Code::ClockWentBack));
        let open = watched.mount(&OpenOptions { accept_clock: Some(today), ..noted.clone() }).unwrap();
        let trail = open.audit().page(0).unwrap().concat();
        assert!(String::from_utf8(trail).unwrap().contains("\"event\":\"clock-accepted\""));
        open.close().unwrap();
        assert_eq!(code(&noted), None);
    }

    #[test]
    fn p2_no_device_is_approved_under_a_clock_that_was_set_back_while_mounted() {
        let watched = Watched::new();
        let (open, registry) = watched.open();
        let members = Arc::clone(open.members());
        let ahead = Clock::starting_at(now_unix_s() + DAY_S);
        let watch = Watch::start(watched.documents(), registry, Arc::clone(&members), ahead).unwrap();
        within(SETTLING_MAX * 5, "the refusal", || (0..3).all(|index| members.state(index) == State::Refused));
        assert_eq!(members.device(0).unwrap().fence_reason().unwrap().code, Code::ClockWentBack);
        assert_eq!(watch.checker().found().concerns[0].code, Code::ClockWentBack);
        *watch.checker().turn.lock() = open.clock();
        watch.checker().check_and_apply();
        within(Duration::from_secs(60), "all of them", || (0..3).all(|index| members.state(index) == State::InSync));
        assert!(watch.checker().found().concerns.is_empty());
        drop(watch);
        open.close().unwrap();
    }

    /// The registry lies on a filesystem that does not answer any more.
    #[test]
    fn p2_an_approval_ends_when_the_registry_cannot_be_read_any_more() {
        let watched = Watched::new();
        let (open, registry) = watched.open();
        let members = Arc::clone(open.members());
        let (hangs, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let load = {
            let (hangs, waits) = (Arc::clone(&hangs), Arc::clone(&waits));
            move |documents: &Documents| {
                while hangs.load(Ordering::Acquire) {
                    waits.store(true, Ordering::Release);
                    std::thread::sleep(POLL);
                }
                devices::load_registry(documents)
            }
        };
        let clock = open.clock();
        let watch =
            Watch::start_with(watched.documents(), registry, Arc::clone(&members), clock, Box::new(load)).unwrap();
        hangs.store(true, Ordering::Release);
        watched.issue(|_| {});
        within(SETTLING_MAX * 5, "the look that hangs", || waits.load(Ordering::Acquire));
        let lasting = Instant::now().checked_sub(STALLED).unwrap();
        *watch.checker.begun.lock() = Some(lasting);
        assert_eq!(watch.checker().found().concerns[0].code, Code::ApprovalOverdue);
        // Within the lease it goes on; after it, not one write.
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let change = |name: &[u8]| {
            let made = open.fs().mkdir(&caller, Ino::ROOT, name, 0o700);
            made.and_then(|_| open.fs().checkpoint())
        };
        change(b"within the lease").unwrap();
        let devices: Vec<_> = (0..3).filter_map(|index| members.device(index)).collect();
        devices.iter().for_each(|device| device.age(Duration::from_secs(LEASE_S)));
        assert!(devices.iter().all(|device| !device.verdict().approved && device.fence_reason().is_some()));
        assert!(change(b"after it").is_err());
        assert!((0..3).all(|index| members.state(index) == State::Refused), "it waited in vain for a renewal");
        hangs.store(false, Ordering::Release);
        within(SETTLING_MAX * 5, "the approvals", || devices.iter().all(|device| device.verdict().approved));
        within(SETTLING_MAX * 5, "no concern", || watch.checker().found().concerns.is_empty());
        drop(watch);
        drop(open);
    }

    #[test]
    fn the_alarm_goes_off_before_midnight_and_at_midnight() {
        let day = 20_000 * DAY_S;
        for (now, expected) in
            [(0, DAY_S - EVE_S), (DAY_S - EVE_S - 1, DAY_S - EVE_S), (DAY_S - EVE_S, DAY_S), (DAY_S - 1, DAY_S)]
        {
            assert_eq!(next_alarm(day + now), day + expected, "{now}");
        }
    }
}
