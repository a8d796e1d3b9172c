//! A signed registry for devices that are made up: the same documents and the same policy as for any other device.

use std::sync::{Arc, Weak};
use std::time::Duration;

use scelle::device::IdentifiedDevice;
use scelle::limits::LEASE_S;
use scelle::mirror::{Mirror, State};
use scelle::policy::laboratory::{self, Officers};
use scelle::policy::{ApprovedDevice, Verdict};
use scelle::probe::host::{HostFacts, Virtualization};
use scelle::registry::{Date, Registry, VerifiedRegistry};

/// A laboratory registry of some devices, and a host and a day on which it holds.
pub struct Documents {
    officers: Officers,
    document: Registry,
    pub registry: Arc<VerifiedRegistry>,
    pub host: HostFacts,
    pub today: Date,
}

impl Documents {
    /// The devices are `memory-1`, `memory-2` and so on.
    pub fn of(devices: &[Arc<dyn IdentifiedDevice>]) -> Self {
        Self::with(devices, |_| ())
    }

    /// The same, with something of the registry changed before it is signed.
    pub fn with(devices: &[Arc<dyn IdentifiedDevice>], change: impl FnOnce(&mut Registry)) -> Self {
        let ids: Vec<String> = (1..=devices.len()).map(|n| format!("memory-{n}")).collect();
        let facts: Vec<_> = ids.iter().zip(devices).map(|(id, d)| (id.as_str(), d.facts().unwrap())).collect();
        let (today, until) = (Date::new(2026, 1, 1).unwrap(), Date::new(2027, 1, 1).unwrap());
        let mut document = laboratory::registry_for(&facts, today, until);
        change(&mut document);
        let officers = Officers::new(&["officer-a", "officer-b"]).unwrap();
        let registry = Arc::new(officers.sign(&document).unwrap().verify().unwrap());
        Self { officers, document, registry, host: HostFacts::of(Virtualization::Unknown), today }
    }

    /// The first version with a change, signed by the same officers, as another version.
    pub fn issue(&self, version: u64, change: impl FnOnce(&mut Registry)) -> Arc<VerifiedRegistry> {
        let mut document = self.document.clone();
        document.version = version;
        change(&mut document);
        Arc::new(self.officers.sign(&document).unwrap().verify().unwrap())
    }

    pub fn approve(&self, device: Arc<dyn IdentifiedDevice>) -> ApprovedDevice {
        ApprovedDevice::approve(device, &self.registry, &self.host, self.today).unwrap()
    }

    /// A mirror of these devices, all of them in sync. Their approvals are renewed as long as there is one of them.
    pub fn mirror(&self, devices: &[Arc<dyn IdentifiedDevice>]) -> Mirror {
        let gates: Vec<_> = devices.iter().map(|device| Arc::new(self.approve(Arc::clone(device)))).collect();
        let kept: Vec<_> = gates.iter().map(Arc::downgrade).collect();
        let (registry, host, today) = (self.registry.clone(), self.host.clone(), self.today);
        std::thread::spawn(move || {
            while kept.iter().any(|gate| gate.strong_count() > 0) {
                std::thread::sleep(Duration::from_secs(LEASE_S / 3));
                for gate in kept.iter().filter_map(Weak::upgrade) {
                    gate.recheck(&registry, &host, today);
                }
            }
        });
        Mirror::new(gates.into_iter().map(|gate| (Some(gate), State::InSync)).collect()).unwrap()
    }

    /// The policy looks at the device again.
    pub fn recheck(&self, gate: &ApprovedDevice) -> Verdict {
        gate.recheck(&self.registry, &self.host, self.today)
    }
}
