//! The policy examines the devices of a volume in use again: the check, and what follows from its findings. The rules
//! are not here but in [`policy`](crate::policy); how a replica comes back is in [`members`](super).
//!
//! [`Members::check`] and [`Members::apply`] belong on two threads:
//!
//! * [`Members::check`] reads facts, closes gates, and remembers what the trail is to tell. It ends within
//!   [`PATIENCE`], whatever a device does, because nothing in it waits for a transfer.
//! * [`Members::apply`] does what follows: records of the trail, the return of replicas, the commit that names those
//!   that are left. It may take as long as a device that does not answer. A device that is revoked meanwhile must not
//!   wait for that.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Members;
use crate::audit::Entry;
use crate::mirror::State;
use crate::policy::{ApprovedDevice, Verdict};
use crate::probe::host::HostFacts;
use crate::problem::{Code, Problem};
use crate::registry::{Date, VerifiedRegistry};

/// How long a check waits for the facts of devices. The examination of a device that has not answered by then goes on,
/// the next check looks for its answer, and until then nothing is written to the device.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest time that reading a device's facts may take. After that the device is refused.
const FACTS_WAIT: Duration = Duration::from_secs(10);

/// Most records that wait for their commit; each says something new of a device or the registry.
const ENTRIES_MAX: usize = 1024;

/// What checks have found, and what is still to be done about it ([`Members::apply`]).
#[derive(Debug, Default)]
#[must_use]
pub struct Findings {
    entries: Vec<Entry>,
    commit: bool,
    /// Whether a device has not answered yet: time to check again soon.
    pub unsettled: bool,
}

impl Findings {
    /// Adds something that the trail is to tell.
    pub fn tell(&mut self, entry: Entry) {
        if self.entries.len() < ENTRIES_MAX {
            self.entries.push(entry);
        } else {
            log::error!("the audit trail has to wait for too long, and will lack: {entry:?}");
        }
    }

    /// Adds what was found later.
    pub fn append(&mut self, later: Self) {
        later.entries.into_iter().for_each(|entry| self.tell(entry));
        self.commit |= later.commit;
        self.unsettled |= later.unsettled;
    }
}

/// The examination of one device, which may take longer than one check waits.
#[derive(Default)]
pub(super) struct Examination(Mutex<ExaminationState>);

#[derive(Default)]
struct ExaminationState {
    /// When the examination began, while it has not ended.
    since: Option<Instant>,
    /// Whether the device may have changed since an examination began: the next one decides.
    outdated: bool,
    /// Whether the trail knows the device as refused.
    told_refused: bool,
}

impl Examination {
    /// Begins an examination, unless one has not ended yet. Returns whether it begins.
    fn begin(&self) -> bool {
        let mut state = self.0.lock();
        let is_free = state.since.is_none();
        state.outdated &= !is_free;
        state.since.get_or_insert_with(Instant::now);
        is_free
    }

    fn end(&self, gate: &ApprovedDevice) {
        let mut state = self.0.lock();
        state.since = None;
        if !state.outdated {
            gate.release();
        }
    }

    /// Closes the gate until an examination ends that begins from now on.
    fn hold_until_next(&self, gate: &ApprovedDevice) {
        let mut state = self.0.lock();
        state.outdated = true;
        gate.hold();
    }

    /// Whether the gate waits for the next examination.
    fn is_outdated(&self) -> bool {
        self.0.lock().outdated
    }

    /// Closes the gate until the examination ends, unless it has ended.
    fn hold(&self, gate: &ApprovedDevice) {
        if self.0.lock().since.is_some() {
            gate.hold();
        }
    }

    /// How long the examination has taken, while it has not ended.
    fn lasting(&self) -> Option<Duration> {
        self.0.lock().since.map(|since| since.elapsed())
    }

    /// Whether the trail does not know yet that the device is refused, or is no longer.
    fn is_change(&self, refused: bool) -> bool {
        std::mem::replace(&mut self.0.lock().told_refused, refused) != refused
    }
}

impl Members {
    /// Has the policy examine every device again. A device that is refused is fenced before this returns. So is one
    /// whose facts cannot be read in time; no device waits for another. Whether the volume takes changes follows from
    /// the replicas that are left ([`Store::writable`](crate::pages::Store::writable)).
    pub fn check(&self, registry: &Arc<VerifiedRegistry>, host: &HostFacts, today: Date) -> Findings {
        let before = self.store.mirror().in_sync();
        let mut findings = self.examine(registry, host, today);
        let quorum = self.store.quorum();
        let succeeded = quorum.saw_trust(registry.anchors_digest());
        findings.commit = quorum.saw_registry(registry) || succeeded || self.store.mirror().in_sync() != before;
        // The log says now that changes are refused, not with the next request.
        let _ = self.store.writable();
        findings
    }

    /// To be called at once when the kernel says that a device came, went or changed, before the next
    /// [`check`](Self::check). The kernel writes to a new path of a multipath device as soon as it is there: such a
    /// device gets nothing more until it was asked again, on every path. Writes wait for that, and none fails.
    pub fn hold_those_with_paths(&self) {
        for (index, examination) in self.examinations.lock().iter().enumerate() {
            if let Some(device) = self.device(index).filter(|device| device.may_gain_ways()) {
                examination.hold_until_next(&device);
            }
        }
    }

    /// Refuses every device, because nothing can be judged. The next [`check`](Self::check) judges them again.
    pub fn refuse(&self, why: &Problem) -> Findings {
        let before = self.store.mirror().in_sync();
        let mut findings = Findings::default();
        for (index, examination) in self.examinations.lock().clone().iter().enumerate() {
            let Some(device) = self.device(index) else { continue };
            device.refuse(why.clone());
            self.heed(index, &device, examination, &mut findings);
            // An examination that began before may still approve it: time to look again soon.
            findings.unsettled |= examination.lasting().is_some();
        }
        findings.commit = self.store.mirror().in_sync() != before;
        let _ = self.store.writable();
        findings
    }

    /// Does what follows from checks: replicas that are approved again come back, the trail tells, and a root records
    /// which replicas are left. May take as long as a device that does not answer.
    pub fn apply(&self, findings: Findings) {
        let mirror = self.store.mirror();
        let before = mirror.in_sync();
        findings.entries.into_iter().for_each(|entry| self.audit.record(entry));
        for index in self.absent() {
            let approved = || self.device(index).is_some_and(|device| device.verdict().approved);
            let waits =
                self.state(index) == State::Refused || self.sourceless.load(Ordering::Acquire) >> index & 1 == 1;
            if waits && !self.read_only && approved() {
                match self.come_back(index, false) {
                    Ok(_) => log::warn!("{} is approved again and comes back", self.name(index)),
                    Err(error) if mirror.explain(index, &error.to_string()) => log::error!("{error}"),
                    Err(_) => {}
                }
            }
        }
        self.audit.observe();
        if (findings.commit || mirror.in_sync() != before) && !self.read_only && self.store.committable().is_ok() {
            // A commit that fails has said so, and the volume is read-only then.
            let _ = self.fs.checkpoint();
        }
    }

    /// [`check`](Self::check), then [`apply`](Self::apply).
    pub fn recheck(&self, registry: &Arc<VerifiedRegistry>, host: &HostFacts, today: Date) {
        let findings = self.check(registry, host, today);
        self.apply(findings);
    }

    /// To be called shortly before a day ends. When the policy will leave too few replicas `tomorrow`, users' changes
    /// are refused from now on, and applying the findings commits everything. So nothing is on its way when the last
    /// replica is fenced. The volume goes on without a remount once the policy approves the devices again.
    pub fn foresee(&self, registry: &VerifiedRegistry, host: &HostFacts, tomorrow: Date) -> Findings {
        let mut findings = Findings::default();
        let lasts = |index: &usize| self.device(*index).is_some_and(|d| d.is_approved_on(registry, host, tomorrow));
        let in_sync = self.store.mirror().in_sync();
        let lasting = (0..self.store.mirror().len()).filter(lasts).fold(0, |mask, index| mask | 1 << index) & in_sync;
        if lasting == in_sync || self.read_only || self.store.quorum().lacks(in_sync).is_some() {
            return findings;
        }
        if let Some(lacking) = self.store.quorum().lacks(lasting) {
            log::error!("on {tomorrow} the policy will leave too few replicas: changes are refused from now on");
            self.store.quorum().suspend(format!("devices are approved until the end of the day only: {lacking}"));
            findings.commit = true;
        }
        findings
    }

    /// Reads the facts of all devices at once, each in a thread of its own, which closes the gate of a device that is
    /// refused. Then fences the refused replicas in the set.
    fn examine(&self, registry: &Arc<VerifiedRegistry>, host: &HostFacts, today: Date) -> Findings {
        let (sender, answers) = mpsc::channel();
        let examinations = self.examinations.lock().clone();
        let mut asked = 0;
        for (index, examination) in examinations.iter().enumerate() {
            let Some(device) = self.device(index).filter(|_| examination.begin()) else { continue };
            let (sender, at_it, gate) = (sender.clone(), Arc::clone(examination), Arc::clone(&device));
            let (registry, host) = (Arc::clone(registry), host.clone());
            let spawned = std::thread::Builder::new().name(format!("facts-{index}")).spawn(move || {
                gate.recheck(&registry, &host, today);
                at_it.end(&gate);
                // The check that asked may have ended.
                let _ = sender.send(());
            });
            match spawned {
                Ok(_) => asked += 1,
                Err(error) => {
                    device.refuse(self.unread(index, &error.to_string()));
                    examination.end(&device);
                }
            }
        }
        drop(sender);
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..asked {
            if answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_err() {
                break;
            }
        }
        let mut findings = Findings::default();
        for (index, examination) in examinations.iter().enumerate() {
            let Some(device) = self.device(index) else { continue };
            match examination.lasting() {
                Some(lasting) if lasting >= FACTS_WAIT => {
                    device.refuse(self.unread(index, &format!("not within {} s", FACTS_WAIT.as_secs())));
                }
                Some(_) => {
                    examination.hold(&device);
                    findings.unsettled = true;
                }
                None => findings.unsettled |= examination.is_outdated(),
            }
            self.heed(index, &device, examination, &mut findings);
        }
        findings
    }

    /// Does what a device's verdict asks for: the fence now, and a record when the verdict has changed.
    fn heed(&self, index: usize, device: &Arc<ApprovedDevice>, examination: &Examination, findings: &mut Findings) {
        let verdict = device.verdict();
        self.fence_refused(index, device, &verdict);
        if examination.is_change(!verdict.approved) {
            findings.tell(self.audit.judged(index, &verdict));
        }
    }

    fn unread(&self, index: usize, why: &str) -> Problem {
        Problem::new(Code::DeviceUnreadable, format!("the facts of {} could not be read: {why}", self.name(index)))
    }

    /// Fences a replica whose device is refused, unless another device has taken its place meanwhile.
    fn fence_refused(&self, index: usize, device: &Arc<ApprovedDevice>, verdict: &Verdict) {
        let is_current = self.device(index).is_some_and(|current| Arc::ptr_eq(&current, device));
        if !verdict.approved && is_current {
            let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            self.store.mirror().fence(index, State::Refused, &reasons.join("; "));
        }
    }
}
