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
use crate::fs::Fs;
use crate::mirror::State;
use crate::policy::{ApprovedEntry, examine_set};
use crate::registry::{Date, VerifiedRegistry};
use crate::volume::audit::Audit;

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
    /// Starts watching the devices of `fs`'s volume, which `registry` has approved.
    pub(super) fn start(
        documents: Documents,
        registry: VerifiedRegistry,
        fs: Arc<Fs>,
        audit: Arc<Audit>,
    ) -> std::io::Result<Self> {
        let found = Arc::new(Mutex::new(Found { registry, concerns: Vec::new() }));
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let thread = std::thread::Builder::new().name("watch".into()).spawn({
            let (found, stop) = (Arc::clone(&found), Arc::clone(&stop));
            move || run(&documents, &fs, &audit, &found, &stop)
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

fn run(documents: &Documents, fs: &Fs, audit: &Audit, found: &Mutex<Found>, stop: &(Mutex<bool>, Condvar)) {
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
            look(documents, fs, audit, found);
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

fn look(documents: &Documents, fs: &Fs, audit: &Audit, found: &Mutex<Found>) {
    let Ok(today) = devices::today() else { return };
    let mut known = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let before = known.concerns.clone();
    known.concerns.clear();
    let mut concern = |code: &str, text: String| {
        let reason = Reason { code: code.into(), text };
        if !before.contains(&reason) {
            log::error!("{} [{}]", reason.text, reason.code);
            audit.registry_refused(&reason.code, &reason.text);
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
    if let Some(newer) = newer {
        if newer.document_digest() != known.registry.document_digest() {
            audit.registry_accepted(&newer);
        }
        known.registry = newer;
    }
    recheck(fs, audit, &known.registry, today);
    *found.lock().unwrap_or_else(PoisonError::into_inner) = known;
}

/// Examines every device anew. One that is refused is fenced; when those that are left may not take writes together, the
/// volume is read-only; and what has changed is recorded in a root.
fn recheck(fs: &Fs, audit: &Audit, registry: &VerifiedRegistry, today: Date) {
    let host = HostFacts::read(&Kernel);
    let (store, mirror) = (fs.store(), fs.store().mirror());
    let before = mirror.in_sync();
    let mut left: Vec<Arc<ApprovedEntry>> = Vec::new();
    let mut judged = Vec::new();
    for index in 0..mirror.len() {
        let Some(device) = mirror.device(index) else { continue };
        let approved = device.verdict().approved;
        let verdict = device.recheck(registry, &host, today);
        let state = mirror.state(index).0;
        if !verdict.approved && matches!(state, State::InSync | State::Resyncing) {
            let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            mirror.fence(index, State::Refused, &reasons.join("; "));
        } else if state == State::InSync {
            left.push(device.registry_entry());
        }
        judged.push((index, approved, verdict));
    }
    let entries: Vec<&ApprovedEntry> = left.iter().map(AsRef::as_ref).collect();
    let reasons: Vec<String> = examine_set(registry, &entries).iter().map(ToString::to_string).collect();
    if store.writable().is_ok() && !reasons.is_empty() {
        store.poison(reasons.join("; "));
    }
    // After the fences: the trail may have to wait for a commit, a refusal must not.
    judged.iter().for_each(|(index, approved, verdict)| audit.judged(*index, *approved, verdict));
    audit.observe();
    let changed = store.saw_registry(registry.version()) || mirror.in_sync() != before;
    if changed && store.writable().is_ok() {
        // A commit that fails has said so, and the volume is read-only then.
        let _ = fs.checkpoint();
    }
}
