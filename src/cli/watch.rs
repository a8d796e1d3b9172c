//! The daemon's watch over its devices (promise P2). The registry and the facts of every device are looked at again
//!
//! * when the kernel says that a device came, went or changed,
//! * when the registry, a signature or the trust anchors change, however they are replaced,
//! * at midnight (UTC), when validities end, and two seconds before; and when the clock is set,
//! * and at least every [`INTERVAL`], whatever was or was not said.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Documents, devices};
use crate::control::{Reason, WatchStatus};
use crate::device::events::{Events, Waker};
use crate::device::host::HostFacts;
use crate::device::sys::Kernel;
use crate::limits::SIGNATURES_MAX;
use crate::registry::{Date, VerifiedRegistry};
use crate::volume::Members;

/// Longest time between two looks at everything.
const INTERVAL: Duration = Duration::from_secs(30);

/// How often the registry file is looked at while the kernel does not tell of its changes.
const TICK: Duration = Duration::from_secs(1);

/// So long the files must have been left alone: a registry and its signatures seldom arrive in one piece.
const SETTLED: Duration = Duration::from_millis(100);

/// At most so long that is waited for.
const SETTLING_MAX: Duration = Duration::from_secs(2);

/// Shortest time between two looks: a bus that is rescanned sends hundreds of messages.
const PAUSE: Duration = Duration::from_millis(50);

const DAY_S: u64 = 24 * 60 * 60;

/// So long before midnight the volume is prepared for devices whose approval ends with the day.
const EVE_S: u64 = 2;

/// What the watch has found last.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The registry in force: the last one that verified.
    pub(super) registry: Arc<VerifiedRegistry>,
    /// Why the file is not the registry in force, when it is not.
    pub(super) concerns: Vec<Reason>,
    /// What tells the watch that it is time to look.
    pub(super) watching: WatchStatus,
}

/// Looks, on behalf of whoever asks.
pub(super) struct Look {
    documents: Documents,
    members: Arc<Members>,
    found: Mutex<Found>,
    /// Held for a whole look, so that no older registry follows a newer one.
    turn: Mutex<()>,
    ending: AtomicBool,
}

/// A running watch.
pub(super) struct Watch {
    look: Arc<Look>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching the devices of a volume, which `registry` has approved.
    pub(super) fn start(
        documents: Documents,
        registry: VerifiedRegistry,
        members: Arc<Members>,
    ) -> std::io::Result<Self> {
        let mut events = Events::open()?;
        events.follow(&[&documents.registry, &documents.trust]);
        let watching = status(&events);
        let found = Mutex::new(Found { registry: Arc::new(registry), concerns: Vec::new(), watching });
        let look = Arc::new(Look { documents, members, found, turn: Mutex::default(), ending: AtomicBool::new(false) });
        let waker = events.waker();
        let thread = std::thread::Builder::new().name("watch".into()).spawn({
            let look = Arc::clone(&look);
            move || look.run(events)
        })?;
        Ok(Self { look, waker, thread: Some(thread) })
    }

    /// What looks, for others.
    pub(super) fn look(&self) -> &Arc<Look> {
        &self.look
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.look.ending.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn status(events: &Events) -> WatchStatus {
    WatchStatus { devices: events.sees_devices(), files: events.sees_files(), interval_s: INTERVAL.as_secs() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Look {
    /// What is known now.
    pub(super) fn found(&self) -> Found {
        lock(&self.found).clone()
    }

    /// The replicas that are looked at.
    pub(super) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    fn run(&self, mut events: Events) {
        let mut version = None;
        let mut looked = Instant::now();
        while !self.ending.load(Ordering::Acquire) {
            let now = self.file_version();
            if version.as_ref() != Some(&now) || looked.elapsed() >= INTERVAL {
                self.look();
                (version, looked) = (Some(now), Instant::now());
            }
            events.follow(&[&self.documents.registry, &self.documents.trust]);
            events.alarm(next_alarm(now_unix_s()));
            lock(&self.found).watching = status(&events);
            // What changed before it was followed is seen here.
            let most = if events.sees_files() && version == Some(self.file_version()) { INTERVAL } else { TICK };
            let mut happened = events.wait(most.min(INTERVAL.saturating_sub(looked.elapsed())));
            if happened.files {
                let begin = Instant::now();
                while happened.files && !happened.devices && begin.elapsed() < SETTLING_MAX {
                    happened = events.wait(SETTLED);
                }
            }
            if happened.devices || happened.clock {
                let early = PAUSE.saturating_sub(looked.elapsed());
                if !early.is_zero() {
                    std::thread::sleep(early);
                }
                // Looks on the next turn.
                version = None;
            }
        }
    }

    /// What changes when somebody edits or replaces the registry, one of its signatures or the trust anchors.
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

    /// Looks at the registry and at every device, now.
    pub(super) fn look(&self) {
        let _turn = lock(&self.turn);
        let Ok(today) = devices::today() else { return };
        let known = self.found();
        let (registry, concerns) = self.registry(&known);
        let host = HostFacts::read(&Kernel);
        self.members.recheck(&registry, &host, today);
        let soon = Date::from_unix(now_unix_s() + EVE_S).filter(|day| *day != today);
        if let Some(tomorrow) = soon {
            self.members.foresee(&registry, &host, tomorrow);
        }
        let mut found = lock(&self.found);
        (found.registry, found.concerns) = (registry, concerns);
    }

    /// The registry that is in force from now on, and what is wrong with the file if it is another.
    fn registry(&self, known: &Found) -> (Arc<VerifiedRegistry>, Vec<Reason>) {
        let (code, text) = match devices::load_registry(&self.documents) {
            Ok(registry) if registry.version() < known.registry.version() => (
                "registry-rolled-back".to_owned(),
                format!(
                    "{} is of version {}, version {} is in force",
                    self.documents.registry.display(),
                    registry.version(),
                    known.registry.version()
                ),
            ),
            Ok(registry) if !registry.is_trusted_by(&known.registry.anchors_digest()) => (
                "registry-other".to_owned(),
                format!(
                    "{} is no longer what the volume was created with; the registry in force stays",
                    self.documents.trust.display()
                ),
            ),
            Ok(registry) => {
                if registry.document_digest() != known.registry.document_digest() {
                    self.members.audit().registry_accepted(&registry);
                }
                return (Arc::new(registry), Vec::new());
            }
            Err(failure) => (failure.reason, format!("{}; the registry in force stays", failure.text)),
        };
        let concern = Reason { code, text };
        if !known.concerns.contains(&concern) {
            log::error!("{} [{}]", concern.text, concern.code);
            self.members.audit().registry_refused(&concern.code, &concern.text);
        }
        (Arc::clone(&known.registry), vec![concern])
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// When validities end, with the day (UTC), or shortly before; in seconds since 1970.
fn next_alarm(now_unix_s: u64) -> u64 {
    let midnight = (now_unix_s / DAY_S + 1) * DAY_S;
    if now_unix_s < midnight - EVE_S { midnight - EVE_S } else { midnight }
}

#[cfg(test)]
mod tests {
    use super::*;

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
