//! A signed registry for devices in memory: the same documents and the same policy as for any other device.

use std::sync::Arc;

use scelle::device::IdentifiedDevice;
use scelle::policy::laboratory;
use scelle::probe::host::{HostFacts, Virtualization};
use scelle::registry::{Date, Registry, VerifiedRegistry};

/// A signed laboratory registry that names these devices, and a host and a day on which it holds.
pub fn registry_of(devices: &[Arc<dyn IdentifiedDevice>]) -> (VerifiedRegistry, HostFacts, Date) {
    registry_with(devices, |_| {})
}

/// The same, with something of it changed before it is signed.
pub fn registry_with(
    devices: &[Arc<dyn IdentifiedDevice>],
    change: impl FnOnce(&mut Registry),
) -> (VerifiedRegistry, HostFacts, Date) {
    let ids: Vec<String> = (1..=devices.len()).map(|n| format!("memory-{n}")).collect();
    let facts: Vec<_> = ids
        .iter()
        .zip(devices)
        .map(|(id, device)| (id.as_str(), device.facts().expect("facts of a test device")))
        .collect();
    let (from, until) = (Date::new(2026, 1, 1).expect("a day"), Date::new(2027, 1, 1).expect("a day"));
    let mut registry = laboratory::registry_for(&facts, from, until);
    change(&mut registry);
    let documents = laboratory::sign(&registry).expect("a signed registry");
    let host = HostFacts::of(Virtualization::Unknown);
    (documents.verify().expect("a verified registry"), host, from)
}
