//! A device that the policy approved, and the gate in front of every write to it.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::clock;
use super::entry::ApprovedEntry;
use super::examine::examine_entry;
use super::{Verdict, in_a_line};
use crate::device::IdentifiedDevice;
use crate::device::{self, AlignedBuf, Write};
use crate::limits::LEASE_S;
use crate::os::blkid::Signature;
use crate::probe::host::HostFacts;
use crate::probe::identity::{DeviceFacts, FactsError};
use crate::problem::{Code, Problem};
use crate::registry::{Date, VerifiedRegistry};
use crate::units::meter::Meter;

/// The policy refused a device.
#[derive(Debug, thiserror::Error)]
#[error("{device} is refused: {}", shown(verdict))]
pub struct Refused {
    /// Name of the device.
    pub device: String,
    /// Every reason.
    pub verdict: Box<Verdict>,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let Refused { device, verdict } = refused;
        // Invariant: a refusal has a reason. Without one it could only be that no entry matched, which is this code.
        let code = verdict.reasons.first().map_or(Code::DeviceNotListed, |reason| reason.code);
        let why = in_a_line(&verdict.reasons);
        Self::new(code, format!("{device} is refused, and nothing was written to it: {why}"))
            .advise(format!("The whole verdict: scelle device inspect {device}"))
    }
}

fn shown(verdict: &Verdict) -> String {
    verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a write or a flush did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The gate is closed, and the device was not touched.
    #[error("fenced: {reason}")]
    Fenced {
        /// Why.
        reason: Problem,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] device::Error),
}

impl WriteError {
    fn into_device(self, action: &'static str, offset: u64, bytes: usize) -> device::Error {
        match self {
            Self::Device(error) => error,
            Self::Fenced { reason } => {
                let source = std::io::Error::new(std::io::ErrorKind::PermissionDenied, reason.to_string());
                device::Error::Io { action, offset, bytes, source }
            }
        }
    }
}

/// A block device that the policy approved, with a gate in front of every write.
///
/// [`approve`](Self::approve) is the only constructor, and nothing outside this file can reach the device inside. So
/// every write goes to a device that was approved, and no new write passes once the gate is closed.
///
/// The approval is a lease. It ends [`LEASE_S`] seconds after the last check that approved the device
/// began, whatever has become of whoever should check again. It is counted by the kernel's clock that nobody sets and that
/// goes on while the host is suspended: what happened to the devices meanwhile, nobody saw.
///
/// After
/// [`fence`](Self::fence) has returned and [`writes_in_flight`](Self::writes_in_flight) was seen to be 0, no byte
/// reaches the device any more.
pub struct ApprovedDevice {
    device: Arc<dyn IdentifiedDevice>,
    /// 0 when the gate is open, else the bits [`REFUSED`], [`FENCED`] and [`HELD`].
    gate: AtomicU8,
    /// Until when the approval holds, in milliseconds of [`clock::running`].
    lease_ms: AtomicU64,
    in_flight: AtomicUsize,
    meters: DeviceMeters,
    registry_version: AtomicU64,
    laboratory: bool,
    registry_id: String,
    identity_digest: [u8; 32],
    /// Held for a whole recheck, so that an older reading of the facts cannot overrule a newer one.
    rechecking: Mutex<()>,
    state: Mutex<State>,
}

/// How long a device has taken for the operations that succeeded, since it was approved.
#[derive(Default)]
pub struct DeviceMeters {
    /// Reads.
    pub read: Meter,
    /// Writes.
    pub write: Meter,
    /// Flushes, and writes that are durable when they are done.
    pub flush: Meter,
}

/// Bit of the gate: the policy refuses the device.
const REFUSED: u8 = 1;
/// Bit of the gate: the volume fenced the device.
const FENCED: u8 = 2;
/// Bit of the gate: the device has been asked who it is, and has not answered.
const HELD: u8 = 4;

/// How long an approval holds.
const LEASE_MS: u64 = LEASE_S * 1000;

/// How long a write waits for a lease that is over to be renewed. A host that was suspended, or had no time for the
/// daemon, checks within this time; then no write fails.
const RENEWAL_WAIT: Duration = Duration::from_secs(2);

/// How long a write waits for the device to say who it is. Whoever asked refuses it after that.
const ANSWER_WAIT: Duration = Duration::from_secs(12);

/// How often a write that waits looks at the gate.
const GATE_POLL: Duration = Duration::from_millis(1);

/// Now, in milliseconds of [`clock::running`].
fn now_ms() -> u64 {
    u64::try_from(clock::running().as_millis()).unwrap_or(u64::MAX)
}

struct State {
    entry: Arc<ApprovedEntry>,
    verdict: Verdict,
    /// The facts that the verdict rests on, if they could be read.
    facts: Option<DeviceFacts>,
    /// The host and the day that the verdict rests on.
    circumstances: (HostFacts, Date),
    fence: Option<Problem>,
}

impl ApprovedDevice {
    /// Reads the device's facts and examines them.
    ///
    /// # Errors
    /// [`Refused`], with every reason.
    pub fn approve(
        device: Arc<dyn IdentifiedDevice>,
        registry: &VerifiedRegistry,
        host: &HostFacts,
        today: Date,
    ) -> Result<Self, Refused> {
        let began_ms = now_ms();
        let (verdict, entry, facts) = judge(&*device, registry, host, today);
        match entry {
            Some(entry) if verdict.approved => Ok(Self {
                device,
                gate: AtomicU8::new(0),
                lease_ms: AtomicU64::new(began_ms + LEASE_MS),
                rechecking: Mutex::new(()),
                in_flight: AtomicUsize::new(0),
                meters: DeviceMeters::default(),
                registry_version: AtomicU64::new(registry.version()),
                laboratory: registry.is_laboratory(),
                registry_id: entry.registry_id.clone(),
                identity_digest: entry.identity_digest,
                state: Mutex::new(State {
                    entry: Arc::new(entry),
                    verdict,
                    facts,
                    circumstances: (host.clone(), today),
                    fence: None,
                }),
            }),
            _ => Err(Refused { device: device.name().to_owned(), verdict: Box::new(verdict) }),
        }
    }

    /// Reads the facts anew and examines them with this (perhaps newer) registry. A refusal closes the gate before this
    /// returns. The gate stays closed until a later recheck approves the same device. A [`fence`](Self::fence) stays,
    /// whatever the recheck finds.
    pub fn recheck(&self, registry: &VerifiedRegistry, host: &HostFacts, today: Date) -> Verdict {
        let _one_at_a_time = self.rechecking.lock();
        let began_ms = now_ms();
        let (mut verdict, entry, facts) = judge(&*self.device, registry, host, today);
        if registry.version() < self.registry_version() {
            let text = format!("registry version {} after {}", registry.version(), self.registry_version());
            verdict.reasons.push(Problem::new(Code::RegistryRolledBack, text));
        }
        if registry.is_laboratory() != self.laboratory {
            let text = "a laboratory registry and another one cannot follow each other";
            verdict.reasons.push(Problem::new(Code::RegistryKindChanged, text));
        }
        if entry.as_ref().is_some_and(|e| e.identity_digest != self.identity_digest) {
            let text = format!("{} is another device than the one that was approved", self.name());
            verdict.reasons.push(Problem::new(Code::DeviceSwapped, text));
        } else if let Some(entry) = entry.as_ref().filter(|entry| entry.registry_id != self.registry_id) {
            let (name, before, now) = (self.name(), &self.registry_id, &entry.registry_id);
            let text = format!("{name} was approved as {before}, and the registry calls the same device {now} now");
            verdict.reasons.push(Problem::new(Code::DeviceSwapped, text));
        }
        verdict.approved = verdict.reasons.is_empty() && entry.is_some();
        let mut state = self.lock();
        (state.verdict, state.facts, state.circumstances) = (verdict.clone(), facts, (host.clone(), today));
        match entry {
            Some(entry) if verdict.approved => {
                state.entry = Arc::new(entry);
                self.registry_version.store(registry.version(), Ordering::SeqCst);
                self.lease_ms.store(began_ms + LEASE_MS, Ordering::SeqCst);
                self.gate.fetch_and(!REFUSED, Ordering::SeqCst);
            }
            _ => {
                self.gate.fetch_or(REFUSED, Ordering::SeqCst);
            }
        }
        verdict
    }

    /// Checks the device once more, directly before the first byte is written. Between the approval and that moment
    /// labels were read and a key was derived. That takes seconds, and a device can be re-pointed under its open
    /// descriptor. The check is a [`recheck`](Self::recheck) with the host and the day of the last one.
    ///
    /// # Errors
    /// [`Refused`], with every reason; the gate is closed then.
    pub fn confirm(&self, registry: &VerifiedRegistry) -> Result<(), Refused> {
        let (host, today) = self.lock().circumstances.clone();
        let verdict = self.recheck(registry, &host, today);
        if verdict.approved {
            return Ok(());
        }
        Err(Refused { device: self.name().to_owned(), verdict: Box::new(verdict) })
    }

    /// Whether the device, with the facts of the last check, will be approved on `day`. Changes nothing.
    pub fn is_approved_on(&self, registry: &VerifiedRegistry, host: &HostFacts, day: Date) -> bool {
        let state = self.lock();
        state.verdict.approved
            && state.facts.as_ref().is_some_and(|facts| examine_entry(registry, facts, host, day).0.approved)
    }

    /// Closes the gate as a refusing [`recheck`](Self::recheck) does. It is for facts that cannot even be read in time.
    pub fn refuse(&self, reason: Problem) {
        let mut state = self.lock();
        state.verdict = Verdict::refused(reason);
        self.gate.fetch_or(REFUSED, Ordering::SeqCst);
    }

    /// Closes the gate for a reason of the volume's own, e.g. after an error. From now on every write and flush fails
    /// with the reason before it touches the device. The first reason is kept.
    pub fn fence(&self, reason: Problem) {
        let mut state = self.lock();
        self.gate.fetch_or(FENCED, Ordering::SeqCst);
        state.fence.get_or_insert(reason);
    }

    /// Takes back [`fence`](Self::fence) when its cause is gone. A device that the policy refuses stays refused.
    pub fn lift_fence(&self) {
        let mut state = self.lock();
        self.gate.fetch_and(!FENCED, Ordering::SeqCst);
        state.fence = None;
    }

    /// Whether more ways may have come to the device since its facts were read.
    pub fn may_gain_ways(&self) -> bool {
        self.lock().facts.as_ref().is_some_and(|facts| facts.root.may_gain_ways())
    }

    /// Closes the gate while the device is asked who it is and does not answer. Writes wait, and go on with
    /// [`release`](Self::release) if the answer approves the device.
    pub fn hold(&self) {
        self.gate.fetch_or(HELD, Ordering::SeqCst);
    }

    /// Ends [`hold`](Self::hold).
    pub fn release(&self) {
        self.gate.fetch_and(!HELD, Ordering::SeqCst);
    }

    /// Why the gate is closed, if it is. The policy's reason comes before the volume's.
    pub fn fence_reason(&self) -> Option<Problem> {
        if self.is_open() { None } else { Some(self.closed_because()) }
    }

    fn is_open(&self) -> bool {
        self.gate.load(Ordering::SeqCst) == 0 && self.is_leased()
    }

    /// Whether the approval has not ended by itself.
    fn is_leased(&self) -> bool {
        now_ms() < self.lease_ms.load(Ordering::SeqCst)
    }

    /// Lets this much of the lease pass.
    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.lease_ms.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |ms| Some(ms.saturating_sub(by_ms))).ok();
    }

    /// How many writes and flushes have passed the gate and not returned yet.
    pub fn writes_in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    /// Logical block size in bytes.
    pub fn logical_block_size(&self) -> u32 {
        self.device.logical_block_size()
    }

    /// How messages name the device.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Reads, also when fenced.
    ///
    /// # Errors
    /// As [`device::BlockDevice::read_at`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> device::Result<()> {
        self.meters.read.time(buf.len(), || self.device.read_at(offset, buf))
    }

    /// Reads, also when fenced, and abandons the read after `limit`.
    ///
    /// # Errors
    /// As [`device::BlockDevice::read_within`].
    pub fn read_within(&self, offset: u64, buf: AlignedBuf, limit: Duration) -> device::Result<AlignedBuf> {
        self.meters.read.time(buf.len(), || self.device.read_within(offset, buf, limit))
    }

    /// As [`device::BlockDevice::is_silent`].
    pub fn is_silent(&self) -> bool {
        self.device.is_silent()
    }

    /// What libblkid recognises on the device, also when fenced.
    ///
    /// # Errors
    /// As [`IdentifiedDevice::signatures`].
    pub fn signatures(&self) -> io::Result<Vec<Signature>> {
        self.device.signatures()
    }

    /// Writes the concatenation of `bufs`, if the gate is open.
    ///
    /// # Errors
    /// [`WriteError::Fenced`] without having touched the device, or [`WriteError::Device`].
    pub fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), WriteError> {
        let _pass = self.pass()?;
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        Ok(self.meters.write.time(bytes, || self.device.write_at(offset, bufs))?)
    }

    /// Carries out writes that do not overlap, together, if the gate is open. With `durable` it also makes these writes
    /// durable.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_together(&self, writes: &[Write<'_>], durable: bool) -> Result<(), WriteError> {
        let _pass = self.pass()?;
        let bytes = writes.iter().map(Write::len).sum();
        let meter = if durable { &self.meters.flush } else { &self.meters.write };
        // A device that takes the writes one by one is given no more of them once the gate has closed.
        let closed = Cell::new(None);
        let may_go_on = || self.admit().map_err(|reason| closed.set(Some(reason))).is_ok();
        let outcome = meter.time(bytes, || self.device.write_together(writes, durable, &may_go_on));
        outcome.map_err(|error| match closed.take() {
            Some(reason) => WriteError::Fenced { reason },
            None => error.into(),
        })
    }

    /// Makes the same bytes durable at each of the offsets, if the gate is open. Other writes need not be durable after
    /// it.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_durably(&self, offsets: &[u64], bytes: &[u8]) -> Result<(), WriteError> {
        let copy = |offset: &u64| Write { offset: *offset, bufs: vec![IoSlice::new(bytes)] };
        self.write_together(&offsets.iter().map(copy).collect::<Vec<_>>(), true)
    }

    /// Makes completed writes durable, if the gate is open. A flush passes the gate because it too moves bytes to the
    /// medium.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn flush(&self) -> Result<(), WriteError> {
        let _pass = self.pass()?;
        Ok(self.meters.flush.time(0, || self.device.flush())?)
    }

    /// How long its reads, writes and flushes have taken.
    pub fn meters(&self) -> &DeviceMeters {
        &self.meters
    }

    /// What the registry said of the device at the last approving verdict.
    pub fn registry_entry(&self) -> Arc<ApprovedEntry> {
        Arc::clone(&self.lock().entry)
    }

    /// The last verdict. One that nobody renewed in time is a refusal.
    pub fn verdict(&self) -> Verdict {
        let verdict = self.lock().verdict.clone();
        match verdict.approved && !self.is_leased() {
            true => Verdict { approved: false, reasons: vec![overdue()], ..verdict },
            false => verdict,
        }
    }

    /// Whether a laboratory registry approved it.
    pub fn is_laboratory(&self) -> bool {
        self.laboratory
    }

    /// Version of the registry of the last approving verdict.
    pub fn registry_version(&self) -> u64 {
        self.registry_version.load(Ordering::SeqCst)
    }

    /// Passes the gate. The order (count, then look) is what makes "gate closed, none in flight" mean "no more".
    fn pass(&self) -> Result<Pass<'_>, WriteError> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(&self.in_flight);
        self.admit().map_err(|reason| WriteError::Fenced { reason })?;
        Ok(pass)
    }

    /// Asks the gate. A caller that is not counted in `in_flight` gets no promise from it.
    fn admit(&self) -> Result<(), Problem> {
        if self.is_open() { Ok(()) } else { self.wait_at_the_gate() }
    }

    /// Waits while it may still turn out that the device is approved; not when that is decided.
    #[cold]
    fn wait_at_the_gate(&self) -> Result<(), Problem> {
        let begin = Instant::now();
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            let most = if gate & HELD == 0 { RENEWAL_WAIT } else { ANSWER_WAIT };
            match gate {
                0 if self.is_leased() => return Ok(()),
                _ if gate & (REFUSED | FENCED) != 0 || begin.elapsed() >= most => return Err(self.closed_because()),
                _ => std::thread::sleep(GATE_POLL),
            }
        }
    }

    fn closed_because(&self) -> Problem {
        let state = self.lock();
        let refused = state.verdict.reasons.first();
        let known = refused.or(state.fence.as_ref()).cloned();
        known.unwrap_or_else(|| match self.gate.load(Ordering::SeqCst) & HELD {
            0 if !self.is_leased() => overdue(),
            0 => Problem::new(Code::Fenced, "just fenced"),
            _ => Problem::new(Code::DeviceSilent, format!("{} does not say who it is", self.name())),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// An approved device is a block device like any other. Its writes pass the same gate; a closed gate is an error of the
/// kind `PermissionDenied`.
impl device::BlockDevice for ApprovedDevice {
    fn size_bytes(&self) -> u64 {
        Self::size_bytes(self)
    }

    fn logical_block_size(&self) -> u32 {
        Self::logical_block_size(self)
    }

    fn name(&self) -> &str {
        Self::name(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> device::Result<()> {
        Self::read_at(self, offset, buf)
    }

    fn read_within(&self, offset: u64, buf: AlignedBuf, limit: Duration) -> device::Result<AlignedBuf> {
        Self::read_within(self, offset, buf, limit)
    }

    fn is_silent(&self) -> bool {
        Self::is_silent(self)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> device::Result<()> {
        let bytes = bufs.iter().map(|b| b.len()).sum();
        Self::write_at(self, offset, bufs).map_err(|error| error.into_device("write", offset, bytes))
    }

    fn flush(&self) -> device::Result<()> {
        Self::flush(self).map_err(|error| error.into_device("flush", 0, 0))
    }

    fn write_together(&self, writes: &[Write<'_>], durable: bool, _: &dyn Fn() -> bool) -> device::Result<()> {
        let (offset, bytes) = (writes.first().map_or(0, |write| write.offset), writes.iter().map(Write::len).sum());
        Self::write_together(self, writes, durable).map_err(|error| error.into_device("write", offset, bytes))
    }
}

impl std::fmt::Debug for ApprovedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApprovedDevice({})", self.name())
    }
}

fn overdue() -> Problem {
    let text = format!("the device was last approved more than {LEASE_S} s ago, and not again since");
    Problem::new(Code::ApprovalOverdue, text)
}

struct Pass<'a>(&'a AtomicUsize);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads a device's facts and examines them.
fn judge(
    device: &dyn IdentifiedDevice,
    registry: &VerifiedRegistry,
    host: &HostFacts,
    today: Date,
) -> (Verdict, Option<ApprovedEntry>, Option<DeviceFacts>) {
    let facts = match device.facts() {
        Ok(facts) => facts,
        Err(error) => {
            let code = match error {
                FactsError::Changed { .. } => Code::DeviceChanged,
                FactsError::Unreadable { .. } => Code::DeviceUnreadable,
            };
            return (Verdict::refused(Problem::new(code, error.to_string())), None, None);
        }
    };
    let (verdict, entry) = examine_entry(registry, &facts, host, today);
    let entry = entry.map(|(entry, site)| ApprovedEntry {
        registry_id: entry.id.clone(),
        site: site.id.clone(),
        site_name: site.name.clone(),
        country: site.country.clone(),
        owner: site.owner.clone(),
        administrator: site.administrator.clone(),
        jurisdictions: site.jurisdictions.clone(),
        inspected: site.inspected,
        inspection_valid_until: site.inspection_valid_until,
        identity_digest: entry.identity.digest(),
    });
    (verdict, entry, Some(facts))
}

const fn assert_shareable<T: Send + Sync>() {}
const _: () = assert_shareable::<ApprovedDevice>();
