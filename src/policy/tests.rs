#![allow(clippy::unwrap_used)]

mod manual;
mod permissive;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::device::IdentifiedDevice;
use crate::device::faulty::FaultyDevice;
use crate::device::memory::MemoryDevice;
use crate::device::{AlignedBuf, Write};
use crate::probe::host::{HostFacts, Virtualization};
use crate::probe::identity::{DeviceFacts, Node};
use crate::problem::{Code, Problem};
use crate::registry::{Date, Registry, Status, Transport, VerifiedRegistry};

const SIZE: u64 = 1 << 20;

fn day(text: &str) -> Date {
    Date::parse(text).unwrap()
}

fn today() -> Date {
    day("2026-11-21")
}

fn host(virtualization: Virtualization) -> HostFacts {
    HostFacts::of(virtualization)
}

fn physical() -> HostFacts {
    host(Virtualization::Physical)
}

/// A sovereign disk.
fn nvme() -> DeviceFacts {
    let mut root = Node::bare("nvme0n1", Transport::NvmePcie);
    root.wwid = Some("eui.0025385b21b0a6c1".into());
    root.serial = Some("S4EWNX0R512345".into());
    root.model = Some("Disk 1".into());
    root.size_bytes = 3_840_755_982_336;
    DeviceFacts { root }
}

fn registry_with(facts: &DeviceFacts, change: impl FnOnce(&mut Registry)) -> VerifiedRegistry {
    let mut document = laboratory::registry_for(&[("disk-1", facts.clone())], day("2026-11-01"), day("2026-12-31"));
    document.policy.virtual_hosts = false;
    change(&mut document);
    laboratory::sign(&document).unwrap().verify().unwrap()
}

fn codes(verdict: &Verdict) -> Vec<Code> {
    let mut codes: Vec<_> = verdict.reasons.iter().map(|r| r.code).collect();
    codes.dedup();
    codes
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Registry), code: Code) {
    let verdict = examine(&registry_with(&nvme(), change), &nvme(), &physical(), today());
    assert_eq!((verdict.approved, codes(&verdict)), (false, vec![code]), "{:?}", verdict.reasons);
}

#[track_caller]
fn device_refused(change: impl FnOnce(&mut Node), expected: &[Code]) {
    let mut facts = nvme();
    change(&mut facts.root);
    let verdict = examine(&registry_with(&nvme(), |_| ()), &facts, &physical(), today());
    assert_eq!((verdict.approved, &codes(&verdict)[..]), (false, expected), "{:?}", verdict.reasons);
}

#[test]
fn a_listed_device_is_approved_with_every_rule_shown() {
    let verdict = examine(&registry_with(&nvme(), |_| ()), &nvme(), &physical(), today());
    assert!(verdict.approved, "{:?}", verdict.reasons);
    assert_eq!((verdict.registry_id.as_deref(), verdict.site.as_deref()), (Some("disk-1"), Some("laboratory")));
    assert!(verdict.rules.len() >= 12 && verdict.rules.iter().all(|r| r.passed));
}

#[test]
fn every_predicate_refuses_alone() {
    use Code::*;
    refused(|r| r.valid_until = day("2026-11-20"), RegistryExpired);
    refused(|r| r.issued = day("2026-11-22"), RegistryNotYetValid);
    refused(|r| r.devices.clear(), DeviceNotListed);
    refused(|r| r.devices[0].status = Status::Revoked, DeviceRevoked);
    refused(|r| r.devices[0].site = "elsewhere".into(), SiteUnknown);
    refused(|r| r.sites[0].inspection_valid_until = day("2026-11-20"), InspectionExpired);
    refused(|r| r.sites[0].inspected = day("2026-11-22"), InspectionInFuture);
    refused(|r| r.sites[0].owner = "Cloud Inc.".into(), OwnerNotApproved);
    refused(|r| r.sites[0].administrator = "Cloud Inc.".into(), AdministratorNotApproved);
    refused(|r| r.sites[0].country = "IE".into(), CountryNotApproved);
    refused(|r| r.sites[0].jurisdictions.push("US".into()), JurisdictionNotApproved);
    refused(|r| r.policy.transports = vec![Transport::Sas], TransportNotAllowed);
    let twin = |r: &mut Registry| {
        let mut twin = r.devices[0].clone();
        twin.id = "disk-2".into();
        r.devices.push(twin);
    };
    refused(twin, DeviceListedTwice);
}

#[test]
fn validity_includes_its_first_and_last_day() {
    let registry = registry_with(&nvme(), |_| ());
    for (date, approved) in [("2026-10-31", false), ("2026-11-01", true), ("2026-12-31", true), ("2027-01-01", false)] {
        assert_eq!(examine(&registry, &nvme(), &physical(), day(date)).approved, approved, "{date}");
    }
}

#[test]
fn every_field_of_the_identity_must_match() {
    use Code::*;
    device_refused(|n| n.wwid = Some("eui.0".into()), &[WwidMismatch]);
    device_refused(|n| n.serial = Some("S4EWNX0R512346".into()), &[SerialMismatch]);
    device_refused(|n| n.serial = None, &[SerialMismatch]);
    device_refused(|n| n.model = None, &[ModelMismatch]);
    device_refused(|n| n.size_bytes -= 512, &[SizeMismatch]);
    device_refused(|n| (n.wwid, n.serial) = (None, None), &[DeviceNotListed]);
    // The enrolled identity over a network.
    device_refused(|n| n.transport = Transport::NvmeTcp, &[TransportNotAllowed, TransportMismatch]);
    device_refused(|n| n.transport = Transport::Unknown, &[TransportUnknown, TransportMismatch]);
}

#[test]
fn what_could_not_be_read_refuses() {
    use crate::probe::identity::Doubt;
    use Code::*;
    device_refused(|n| n.problems.push(Doubt::Unreadable("x".into())), &[ChainUnreadable]);
    device_refused(|n| n.problems.push(Doubt::Cycle), &[ChainCycle]);
    device_refused(|n| n.problems.push(Doubt::TooDeep), &[ChainTooDeep]);
    device_refused(|n| n.problems.push(Doubt::TooManyNodes), &[ChainTooLarge]);
    device_refused(|n| n.problems.push(Doubt::Changed("x".into())), &[DeviceChanged]);
    device_refused(|n| n.problems.push(Doubt::Silent("x".into())), &[DeviceSilent]);
    device_refused(|n| n.problems.push(Doubt::Disagrees("x".into())), &[DeviceDisagrees]);
    device_refused(|n| n.problems.push(Doubt::CacheNotFlushed("x".into())), &[WriteCacheNotFlushed]);
    device_refused(|n| n.problems.push(Doubt::ChainDisagrees("x".into())), &[ChainDisagrees]);
    device_refused(|n| n.problems.push(Doubt::Unstable("x".into())), &[ChainUnstable]);
    device_refused(|n| n.problems.push(Doubt::Hidden("x".into())), &[ChainHidden]);
}

#[test]
fn hosts_that_are_virtual_or_silent_are_refused_unless_allowed() {
    let (strict, lax) = (registry_with(&nvme(), |_| ()), registry_with(&nvme(), |r| r.policy.virtual_hosts = true));
    for (kind, code) in [(Virtualization::Virtual, Code::HostVirtual), (Virtualization::Unknown, Code::HostUnknown)] {
        assert_eq!(codes(&examine(&strict, &nvme(), &host(kind), today())), [code]);
        assert!(examine(&lax, &nvme(), &host(kind), today()).approved);
    }
}

#[test]
fn every_node_and_leaf_of_a_chain_counts() {
    let registry = registry_with(&nvme(), |_| ());
    let above = |transport, children| {
        let mut root = Node::bare("top", transport);
        root.children = children;
        examine(&registry, &DeviceFacts { root }, &physical(), today())
    };
    assert!(above(Transport::Partition, vec![nvme().root]).approved);
    assert_eq!(codes(&above(Transport::Partition, vec![])), [Code::TransportUnknown, Code::DeviceNotListed]);
    assert_eq!(codes(&above(Transport::Dm, vec![nvme().root])), [Code::ChainNodeNotAllowed]);
    let stranger = Node::bare("nbd0", Transport::Nbd);
    let mixed = above(Transport::Md, vec![nvme().root, stranger]);
    assert!(!mixed.approved && mixed.has(Code::ChainNodeNotAllowed));
    assert!(mixed.has(Code::TransportNotAllowed) && mixed.has(Code::ChainLeavesDiffer));
}

fn loop_facts() -> DeviceFacts {
    use crate::os::DevNo;
    use crate::probe::identity::LoopFile;
    let mut root = Node::bare("loop3", Transport::Loop);
    root.size_bytes = SIZE;
    root.loop_file = Some(LoopFile {
        fs_device: DevNo { major: 254, minor: 0 },
        inode: 77,
        offset: 0,
        fs_type: Some("ext4".into()),
    });
    root.children = vec![Node::bare("vda", Transport::Virtio)];
    DeviceFacts { root }
}

#[test]
fn a_loop_device_is_approved_by_a_laboratory_registry_only() {
    let registry = registry_with(&loop_facts(), |_| ());
    assert!(registry.is_laboratory());
    assert!(examine(&registry, &loop_facts(), &physical(), today()).approved);
    let changed = |change: &dyn Fn(&mut Node)| {
        let mut facts = loop_facts();
        change(&mut facts.root);
        codes(&examine(&registry, &facts, &physical(), today()))
    };
    assert_eq!(changed(&|n| n.loop_file.as_mut().unwrap().inode = 78), [Code::DeviceNotListed]);
    assert_eq!(changed(&|n| n.loop_file.as_mut().unwrap().fs_device.minor = 1), [Code::FsDeviceMismatch]);
    assert_eq!(changed(&|n| n.loop_file.as_mut().unwrap().offset = 512), [Code::LoopOffset]);
    assert_eq!(changed(&|n| n.size_bytes += 512), [Code::SizeMismatch]);
    // Bound to a block device, or not bound: no file to recognise it by.
    assert!(changed(&|n| n.loop_file = None).contains(&Code::TransportNotAllowed));
    let sovereign = registry_with(&nvme(), |_| ());
    let verdict = examine(&sovereign, &loop_facts(), &physical(), today());
    assert!(!verdict.approved && verdict.has(Code::TransportNotAllowed));
}

#[test]
fn reason_codes_are_stable() {
    assert_eq!(Code::DeviceNotListed.to_string(), "device-not-listed");
    let reason = Problem::new(Code::RegistryExpired, "old");
    let advice = Code::RegistryExpired.remedy();
    let expected = format!(r#"{{"code":"registry-expired","text":"old","advice":"{advice}"}}"#);
    assert_eq!(serde_json::to_string(&reason).unwrap(), expected);
}

fn memory_registry(devices: &[(&str, &dyn IdentifiedDevice)], version: u64) -> VerifiedRegistry {
    let facts: Vec<_> = devices.iter().map(|(id, d)| (*id, d.facts().unwrap())).collect();
    let mut document = laboratory::registry_for(&facts, day("2026-11-01"), day("2026-12-31"));
    document.version = version;
    laboratory::sign(&document).unwrap().verify().unwrap()
}

fn write(device: &ApprovedDevice) -> Result<(), WriteError> {
    let buf = AlignedBuf::zeroed(4096);
    device.write_at(0, &[IoSlice::new(&buf)])
}

#[test]
fn a_refused_device_is_not_touched() {
    let (a, b) = (Arc::new(MemoryDevice::new("a", SIZE)), Arc::new(MemoryDevice::new("b", SIZE)));
    let faulty = Arc::new(FaultyDevice::new(b));
    let registry = memory_registry(&[("a", &*a)], 1);
    let error = ApprovedDevice::approve(faulty.clone(), &registry, &physical(), today()).unwrap_err();
    assert_eq!(codes(&error.verdict), [Code::DeviceNotListed]);
    assert!(error.to_string().contains("[device-not-listed]"), "{error}");
    assert_eq!(faulty.counts(), Default::default());
}

#[test]
fn the_gate_closes_before_the_next_write() {
    let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new("a", SIZE))));
    let registry = memory_registry(&[("a", &*faulty)], 2);
    let device = ApprovedDevice::approve(faulty.clone(), &registry, &physical(), today()).unwrap();
    assert!(device.is_laboratory() && device.fence_reason().is_none());
    assert_eq!((device.registry_version(), device.registry_entry().registry_id.as_str()), (2, "a"));
    write(&device).unwrap();
    device.flush().unwrap();
    let before = faulty.counts();

    // Expired; rolled back; unplugged: each closes the gate, and the next approval opens it.
    let older = memory_registry(&[("a", &*faulty)], 1);
    let refusals: [(&dyn Fn() -> Verdict, Code); 3] = [
        (&|| device.recheck(&registry, &physical(), day("2027-01-01")), Code::RegistryExpired),
        (&|| device.recheck(&older, &physical(), today()), Code::RegistryRolledBack),
        (
            &|| {
                faulty.unplug();
                device.recheck(&registry, &physical(), today())
            },
            Code::DeviceUnreadable,
        ),
    ];
    for (refuse, code) in refusals {
        let verdict = refuse();
        assert!(!verdict.approved && verdict.has(code), "{:?}", verdict.reasons);
        assert!(matches!(write(&device), Err(WriteError::Fenced { reason }) if reason.code == code));
        assert!(matches!(device.flush(), Err(WriteError::Fenced { .. })));
        assert_eq!(faulty.counts(), before);
        assert_eq!(device.writes_in_flight(), 0);
        faulty.heal();
        assert!(device.recheck(&registry, &physical(), today()).approved);
        assert!(device.fence_reason().is_none());
    }
    device.read_at(0, &mut AlignedBuf::zeroed(4096)).unwrap();

    // The volume's own fence stays over an approving recheck.
    device.fence(Problem::new(Code::Fenced, "it failed"));
    assert!(device.recheck(&registry, &physical(), today()).approved);
    assert!(matches!(write(&device), Err(WriteError::Fenced { reason }) if reason.text == "it failed"));
    device.lift_fence();
    write(&device).unwrap();
}

#[test]
fn another_approved_device_in_its_place_is_refused() {
    let (a, b) = (Arc::new(MemoryDevice::new("a", SIZE)), Arc::new(MemoryDevice::new("b", SIZE)));
    let registry = memory_registry(&[("a", &*a), ("b", &*b)], 1);
    let swapped = Arc::new(FaultyDevice::new(a));
    let device = ApprovedDevice::approve(swapped.clone(), &registry, &physical(), today()).unwrap();
    write(&device).unwrap();
    swapped.replace(b);
    assert_eq!(codes(&device.recheck(&registry, &physical(), today())), [Code::DeviceSwapped]);
    assert!(write(&device).is_err());
}

#[test]
fn after_the_fence_no_write_lands() {
    let memory = Arc::new(MemoryDevice::new("a", SIZE));
    let faulty = Arc::new(FaultyDevice::new(memory.clone()));
    let registry = memory_registry(&[("a", &*faulty)], 1);
    let device = ApprovedDevice::approve(faulty.clone(), &registry, &physical(), today()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = write(&device);
                }
            });
        }
        for _ in 0..200 {
            device.fence(Problem::new(Code::Fenced, "test"));
            while device.writes_in_flight() > 0 {
                std::thread::yield_now();
            }
            let seen = faulty.counts();
            std::thread::sleep(std::time::Duration::from_micros(50));
            assert_eq!(faulty.counts(), seen);
            device.lift_fence();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(faulty.counts().writes > 0);
}

#[test]
fn a_volume_needs_distinct_devices_at_enough_sites() {
    let (a, b) = (Arc::new(MemoryDevice::new("a", SIZE)), Arc::new(MemoryDevice::new("b", SIZE)));
    let facts = [("a", a.facts().unwrap()), ("b", b.facts().unwrap())];
    let mut document = laboratory::registry_for(&facts, day("2026-11-01"), day("2026-12-31"));
    (document.policy.min_sites, document.policy.min_replicas) = (2, 2);
    let mut other = document.sites[0].clone();
    other.id = "second".into();
    document.sites.push(other);
    let entries = |document: &Registry| {
        let registry = laboratory::sign(document).unwrap().verify().unwrap();
        let approve = |d: &Arc<MemoryDevice>| {
            ApprovedDevice::approve(d.clone(), &registry, &physical(), today()).unwrap().registry_entry()
        };
        (approve(&a), approve(&b), registry)
    };
    let found = |registry: &VerifiedRegistry, set: &[&ApprovedEntry]| -> Vec<Code> {
        examine_set(registry, set).into_iter().map(|r| r.code).collect()
    };
    let (x, y, registry) = entries(&document);
    assert_eq!(found(&registry, &[&x, &y]), [Code::TooFewSites]);
    assert_eq!(found(&registry, &[&x]), [Code::TooFewSites, Code::TooFewReplicas]);
    assert_eq!(found(&registry, &[&x, &x]), [Code::DeviceUsedTwice, Code::TooFewSites]);
    document.devices[1].site = "second".into();
    let (x, y, registry) = entries(&document);
    assert_eq!(found(&registry, &[&x, &y]), []);
}

/// What a device is, said when it is let.
fn approved_device() -> (Arc<FaultyDevice>, VerifiedRegistry, ApprovedDevice) {
    let device = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new("m0", SIZE))));
    let registry = registry_with(&device.facts().unwrap(), |_| ());
    let approved = ApprovedDevice::approve(device.clone(), &registry, &physical(), today()).unwrap();
    (device, registry, approved)
}

#[test]
fn p2_an_approval_that_nobody_renews_ends_by_itself() {
    let (_, registry, device) = approved_device();
    let lease = std::time::Duration::from_secs(crate::limits::LEASE_S);
    assert!(write(&device).is_ok() && device.fence_reason().is_none());
    device.age(lease / 2);
    assert!(write(&device).is_ok() && device.verdict().approved);
    device.age(lease / 2);
    assert!(!device.verdict().approved && device.verdict().has(Code::ApprovalOverdue));
    assert_eq!(device.fence_reason().unwrap().code, Code::ApprovalOverdue);
    assert!(matches!(write(&device), Err(WriteError::Fenced { reason }) if reason.code == Code::ApprovalOverdue));
    let mut buf = AlignedBuf::zeroed(4096);
    device.read_at(0, &mut buf).unwrap();
    assert!(device.recheck(&registry, &physical(), today()).approved);
    assert!(write(&device).is_ok() && device.fence_reason().is_none());
}

/// A renewal that is late because the host had no time for it: writes wait, and none fails.
#[test]
fn a_late_renewal_fences_nobody() {
    let (_, registry, device) = approved_device();
    device.age(std::time::Duration::from_secs(2 * crate::limits::LEASE_S));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| write(&device));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished() && device.recheck(&registry, &physical(), today()).approved);
        assert!(waiting.join().unwrap().is_ok());
    });
}

#[test]
fn p1_nothing_is_written_while_a_device_does_not_say_who_it_is() {
    let (_, registry, device) = approved_device();
    device.hold();
    assert_eq!(device.fence_reason().unwrap().code, Code::DeviceSilent);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| write(&device));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished(), "written");
        device.release();
        assert!(waiting.join().unwrap().is_ok());
        device.hold();
        let waiting = scope.spawn(|| write(&device));
        std::thread::sleep(std::time::Duration::from_millis(100));
        device.refuse(Problem::new(Code::DeviceUnreadable, "not within 10 s"));
        assert!(waiting.join().unwrap().is_err(), "who was refused gets nothing");
    });
    device.release();
    assert!(write(&device).is_err());
    assert!(device.recheck(&registry, &physical(), today()).approved && write(&device).is_ok());
}

/// Each of several writes that the device takes one by one passes the gate by itself.
#[test]
fn p1_a_fence_in_the_middle_of_several_writes_stops_the_rest() {
    let device = FaultyDevice::new(Arc::new(MemoryDevice::new("m0", SIZE))).slow(Duration::from_millis(20));
    let device = Arc::new(device);
    let gate = laboratory::approve(std::slice::from_ref(&device)).remove(0);
    let block = [7; 4096];
    let writes: Vec<_> = (0..20).map(|i| Write { offset: i * 8192, bufs: vec![IoSlice::new(&block)] }).collect();
    let outcome = std::thread::scope(|scope| {
        let writing = scope.spawn(|| gate.write_together(&writes, true));
        while device.counts().writes == 0 {
            std::thread::yield_now();
        }
        gate.fence(Problem::new(Code::Fenced, "tested"));
        writing.join().unwrap()
    });
    assert!(matches!(outcome, Err(WriteError::Fenced { .. })), "{outcome:?}");
    assert!(device.counts().writes < 20 && device.counts().flushes == 0, "{:?}", device.counts());
    assert_eq!(gate.writes_in_flight(), 0);
}
