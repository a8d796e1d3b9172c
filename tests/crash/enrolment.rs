//! Promise P11 about places: a replica is taken for what it was enrolled as only on the device that it was enrolled on.

use std::sync::Arc;

use scelle::device::memory::{Disk, MemoryDevice};
use scelle::device::{BlockDevice, IdentifiedDevice};
use scelle::problem::Code;
use scelle::registry::{Registry, VerifiedRegistry};
use scelle::volume::{self, Assembled, OpenOptions, Sealed};

use super::support::court::{content, create_options, get, put, secret};
use super::support::documents::Documents;

const SIZE: u64 = 16 << 20;

/// Three devices that the registry lists, and a volume on the first two.
struct Three {
    devices: [Arc<MemoryDevice>; 3],
    documents: Documents,
}

impl Three {
    fn new() -> Self {
        let devices = ["m0", "m1", "m2"].map(|name| Arc::new(MemoryDevice::new(name, SIZE)));
        let named: Vec<Arc<dyn IdentifiedDevice>> = devices.iter().map(|device| device.clone() as _).collect();
        let three = Self { devices, documents: Documents::of(&named) };
        let both = [0, 1].map(|index| three.documents.approve(three.devices[index].clone()));
        volume::create(both.into(), &three.documents.registry, &secret(), &create_options()).unwrap();
        three
    }

    /// The volume on these devices under this registry, its key found.
    fn assembled(&self, present: &[usize], registry: &VerifiedRegistry) -> Result<Assembled, volume::Error> {
        let (host, today) = (&self.documents.host, self.documents.today);
        let approve = |index: &usize| {
            scelle::policy::ApprovedDevice::approve(self.devices[*index].clone(), registry, host, today).unwrap()
        };
        Sealed::read(present.iter().map(approve).collect())?.unlock(&secret())
    }

    fn open(
        &self,
        present: &[usize],
        registry: &VerifiedRegistry,
        options: OpenOptions,
    ) -> Result<volume::Open, volume::Error> {
        self.assembled(present, registry)?.open(registry, &options)
    }

    fn disks(&self) -> Vec<Disk> {
        self.devices.iter().map(|device| device.disk()).collect()
    }

    /// As by dd.
    fn copy_the_first_to_the_third(&self) {
        self.devices[2].write_at(0, &[std::io::IoSlice::new(&self.devices[0].image())]).unwrap();
    }

    /// The registry's next version with a change, and what becomes of the volume under it.
    fn under(&self, change: impl FnOnce(&mut Registry)) -> Result<(), Code> {
        let registry = self.documents.issue(2, change);
        let before = self.disks();
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let opened = self.open(&[0, 1], &registry, options).map(drop).map_err(|error| error.code());
        assert!(self.disks() == before);
        opened
    }
}

#[test]
fn p11_a_copy_of_a_replica_on_another_approved_device_is_refused_everywhere() {
    let three = Three::new();
    let registry = three.documents.registry.clone();
    three.copy_the_first_to_the_third();
    let before = three.disks();
    let swapped = |outcome: Result<(), volume::Error>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), Code::DeviceSwapped, "{error}");
        for said in ["m2", "memory-1", "memory-3"] {
            assert!(error.to_string().contains(said), "{said} is not in {error}");
        }
        assert!(three.disks() == before, "something was written");
    };
    swapped(three.open(&[1, 2], &registry, OpenOptions::default()).map(drop));
    swapped(three.assembled(&[1, 2], &registry).unwrap().check(&mut |_, _| {}).map(drop));
    // Nor into a volume in use.
    let open = three.open(&[1], &registry, OpenOptions { degraded: true, ..OpenOptions::default() }).unwrap();
    let error = open.members().take_in(three.documents.approve(three.devices[2].clone())).unwrap_err();
    assert_eq!(error.code(), Code::DeviceSwapped, "{error}");
    assert!(three.devices[2].disk() == before[2], "something was written");
    open.close().unwrap();
}

#[test]
fn p11_what_the_registry_says_of_a_device_decides_whether_it_is_the_enrolled_one() {
    let three = Three::new();
    assert_eq!(three.under(|_| ()), Ok(()));
    let moved = |registry: &mut Registry| {
        let mut site = registry.sites[0].clone();
        site.id = "elsewhere".into();
        registry.sites.push(site);
        registry.devices[0].site = "elsewhere".into();
    };
    assert_eq!(three.under(moved), Ok(()), "a device that was moved is the same device");
    assert_eq!(three.under(|registry| registry.devices[0].id = "renamed".into()), Err(Code::DeviceSwapped));
    let exchanged = |registry: &mut Registry| {
        let (first, second) = registry.devices.split_at_mut(1);
        std::mem::swap(&mut first[0].id, &mut second[0].id);
    };
    assert_eq!(three.under(exchanged), Err(Code::DeviceSwapped));
    // While the volume is in use as well, or the next mount would be the first to tell.
    let open = three.open(&[0, 1], &three.documents.registry, OpenOptions::default()).unwrap();
    let (host, today) = (&three.documents.host, three.documents.today);
    open.members().recheck(&three.documents.issue(2, moved), host, today);
    assert!(open.members().device(0).unwrap().verdict().approved);
    open.members().recheck(
        &three.documents.issue(3, |registry| registry.devices[0].id = "renamed".into()),
        host,
        today,
    );
    assert!(open.members().device(0).unwrap().verdict().has(Code::DeviceSwapped));
    open.close().unwrap();
}

#[test]
fn p9_a_device_is_enrolled_anew_when_somebody_says_so_and_the_trail_tells() {
    let three = Three::new();
    let registry = three.documents.registry.clone();
    let open = three.open(&[0, 1], &registry, OpenOptions::default()).unwrap();
    put(open.fs(), b"deed", &content(1, 200_000)).unwrap();
    open.close().unwrap();
    three.copy_the_first_to_the_third();
    let assembled = three.assembled(&[1, 2], &registry).unwrap();
    let found = assembled.swapped();
    assert_eq!((found.len(), found[0].index, found[0].listed.0.as_str()), (1, 0, "memory-3"));
    let enrol = OpenOptions { enrol: true, ..OpenOptions::default() };
    assembled.open(&registry, &enrol).unwrap().close().unwrap();
    let open = three.open(&[1, 2], &registry, OpenOptions::default()).unwrap();
    assert_eq!(get(open.fs(), b"deed"), content(1, 200_000));
    assert_eq!(open.status().replicas[0].registry_id, "memory-3");
    let trail: Vec<String> =
        open.audit().page(0).unwrap().into_iter().map(|record| String::from_utf8(record).unwrap()).collect();
    let told = trail.iter().find(|record| record.contains("replica-enrolled")).expect("a record");
    assert!(told.contains("memory-1") && told.contains("memory-3"), "{told}");
    open.close().unwrap();
    assert_eq!(three.assembled(&[1, 2], &registry).unwrap().check(&mut |_, _| {}).unwrap().count, 0);
    // The device of before is no replica any more.
    let error = three.open(&[0, 1], &registry, OpenOptions::default()).map(drop).unwrap_err();
    assert_eq!(error.code(), Code::DeviceSwapped, "{error}");
}

#[test]
fn an_entry_does_not_stand_for_two_replicas() {
    let three = Three::new();
    let registry = three.documents.issue(2, |registry| {
        registry.devices[1].id = "memory-9".into();
        registry.devices[0].id = "memory-2".into();
    });
    let options = OpenOptions { enrol: true, degraded: true, ..OpenOptions::default() };
    let before = three.disks();
    let error = three.open(&[0], &registry, options).map(drop).unwrap_err();
    assert!(error.code() == Code::DeviceUsedTwice && three.disks() == before, "{error}");
}
