//! Device situations as fixtures: what the kernel shows of a device, and the verdict it must get.
//!
//! A fixture (`fixtures/*.tree`) is a list of lines:
//!
//! | line | meaning |
//! |---|---|
//! | `# …` | a comment; the first one says the situation |
//! | `device MAJ:MIN` | the device to examine |
//! | `registry sovereign` or `registry laboratory` | which of the two registries below |
//! | `host physical`, `host silent` or `host qemu` | what firmware and processor show |
//! | `expect approved ID` or `expect refused CODE…` | the verdict, with exactly these reason codes |
//! | `at DIR` | following paths are relative to DIR; `block MAJ:MIN DIR` also links /sys/dev/block to it |
//! | `PATH = TEXT`, `PATH -> TARGET` | a file with a final newline, a symbolic link |
//! | `PATH = @TEXT` | a SCSI page with a serial number |
//! | `loop NAME file MAJ:MIN INODE OFFSET` or `loop NAME device MAJ:MIN` | what the loop driver answers |

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use scelle::device::chain;
use scelle::device::host::HostFacts;
use scelle::device::identity::{DevNo, DeviceFacts};
use scelle::device::sys::{LoopStatus, System};
use scelle::policy::{examine, laboratory};
use scelle::registry::{Date, Registry, VerifiedRegistry};

const SOVEREIGN: &str = include_str!("sovereign.toml");
const LABORATORY: &str = include_str!("laboratory.toml");

/// A kernel made of lines.
#[derive(Clone, Default)]
struct Fixture {
    device: String,
    registry: String,
    expect: Vec<String>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    links: BTreeMap<PathBuf, PathBuf>,
    loops: BTreeMap<String, LoopStatus>,
}

impl Fixture {
    fn parse(text: &str) -> Self {
        let mut fixture = Self { registry: "sovereign".into(), ..Self::default() };
        let mut base = PathBuf::from("/");
        fixture.host("physical");
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if let Some((path, text)) = line.split_once(" = ") {
                let bytes = match text.strip_prefix('@') {
                    // VPD page 0x80 (SPC-4, 7.8.18): 4 bytes of header, then the serial number.
                    Some(serial) => [&[0, 0x80, 0, serial.len() as u8], serial.as_bytes()].concat(),
                    None => format!("{text}\n").into_bytes(),
                };
                fixture.files.insert(base.join(path), bytes);
                continue;
            }
            if let Some((path, target)) = line.split_once(" -> ") {
                fixture.links.insert(base.join(path), PathBuf::from(target));
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["device", number] => fixture.device = number.into(),
                ["registry", kind] => fixture.registry = kind.into(),
                ["host", kind] => fixture.host(kind),
                ["expect", ref rest @ ..] => fixture.expect = rest.iter().map(|w| (*w).to_owned()).collect(),
                ["at", dir] => base = dir.into(),
                ["block", number, dir] => {
                    base = dir.into();
                    fixture.links.insert(format!("/sys/dev/block/{number}").into(), dir.into());
                    fixture.files.insert(base.join("dev"), format!("{number}\n").into_bytes());
                }
                ["loop", name, "file", fs, inode, offset] => {
                    let status = LoopStatus {
                        fs_device: DevNo::parse(fs).unwrap(),
                        inode: inode.parse().unwrap(),
                        block_device: None,
                        offset: offset.parse().unwrap(),
                    };
                    fixture.loops.insert(name.into(), status);
                }
                ["loop", name, "device", below] => {
                    let below = DevNo::parse(below);
                    let status = LoopStatus {
                        fs_device: DevNo { major: 0, minor: 6 },
                        inode: 1,
                        block_device: below,
                        offset: 0,
                    };
                    fixture.loops.insert(name.into(), status);
                }
                _ => panic!("not a line of a fixture: {line}"),
            }
        }
        fixture
    }

    fn host(&mut self, kind: &str) {
        let (dmi, flags) = match kind {
            "physical" => (Some(("Dell Inc.", "PowerEdge R760")), "fpu sse2"),
            "silent" => (None, "fpu sse2"),
            "qemu" => (Some(("QEMU", "Standard PC (Q35 + ICH9, 2009)")), "fpu sse2 hypervisor"),
            other => panic!("no such host: {other}"),
        };
        self.files.retain(|path, _| !path.starts_with("/sys/class/dmi"));
        if let Some((vendor, product)) = dmi {
            self.files.insert("/sys/class/dmi/id/sys_vendor".into(), vendor.into());
            self.files.insert("/sys/class/dmi/id/product_name".into(), product.into());
        }
        self.files.insert("/proc/cpuinfo".into(), format!("processor : 0\nflags\t\t: {flags}\n").into_bytes());
    }
}

impl System for Fixture {
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut path = path.to_path_buf();
        // As many links as the kernel follows.
        for _ in 0..40 {
            let link = path.ancestors().find_map(|a| Some((a.to_path_buf(), self.links.get(a)?)));
            let Some((from, target)) = link else { break };
            let rest = path.strip_prefix(&from).unwrap().to_path_buf();
            path = target.join(rest);
        }
        let exists = self.files.keys().chain(self.links.keys()).any(|p| p.starts_with(&path));
        if exists { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        let Ok(path) = self.resolve(path) else { return Ok(None) };
        match self.files.get(&path) {
            Some(bytes) if bytes == b"unreadable\n" => Err(io::Error::from_raw_os_error(libc::EACCES)),
            Some(bytes) if bytes.len() > max => Err(io::Error::other("too long")),
            found => Ok(found.cloned()),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let Ok(path) = self.resolve(path) else { return Ok(Vec::new()) };
        let below = self.files.keys().chain(self.links.keys()).filter_map(|p| p.strip_prefix(&path).ok());
        let names: BTreeSet<String> =
            below.filter_map(|p| Some(p.components().next()?.as_os_str().to_string_lossy().into_owned())).collect();
        Ok(names.into_iter().collect())
    }

    fn loop_status(&self, name: &str, _dev: DevNo) -> io::Result<LoopStatus> {
        self.loops.get(name).copied().ok_or_else(|| io::Error::from_raw_os_error(libc::ENXIO))
    }
}

fn registry(kind: &str) -> VerifiedRegistry {
    let text = if kind == "laboratory" { LABORATORY } else { SOVEREIGN };
    laboratory::sign(&Registry::parse(text.as_bytes()).unwrap()).unwrap().verify().unwrap()
}

fn verdict_of(fixture: &Fixture, registry: &VerifiedRegistry) -> scelle::policy::Verdict {
    let root = chain::read(fixture, DevNo::parse(&fixture.device).unwrap());
    let today = Date::parse("2026-11-21").unwrap();
    examine(registry, &DeviceFacts { root }, &HostFacts::read(fixture), today)
}

fn fixtures() -> Vec<(String, Fixture)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy/fixtures");
    let mut fixtures: Vec<(String, Fixture)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, Fixture::parse(&std::fs::read_to_string(path).unwrap()))
        })
        .collect();
    fixtures.sort_by(|a, b| a.0.cmp(&b.0));
    fixtures
}

#[test]
fn every_situation_gets_its_verdict() {
    let mut wrong = Vec::new();
    let fixtures = fixtures();
    assert!(fixtures.len() >= 20, "only {} fixtures", fixtures.len());
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_content_of_sysfs_is_survived(
        which in any::<prop::sample::Index>(),
        file in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let fixtures = fixtures();
        let mut fixture = fixtures[which.index(fixtures.len())].1.clone();
        let paths: Vec<PathBuf> = fixture.files.keys().cloned().collect();
        fixture.files.insert(paths[file.index(paths.len())].clone(), bytes);
        let registry = Registry::parse(SOVEREIGN.as_bytes()).unwrap();
        prop_assert!(registry.devices.len() > 1);
        let _ = HostFacts::read(&fixture);
        let _ = chain::read(&fixture, DevNo::parse(&fixture.device).unwrap());
    }
}
