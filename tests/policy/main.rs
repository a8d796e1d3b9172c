//! Device situations as fixtures: what the kernel shows of a device, and the verdict it must get. The format of
//! `fixtures/*.tree` is in `tests/support/kernel.rs`.
#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use scelle::limits::PCI_FUNCTIONS_MAX;
use scelle::policy::{examine, laboratory};
use scelle::probe::chain;
use scelle::probe::host::{HostFacts, Virtualization};
use scelle::probe::identity::DeviceFacts;
use scelle::registry::{Date, Registry, VerifiedRegistry};

#[path = "../support/mod.rs"]
mod support;
use support::kernel::Fixture;

const SOVEREIGN: &str = include_str!("sovereign.toml");
const LABORATORY: &str = include_str!("laboratory.toml");

fn registry(kind: &str) -> VerifiedRegistry {
    let text = if kind == "laboratory" { LABORATORY } else { SOVEREIGN };
    laboratory::sign(&Registry::parse(text.as_bytes()).unwrap()).unwrap().verify().unwrap()
}

fn verdict_of(fixture: &Fixture, registry: &VerifiedRegistry) -> scelle::policy::Verdict {
    let asked = fixture.asked();
    let root = chain::read(&asked, fixture.device);
    let today = Date::parse("2026-11-21").unwrap();
    examine(registry, &DeviceFacts { root }, &HostFacts::read(&asked), today)
}

fn fixtures() -> Vec<(String, Fixture)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy/fixtures");
    let mut fixtures: Vec<(String, Fixture)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let fixture = Fixture::parse(&std::fs::read_to_string(path).unwrap());
            assert!(fixture.nonsense.is_empty(), "{name}: {:?}", fixture.nonsense);
            (name, fixture)
        })
        .collect();
    fixtures.sort_by(|a, b| a.0.cmp(&b.0));
    fixtures
}

#[test]
fn every_situation_gets_its_verdict() {
    let mut wrong = Vec::new();
    let fixtures = fixtures();
    assert!(fixtures.len() >= 100, "only {} fixtures", fixtures.len());
    for (name, fixture) in &fixtures {
        let verdict = verdict_of(fixture, &registry(&fixture.registry));
        let found = match &verdict.registry_id {
            Some(id) if verdict.approved => vec!["approved".to_owned(), id.clone()],
            _ => {
                let codes: BTreeSet<String> = verdict.reasons.iter().map(|r| r.code.to_string()).collect();
                std::iter::once("refused".to_owned()).chain(codes).collect()
            }
        };
        let mut expected = fixture.expect.clone();
        expected[1..].sort();
        if found != expected {
            wrong.push(format!("{name}: expected {expected:?}, found {found:?}: {:#?}", verdict.reasons));
        }
        for text in fixture.says.iter().filter(|text| !verdict.reasons.iter().any(|r| r.text.contains(*text))) {
            wrong.push(format!("{name}: no reason says {text:?}: {:#?}", verdict.reasons));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_unreadable_attribute_never_turns_a_refusal_into_an_approval() {
    for (name, fixture) in fixtures() {
        let registry = registry(&fixture.registry);
        let approved = verdict_of(&fixture, &registry).approved;
        for path in fixture.files.keys() {
            for content in [None, Some(&b"unreadable\n"[..]), Some(b"\xff\xfe"), Some(b"")] {
                let mut broken = fixture.clone();
                match content {
                    Some(bytes) => broken.files.insert(path.clone(), bytes.to_vec()),
                    None => broken.files.remove(path),
                };
                let verdict = verdict_of(&broken, &registry);
                assert!(approved || !verdict.approved, "{name} without {} is approved", path.display());
            }
        }
    }
}

#[test]
fn a_host_with_more_pci_functions_than_are_looked_at_is_not_physical() {
    let approved = fixtures().into_iter().find(|(name, _)| name == "nvme-pcie-enrolled").unwrap().1;
    for (functions, of) in
        [(PCI_FUNCTIONS_MAX, Virtualization::Physical), (PCI_FUNCTIONS_MAX + 1, Virtualization::Unknown)]
    {
        let mut fixture = approved.clone();
        let vendor = |n| format!("/sys/bus/pci/devices/{n:06}/vendor").into();
        fixture.files.extend((0..functions).map(|n| (vendor(n), b"0x8086\n".to_vec())));
        assert_eq!(HostFacts::read(&fixture.asked()).virtualization, of);
        assert_eq!(verdict_of(&fixture, &registry("sovereign")).approved, of == Virtualization::Physical);
    }
}

/// Every byte of an answer that says who the device is, changed alone.
#[test]
fn a_device_that_answers_otherwise_is_never_approved() {
    let registry = registry("sovereign");
    let mut tried = 0;
    for (name, fixture) in fixtures().iter().filter(|(_, f)| f.expect[0] == "approved" && f.registry == "sovereign") {
        let mut refuses = |change: &dyn Fn(&mut Fixture)| {
            let mut other = fixture.clone();
            change(&mut other);
            assert!(!verdict_of(&other, &registry).approved, "{name}");
            tried += 1;
        };
        for dev in fixture.nvme.keys() {
            for byte in 4..64 {
                refuses(&|f| f.nvme.get_mut(dev).unwrap().controller[byte] ^= 1);
            }
            for byte in 0..8 {
                refuses(&|f| f.nvme.get_mut(dev).unwrap().namespace[byte] ^= 1);
            }
            refuses(&|f| drop(f.nvme.remove(dev)));
        }
        for (dev, answers) in &fixture.scsi {
            for byte in (8..32).chain([0]) {
                refuses(&|f| f.scsi.get_mut(dev).unwrap().standard[byte] ^= 1);
            }
            for byte in 1..answers.serial.len() {
                refuses(&|f| f.scsi.get_mut(dev).unwrap().serial[byte] ^= 1);
            }
            for byte in (1..answers.designators.len()).filter(|byte| !matches!(byte, 4 | 6)) {
                refuses(&|f| f.scsi.get_mut(dev).unwrap().designators[byte] ^= 1);
            }
            // Serial number and, as far as the translation shows it, model of the disk behind it.
            for byte in (20..40).chain(54..70).filter(|_| answers.ata.is_some()) {
                refuses(&|f| f.scsi.get_mut(dev).unwrap().ata.as_mut().unwrap()[byte] ^= 1);
            }
        }
    }
    assert!(tried > 400, "{tried}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_content_of_sysfs_is_survived(
        which in any::<prop::sample::Index>(),
        file in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        static FIXTURES: LazyLock<Vec<(String, Fixture)>> = LazyLock::new(fixtures);
        let mut fixture = FIXTURES[which.index(FIXTURES.len())].1.clone();
        let paths: Vec<PathBuf> = fixture.files.keys().cloned().collect();
        fixture.files.insert(paths[file.index(paths.len())].clone(), bytes);
        let registry = Registry::parse(SOVEREIGN.as_bytes()).unwrap();
        prop_assert!(registry.devices.len() > 1);
        let asked = fixture.asked();
        let _ = HostFacts::read(&asked);
        let _ = chain::read(&asked, fixture.device);
    }
}
