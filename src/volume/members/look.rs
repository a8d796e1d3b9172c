//! Looking at the devices, and what comes of it: two things for two threads.
//!
//! A look ends within [`PATIENCE`], whatever a device does: it reads facts, closes gates, and remembers what is to be said.
//! Nothing in it waits for a transfer. What comes of it does: records of the trail, the return of replicas and the commit that names those who
//! are left may take as long as a device that does not answer, and a device that is revoked meanwhile must not wait for that.
//! So [`Members::follow`] belongs on another thread than [`Members::look`].

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

/// So long a look waits for the facts of devices. Who has not answered by then is asked on, and looked for at the next look.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest time that reading a device's facts may take: then it is refused.
const FACTS_WAIT: Duration = Duration::from_secs(10);

/// Most records that wait for their commit; each says something new of a device or the registry.
const ENTRIES_MAX: usize = 1024;

/// What looks have found that is still to be followed ([`Members::follow`]).
#[derive(Debug, Default)]
#[must_use]
pub struct News {
    entries: Vec<Entry>,
    commit: bool,
    /// Whether a device has not answered yet: time to look again soon.
    pub unsettled: bool,
}

impl News {
    /// Something that the trail is to tell.
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

/// The looks at one device.
#[derive(Default)]
pub(super) struct Looking(Mutex<Looks>);

#[derive(Default)]
struct Looks {
    /// When the one that has not ended yet began.
    since: Option<Instant>,
    /// Whether the trail knows the device as refused.
    told_refused: bool,
}

impl Looking {
    /// Begins a look, unless one has not ended yet.
    fn begin(&self) -> bool {
        let mut looks = self.0.lock();
        let is_free = looks.since.is_none();
        looks.since.get_or_insert_with(Instant::now);
        is_free
    }

    fn end(&self) {
        self.0.lock().since = None;
    }

    /// For how long the one that has not ended yet has taken.
    fn lasting(&self) -> Option<Duration> {
        self.0.lock().since.map(|since| since.elapsed())
    }

    /// Whether the trail does not know yet that the device is refused, or is not any more.
    fn is_news(&self, refused: bool) -> bool {
        std::mem::replace(&mut self.0.lock().told_refused, refused) != refused
    }
}

impl Members {
    /// Has the policy look at every device again. One that is refused is fenced before this returns. Whether the volume takes
    /// changes follows from who is left ([`Store::writable`](crate::pages::Store::writable)). A device whose facts cannot
    /// be read in time is refused; none waits for another.
    pub fn look(&self, registry: &Arc<VerifiedRegistry>, host: &HostFacts, today: Date) -> News {
        let before = self.store.mirror().in_sync();
        let mut news = self.examine(registry, host, today);
        let quorum = self.store.quorum();
        let succeeded = quorum.saw_trust(registry.anchors_digest());
        news.commit = quorum.saw_registry(registry) || succeeded || self.store.mirror().in_sync() != before;
        // Said now, not with the next request.
        let _ = self.store.writable();
        news
    }

    /// Does what comes of looks: replicas that are approved again come back, the trail tells, and a root records who is left.
    /// May take as long as a device that does not answer.
    pub fn follow(&self, news: News) {
        let mirror = self.store.mirror();
        let before = mirror.in_sync();
        news.entries.into_iter().for_each(|entry| self.audit.record(entry));
        for index in self.absent() {
            let approved = || self.device(index).is_some_and(|device| device.verdict().approved);
            let waits = self.state(index) == State::Refused || self.cut_off.load(Ordering::Acquire) >> index & 1 == 1;
            if waits && !self.read_only && approved() {
                match self.rejoin(index) {
                    Ok(_) => log::warn!("{} is approved again and comes back", self.name(index)),
                    Err(error) if mirror.explain(index, &error.to_string()) => log::error!("{error}"),
                    Err(_) => {}
                }
            }
        }
        self.audit.observe();
        if (news.commit || mirror.in_sync() != before) && !self.read_only && self.store.committable().is_ok() {
            // A commit that fails has said so, and the volume is read-only then.
            let _ = self.fs.checkpoint();
        }
    }

    /// [`look`](Self::look), then [`follow`](Self::follow).
    pub fn recheck(&self, registry: &Arc<VerifiedRegistry>, host: &HostFacts, today: Date) {
        let news = self.look(registry, host, today);
        self.follow(news);
    }

    /// To be called shortly before a day ends. When the policy will leave too few replicas `tomorrow`, users' changes are refused
    /// from now on, and following the news commits everything: so nothing is on its way when the last replica is fenced, and the
    /// volume goes on without a remount once the policy approves the devices again.
    pub fn foresee(&self, registry: &VerifiedRegistry, host: &HostFacts, tomorrow: Date) -> News {
        let mut news = News::default();
        let lasts = |index: &usize| self.device(*index).is_some_and(|d| d.is_approved_on(registry, host, tomorrow));
        let in_sync = self.store.mirror().in_sync();
        let lasting = (0..self.store.mirror().len()).filter(lasts).fold(0, |mask, index| mask | 1 << index) & in_sync;
        if lasting == in_sync || self.read_only || self.store.quorum().lacks(in_sync).is_some() {
            return news;
        }
        if let Some(lacking) = self.store.quorum().lacks(lasting) {
            log::error!("on {tomorrow} the policy will leave too few replicas: changes are refused from now on");
            self.store.quorum().suspend(format!("devices are approved until the end of the day only: {lacking}"));
            news.commit = true;
        }
        news
    }

    /// Reads the facts of all devices at once, each in a thread of its own, which closes the gate of a refused one; then fences
    /// those in the set.
    fn examine(&self, registry: &Arc<VerifiedRegistry>, host: &HostFacts, today: Date) -> News {
        let (sender, answers) = mpsc::channel();
        let looking = self.looking.lock().clone();
        let mut asked = 0;
        for (index, looking) in looking.iter().enumerate() {
            let Some(device) = self.device(index).filter(|_| looking.begin()) else { continue };
            let (sender, at_it, gate) = (sender.clone(), Arc::clone(looking), Arc::clone(&device));
            let (registry, host) = (Arc::clone(registry), host.clone());
            let spawned = std::thread::Builder::new().name(format!("facts-{index}")).spawn(move || {
                gate.recheck(&registry, &host, today);
                at_it.end();
                // Whoever asked may have given up.
                let _ = sender.send(());
            });
            match spawned {
                Ok(_) => asked += 1,
                Err(error) => {
                    looking.end();
                    device.refuse(self.unread(index, &error.to_string()));
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
        let mut news = News::default();
        for (index, looking) in looking.iter().enumerate() {
            let Some(device) = self.device(index) else { continue };
            match looking.lasting() {
                Some(lasting) if lasting >= FACTS_WAIT => {
                    device.refuse(self.unread(index, &format!("not within {} s", FACTS_WAIT.as_secs())));
                }
                Some(_) => news.unsettled = true,
                None => {}
            }
            let verdict = device.verdict();
            self.apply(index, &device, &verdict);
            if looking.is_news(!verdict.approved) {
                news.tell(self.audit.judged(index, &verdict));
            }
        }
        news
    }

    fn unread(&self, index: usize, why: &str) -> Problem {
        Problem::new(Code::DeviceUnreadable, format!("the facts of {} could not be read: {why}", self.name(index)))
    }

    /// Fences a replica whose device is refused, unless another device has taken its place meanwhile.
    fn apply(&self, index: usize, device: &Arc<ApprovedDevice>, verdict: &Verdict) {
        let is_current = self.device(index).is_some_and(|current| Arc::ptr_eq(&current, device));
        if !verdict.approved && is_current {
            let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            self.store.mirror().fence(index, State::Refused, &reasons.join("; "));
        }
    }
}
