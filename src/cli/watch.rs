//! The daemon's watch over its devices (promise P2): the registry and the facts of every device are looked at again when
//! the registry file changes and at least every 30 seconds.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Documents, devices};
use crate::control::Reason;
use crate::device::host::HostFacts;
use crate::device::sys::Kernel;
use crate::policy::ApprovedDevice;
use crate::registry::VerifiedRegistry;

/// Longest time between two looks at everything.
const INTERVAL: Duration = Duration::from_secs(30);

/// How often the registry file is looked at.
const TICK: Duration = Duration::from_secs(1);

/// What the watch has found last.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The registry in force: the last one that verified.
    pub(super) registry: VerifiedRegistry,
    /// Why the file is not the registry in force, when it is not.
    pub(super) concerns: Vec<Reason>,
}

/// A running watch.
pub(super) struct Watch {
    found: Arc<Mutex<Found>>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching `approved`, which `registry` has approved.
    pub(super) fn start(
        documents: Documents,
        registry: VerifiedRegistry,
        approved: Vec<Arc<ApprovedDevice>>,
    ) -> std::io::Result<Self> {
        let found = Arc::new(Mutex::new(Found { registry, concerns: Vec::new() }));
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let thread = std::thread::Builder::new().name("watch".into()).spawn({
            let (found, stop) = (Arc::clone(&found), Arc::clone(&stop));
            move || run(&documents, &approved, &found, &stop)
        })?;
        Ok(Self { found, stop, thread: Some(thread) })
    }

    /// What is known now.
    pub(super) fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(documents: &Documents, approved: &[Arc<ApprovedDevice>], found: &Mutex<Found>, stop: &(Mutex<bool>, Condvar)) {
    let mut version = file_version(documents);
    let mut looked = Instant::now();
    loop {
        let ending = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (ending, _) = stop.1.wait_timeout(ending, TICK).unwrap_or_else(PoisonError::into_inner);
        if *ending {
            return;
        }
        drop(ending);
        let now = file_version(documents);
        if now != version || looked.elapsed() >= INTERVAL {
            look(documents, approved, found);
            (version, looked) = (now, Instant::now());
        }
    }
}

/// What changes when somebody edits or replaces the registry: the file, or one of the signatures beside it.
fn file_version(documents: &Documents) -> Vec<(u64, u64, i64, i64)> {
    let folder = documents.registry.parent().unwrap_or(&documents.registry);
    let version = |path: &std::path::Path| {
        let of = |m: std::fs::Metadata| (m.ino(), m.size(), m.ctime(), m.ctime_nsec());
        std::fs::metadata(path).map(of).unwrap_or_default()
    };
    vec![version(&documents.registry), version(folder)]
}

fn look(documents: &Documents, approved: &[Arc<ApprovedDevice>], found: &Mutex<Found>) {
    let Ok(today) = devices::today() else { return };
    let mut known = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let before = known.concerns.clone();
    known.concerns.clear();
    let mut concern = |code: &str, text: String| {
        let reason = Reason { code: code.into(), text };
        if !before.contains(&reason) {
            log::error!("{} [{}]", reason.text, reason.code);
        }
        known.concerns.push(reason);
    };
    let mut newer = None;
    match devices::load_registry(documents) {
        Ok(registry) if registry.version() < known.registry.version() => concern(
            "registry-rolled-back",
            format!(
                "{} is of version {}, version {} is in force",
                documents.registry.display(),
                registry.version(),
                known.registry.version()
            ),
        ),
        Ok(registry) if registry.anchors_digest() != known.registry.anchors_digest() => concern(
            "registry-other",
            format!(
                "{} is no longer what the volume was created with; the registry in force stays",
                documents.trust.display()
            ),
        ),
        Ok(registry) => newer = Some(registry),
        Err(failure) => concern(&failure.reason, format!("{}; the registry in force stays", failure.text)),
    }
    known.registry = newer.unwrap_or(known.registry);
    let host = HostFacts::read(&Kernel);
    for device in approved {
        let was_approved = device.verdict().approved;
        let verdict = device.recheck(&known.registry, &host, today);
        if was_approved && !verdict.approved {
            let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            log::error!("{} is refused from now on: {}", device.name(), reasons.join("; "));
        }
    }
    *found.lock().unwrap_or_else(PoisonError::into_inner) = known;
}
