//! Of the devices that may hold a volume, those that the policy approves; and why the others are left out.
//!
//! Anybody who can plug in a device can put a copy of a label on it. So what a label claims decides nothing here: a
//! device that the policy refuses, or that cannot be opened, is left out, and the volume is opened with the others.
//! Whether they are enough is decided where the volume is opened, as for a device that is not there.

use std::path::PathBuf;
use std::sync::Arc;

use super::devices::today;
use super::request::Sources;
use crate::device::raw::{Access, RawDevice};
use crate::label::{self, ReplicaRow};
use crate::policy::{ApprovedDevice, examine_set, in_a_line};
use crate::probe::host::HostFacts;
use crate::probe::sys::Kernel;
use crate::problem::{Code, ExitCode, Problem};
use crate::registry::VerifiedRegistry;
use crate::units::Uuid;

/// A device that is not used, and why.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// The device.
    pub device: PathBuf,
    /// Why.
    pub why: Problem,
}

/// What became of the devices that were given or found.
pub struct Gathered {
    /// Those that the policy approves.
    pub approved: Vec<ApprovedDevice>,
    /// The others.
    pub left_out: Vec<LeftOut>,
}

/// Opens the devices and has the policy examine each of them. Nothing is written. With `enrol`, a replica may be on
/// another device than the one that it was enrolled on.
///
/// # Errors
/// When none is approved; when devices that were found by a name are approved and belong to several volumes.
pub fn gather(
    sources: &Sources,
    registry: &VerifiedRegistry,
    access: Access,
    enrol: bool,
) -> Result<Gathered, Problem> {
    let (host, today) = (HostFacts::read(&Kernel), today()?);
    super::devices::refuse_repeated(&sources.devices)?;
    let mut gathered = Gathered { approved: Vec::new(), left_out: Vec::new() };
    for path in &sources.devices {
        let opened = RawDevice::open(path, access).map_err(Problem::from);
        let approved = opened.and_then(|device| Ok(ApprovedDevice::approve(Arc::new(device), registry, &host, today)?));
        match approved {
            Ok(device) => gathered.approved.push(device),
            Err(why) => gathered.left_out.push(LeftOut { device: path.clone(), why }),
        }
    }
    if !enrol {
        gathered.leave_out_copies();
    }
    gathered.leave_out_twins();
    if gathered.approved.is_empty() {
        let is_busy = |left_out: &&LeftOut| left_out.why.exit() == ExitCode::Busy;
        // A device in use may be a replica: then the volume is mounted already, whatever else claims to be one.
        let counts = gathered.left_out.iter().find(is_busy).or(gathered.left_out.first());
        let none = || Problem::new(Code::DeviceCount, "no device was given");
        return Err(counts.map_or_else(none, |left_out| left_out.why.clone()));
    }
    let gathered = gathered.of_one_volume(sources.name.as_deref())?;
    let entries: Vec<_> = gathered.approved.iter().map(ApprovedDevice::registry_entry).collect();
    let entries: Vec<_> = entries.iter().map(AsRef::as_ref).collect();
    let reasons = examine_set(registry, &entries);
    match reasons.first() {
        None => Ok(gathered),
        Some(first) => {
            let together = Problem::new(first.code, format!("these devices together: {}", in_a_line(&reasons)));
            Err(blame(&gathered.left_out, together))
        }
    }
}

impl Gathered {
    /// Leaves out a device whose label was written for another device: the copy of a replica. A label that says otherwise
    /// is not believed yet, but one that says so is no use.
    fn leave_out_copies(&mut self) {
        for device in std::mem::take(&mut self.approved) {
            let entry = device.registry_entry();
            let found = label::read(&device).ok();
            let claims = found.as_ref().map(|found| found.newest.claims());
            let row = claims.and_then(|claims| claims.replicas.get(usize::from(claims.replica_index))?.as_ref());
            let is_copy =
                |row: &ReplicaRow| (&row.registry_id, row.identity) != (&entry.registry_id, entry.identity_digest);
            match row.filter(|row| is_copy(row)) {
                None => self.approved.push(device),
                Some(row) => {
                    let (name, enrolled, listed) = (device.name(), &row.registry_id, &entry.registry_id);
                    let text = format!(
                        "{name} is {listed} in the registry, and shows a replica that was enrolled as {enrolled} on another device or under another identity"
                    );
                    let why = Problem::new(Code::DeviceSwapped, text);
                    self.left_out.push(LeftOut { device: name.into(), why });
                }
            }
        }
    }

    /// Leaves out devices that show one identity: at most one of them can be what the officers have approved, and
    /// nothing tells which.
    fn leave_out_twins(&mut self) {
        let identities: Vec<[u8; 32]> = self.approved.iter().map(|d| d.registry_entry().identity_digest).collect();
        let is_twin = |device: &ApprovedDevice| {
            let digest = device.registry_entry().identity_digest;
            identities.iter().filter(|other| **other == digest).count() > 1
        };
        let (twins, approved) = std::mem::take(&mut self.approved).into_iter().partition(is_twin);
        self.approved = approved;
        let twins: Vec<ApprovedDevice> = twins;
        let names: Vec<&str> = twins.iter().map(ApprovedDevice::name).collect();
        for twin in &twins {
            let text = format!(
                "{} all show the identity of one device: {}",
                names.join(", "),
                twin.registry_entry().registry_id
            );
            let why = Problem::new(Code::DeviceUsedTwice, text);
            self.left_out.push(LeftOut { device: twin.name().into(), why });
        }
    }

    /// Refuses to choose between volumes that have one label.
    fn of_one_volume(self, name: Option<&str>) -> Result<Self, Problem> {
        let Some(name) = name else { return Ok(self) };
        let claims = |device: &ApprovedDevice| {
            let found = label::read(device).ok()?;
            Some((device.name().to_owned(), found.newest.claims().volume))
        };
        let claimed: Vec<(String, Uuid)> = self.approved.iter().filter_map(claims).collect();
        let Some((_, first)) = claimed.first() else { return Ok(self) };
        if claimed.iter().all(|(_, volume)| volume == first) {
            return Ok(self);
        }
        let shown: Vec<String> = claimed.iter().map(|(device, uuid)| format!("{device} ({uuid})")).collect();
        let text = format!("several volumes are called {name:?}: {}", shown.join(", "));
        Err(Problem::new(Code::VolumeAmbiguous, text).advise("Name the volume by its UUID, or its devices."))
    }

    /// Whether a device was left out because somebody else uses it.
    pub fn lacks_busy(&self) -> bool {
        self.left_out.iter().any(|left_out| left_out.why.exit() == ExitCode::Busy)
    }
}

/// The problem with a volume that cannot be used. When devices were left out, they are the reason that counts.
pub fn blame(left_out: &[LeftOut], problem: Problem) -> Problem {
    let is_lack =
        matches!(problem.code, Code::VolumeIncomplete | Code::VolumeNoRoot | Code::TooFewReplicas | Code::TooFewSites);
    match left_out.split_first() {
        Some((first, others)) if is_lack => {
            let others = others.iter().fold(String::new(), |text, other| format!("{text}; {}", other.why.text));
            let text = format!("{}{others}. Without that, {}", first.why.text, problem.text);
            Problem { text, ..first.why.clone() }
        }
        _ => problem,
    }
}

/// What is said of the devices that were left out of a volume that is in use all the same.
pub fn said(left_out: &[LeftOut]) -> Vec<Problem> {
    let say = |LeftOut { device, why }: &LeftOut| {
        let text = format!("{} was left out at the mount: {} [{}]", device.display(), why.text, why.code);
        Problem::new(Code::DeviceLeftOut, text)
    };
    left_out.iter().map(say).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::memory::MemoryDevice;
    use crate::policy::laboratory;

    #[test]
    fn devices_that_show_one_identity_are_all_left_out() {
        let approved = |name: &str| {
            let device = Arc::new(MemoryDevice::new(name, 17 << 20));
            Arc::into_inner(laboratory::approve(&[device]).remove(0)).unwrap()
        };
        let approved = ["m0", "m1", "m0"].map(approved).into();
        let mut gathered = Gathered { approved, left_out: Vec::new() };
        gathered.leave_out_twins();
        assert_eq!(gathered.approved.iter().map(ApprovedDevice::name).collect::<Vec<_>>(), ["m1"]);
        assert_eq!(gathered.left_out.len(), 2);
        assert!(gathered.left_out.iter().all(|left_out| left_out.why.code == Code::DeviceUsedTwice));
        // What is lacking then is told with the reason.
        let lacking = blame(&gathered.left_out, Problem::new(Code::VolumeIncomplete, "the volume is incomplete"));
        assert!(
            lacking.code == Code::DeviceUsedTwice && lacking.text.contains("the volume is incomplete"),
            "{lacking}"
        );
        let other = blame(&gathered.left_out, Problem::new(Code::WrongKey, "wrong passphrase"));
        assert_eq!(other.text, "wrong passphrase");
        assert_eq!(said(&gathered.left_out).len(), 2);
    }
}
