//! Device situations as fixtures: what the kernel shows of a device, and the verdict it must get.
//!
//! A fixture (`fixtures/*.tree`) is a list of lines:
//!
//! | line | meaning |
//! |---|---|
//! | `# …` | a comment; the first one says the situation |
//! | `device MAJ:MIN` | the device to examine |
//! | `registry sovereign` or `registry laboratory` | which of the two registries below |
//! | `host physical`, `silent`, `virtual` or `qemu` | what firmware and processor show; paths below can say more |
//! | `expect approved ID` or `expect refused CODE…` | the verdict, with exactly these reason codes |
//! | `says TEXT` | the text of some reason contains TEXT |
//! | `at DIR` | following paths are relative to DIR; `block MAJ:MIN DIR` also links /sys/dev/block to it |
//! | `PATH = TEXT`, `PATH -> TARGET` | a file with a final newline, a symbolic link |
//! | `PATH = @TEXT`, `PATH = hex BYTES` | a SCSI page with a serial number, any bytes |
//! | `PATH = unreadable`, `PATH = none told` | a file whose reading fails, with EACCES or EINVAL |
//! | `PATH ~ TEXT` | what the file says from the second reading on |
//! | `driver MAJOR NAME` | the driver of a major number, where it is not that of [`DEVICES`] |
//! | `loop NAME file MAJ:MIN INODE OFFSET` or `loop NAME device MAJ:MIN` | what the loop driver answers |
//! | `dm MAJ:MIN: targets T…; devices MAJ:MIN…; suspended; unused; second` | what the device mapper answers |
//! | `nvme MAJ:MIN: KEY VALUE; …` or `scsi MAJ:MIN: KEY VALUE; …` | what the device itself answers: see [`answers`] |

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;
use scelle::device::chain;
use scelle::device::host::HostFacts;
use scelle::device::identity::{DevNo, DeviceFacts};
use scelle::device::live::{NvmeAnswers, ScsiAnswers};
use scelle::device::sys::{DmTable, LoopStatus, System, Target};
use scelle::policy::{examine, laboratory};
use scelle::registry::{Date, Registry, VerifiedRegistry};

const SOVEREIGN: &str = include_str!("sovereign.toml");
const LABORATORY: &str = include_str!("laboratory.toml");

/// The drivers of block devices' major numbers.
const DEVICES: &str = "Character devices:\n  1 mem\n  7 vcs\n\nBlock devices:\n  1 ramdisk\n  7 loop\n  8 sd\n  9 md\n \
     11 sr\n 43 nbd\n 65 sd\n147 drbd\n152 aoe\n179 mmc\n202 xvd\n230 zvol\n250 rbd\n251 rnbd_client\n252 zram\n\
    253 device-mapper\n254 virtblk\n255 bcache\n256 nullb\n259 blkext\n";

/// A kernel made of lines.
#[derive(Clone, Default)]
struct Fixture {
    device: String,
    registry: String,
    expect: Vec<String>,
    says: Vec<String>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    later: BTreeMap<PathBuf, Vec<u8>>,
    links: BTreeMap<PathBuf, PathBuf>,
    loops: BTreeMap<String, LoopStatus>,
    tables: BTreeMap<String, DmTable>,
    nvme: BTreeMap<String, NvmeAnswers>,
    scsi: BTreeMap<String, ScsiAnswers>,
}

/// A fixture as the kernel that is asked: it remembers what was read once.
struct Asked<'a> {
    fixture: &'a Fixture,
    read: Mutex<BTreeSet<PathBuf>>,
}

/// `KEY VALUE; KEY VALUE; …` as pairs.
fn pairs(text: &str) -> Vec<(&str, &str)> {
    text.split(';').map(str::trim).map(|pair| pair.split_once(' ').unwrap_or((pair, ""))).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn put(buffer: &mut [u8], at: usize, len: usize, text: &str) {
    buffer[at..at + len].fill(b' ');
    buffer[at..at + text.len()].copy_from_slice(text.as_bytes());
}

/// Answers of devices, made of the fields that a fixture names.
///
/// NVMe: `vid` (hex), `serial`, `model`, `sectors` (of 512 bytes), `eui`, `nguid`, `uuid` (hex), `cache`; or the raw
/// `controller`, `namespace`, `descriptors` in hex. SCSI: `vendor`, `model`, `serial`, `naa`, `cache`; `ata` and the
/// disk's own `ata-model`, `ata-serial`; or the raw `standard`, `page80`, `page83` in hex.
mod answers {
    use super::*;

    pub(super) fn nvme(text: &str) -> NvmeAnswers {
        let (mut controller, mut namespace) = (vec![0; 4096], vec![0; 4096]);
        let mut answers = NvmeAnswers { nsid: 1, ..NvmeAnswers::default() };
        namespace[130] = 9;
        for (key, value) in pairs(text) {
            match key {
                "vid" => controller[..2].copy_from_slice(&u16::from_str_radix(value, 16).unwrap().to_le_bytes()),
                "serial" => put(&mut controller, 4, 20, value),
                "model" => put(&mut controller, 24, 40, value),
                "sectors" => namespace[..8].copy_from_slice(&value.parse::<u64>().unwrap().to_le_bytes()),
                "eui" => namespace[120..128].copy_from_slice(&bytes_of(value)),
                "nguid" => namespace[104..120].copy_from_slice(&bytes_of(value)),
                "uuid" => answers.descriptors = [vec![3, 16, 0, 0], bytes_of(value), vec![0; 4]].concat(),
                "cache" => controller[525] = 1,
                "controller" => controller = bytes_of(value),
                "namespace" => namespace = bytes_of(value),
                "descriptors" => answers.descriptors = bytes_of(value),
                other => panic!("no such field of an NVMe device: {other}"),
            }
        }
        NvmeAnswers { controller, namespace, ..answers }
    }

    pub(super) fn scsi(text: &str) -> ScsiAnswers {
        let page = |number, content: &[u8]| [&[0, number, 0, content.len() as u8], content].concat();
        let mut answers = ScsiAnswers { standard: vec![0; 96], ..ScsiAnswers::default() };
        let mut ata = vec![0u8; 512];
        let mut has_ata = false;
        for (key, value) in pairs(text) {
            match key {
                "vendor" => put(&mut answers.standard, 8, 8, value),
                "model" => put(&mut answers.standard, 16, 16, value),
                "serial" => answers.serial = page(0x80, value.as_bytes()),
                "naa" => answers.designators = page(0x83, &[&[1, 3, 0, 8], &bytes_of(value)[..]].concat()),
                "cache" => answers.caching = Some(vec![0, 18, 0, 0, 0, 0, 0, 0, 8, 0x12, 4]),
                "ata" => has_ata = true,
                "ata-serial" => put(&mut ata, 20, 20, value),
                "ata-model" => put(&mut ata, 54, 40, value),
                "standard" => answers.standard = bytes_of(value),
                "page80" => answers.serial = bytes_of(value),
                "page83" => answers.designators = bytes_of(value),
                other => panic!("no such field of a SCSI device: {other}"),
            }
        }
        for (at, len, field) in [(20, 20, "serial"), (54, 40, "model")] {
            if let Some((_, value)) = pairs(text).into_iter().find(|(key, _)| *key == field && ata[at] == 0) {
                put(&mut ata, at, len, value);
            }
        }
        // ATA strings have the bytes of each word the other way round.
        let words = ata.chunks(2).flat_map(|word| [word[1], word[0]]).collect();
        answers.ata = has_ata.then_some(words);
        if has_ata && answers.caching.is_some() {
            answers.ata.as_mut().unwrap()[170] = 0x20;
        }
        answers
    }

    pub(super) fn table(text: &str) -> DmTable {
        let mut table = DmTable { active: true, ..DmTable::default() };
        for (key, value) in pairs(text) {
            match key {
                "targets" => table.targets = value.split_whitespace().map(str::to_owned).collect(),
                "devices" => table.devices = value.split_whitespace().map(|d| DevNo::parse(d).unwrap()).collect(),
                "suspended" => table.suspended = true,
                "unused" => table.active = false,
                "second" => table.inactive = true,
                other => panic!("no such field of a table: {other}"),
            }
        }
        table
    }
}

impl Fixture {
    fn parse(text: &str) -> Self {
        let mut fixture = Self { registry: "sovereign".into(), ..Self::default() };
        let mut base = PathBuf::from("/");
        fixture.files.insert("/proc/devices".into(), DEVICES.into());
        fixture.host("physical");
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if fixture.answer(line) {
                continue;
            }
            if let Some((path, text)) = line.split_once(" = ") {
                let bytes = match text.strip_prefix('@') {
                    // VPD page 0x80 (SPC-4, 7.8.18): 4 bytes of header, then the serial number.
                    Some(serial) => [&[0, 0x80, 0, serial.len() as u8], serial.as_bytes()].concat(),
                    None if text.starts_with("hex ") => bytes_of(&text[4..]),
                    None => format!("{text}\n").into_bytes(),
                };
                fixture.files.insert(base.join(path), bytes);
                continue;
            }
            if let Some((path, text)) = line.split_once(" ~ ") {
                fixture.later.insert(base.join(path), format!("{text}\n").into_bytes());
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
                ["driver", major, name] => {
                    let others = DEVICES.split_once("Block devices:").unwrap().1;
                    let all = format!("Block devices:\n{major} {name}{others}");
                    fixture.files.insert("/proc/devices".into(), all.into_bytes());
                }
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

    /// Lines whose text is free.
    fn answer(&mut self, line: &str) -> bool {
        if let Some(text) = line.strip_prefix("says ") {
            self.says.push(text.to_owned());
            return true;
        }
        let Some((head, text)) = line.split_once(": ") else { return false };
        match head.split_once(' ') {
            Some(("nvme", dev)) => drop(self.nvme.insert(dev.into(), answers::nvme(text))),
            Some(("scsi", dev)) => drop(self.scsi.insert(dev.into(), answers::scsi(text))),
            Some(("dm", dev)) => drop(self.tables.insert(dev.into(), answers::table(text))),
            _ => return false,
        }
        true
    }

    fn asked(&self) -> Asked<'_> {
        Asked { fixture: self, read: Mutex::default() }
    }

    fn host(&mut self, kind: &str) {
        let (dmi, flags) = match kind {
            "virtual" => (None, "fpu sse2 hypervisor"),
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

fn not_there<T>(found: Option<T>) -> io::Result<T> {
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENXIO))
}

impl System for Asked<'_> {
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let Fixture { files, links, .. } = self.fixture;
        let mut path = path.to_path_buf();
        // As many links as the kernel follows.
        for _ in 0..40 {
            let link = path.ancestors().find_map(|a| Some((a.to_path_buf(), links.get(a)?)));
            let Some((from, target)) = link else { break };
            let rest = path.strip_prefix(&from).unwrap().to_path_buf();
            path = if rest.as_os_str().is_empty() { target.clone() } else { target.join(rest) };
        }
        let exists = files.keys().chain(links.keys()).chain(links.values()).any(|p| p.starts_with(&path));
        if exists { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        let Ok(path) = self.resolve(path) else { return Ok(None) };
        let again = !self.read.lock().unwrap().insert(path.clone());
        let later = self.fixture.later.get(&path).filter(|_| again);
        match later.or(self.fixture.files.get(&path)) {
            Some(bytes) if bytes == b"unreadable\n" => Err(io::Error::from_raw_os_error(libc::EACCES)),
            Some(bytes) if bytes == b"none told\n" => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            Some(bytes) if bytes.len() > max => Err(io::Error::other("too long")),
            found => Ok(found.cloned()),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let Ok(path) = self.resolve(path) else { return Ok(Vec::new()) };
        let Fixture { files, links, .. } = self.fixture;
        let below = files.keys().chain(links.keys()).filter_map(|p| p.strip_prefix(&path).ok());
        let names: BTreeSet<String> =
            below.filter_map(|p| Some(p.components().next()?.as_os_str().to_string_lossy().into_owned())).collect();
        Ok(names.into_iter().collect())
    }

    fn loop_status(&self, target: &Target<'_>) -> io::Result<LoopStatus> {
        not_there(self.fixture.loops.get(target.name).copied())
    }

    fn dm_table(&self, dev: DevNo) -> io::Result<DmTable> {
        not_there(self.fixture.tables.get(&dev.to_string()).cloned())
    }

    fn nvme_identify(&self, target: &Target<'_>) -> io::Result<NvmeAnswers> {
        not_there(self.fixture.nvme.get(&target.dev.to_string()).cloned())
    }

    fn scsi_inquiry(&self, target: &Target<'_>, ata: bool) -> io::Result<ScsiAnswers> {
        let answers = not_there(self.fixture.scsi.get(&target.dev.to_string()).cloned())?;
        if ata && answers.ata.is_none() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(answers) }
    }
}

fn registry(kind: &str) -> VerifiedRegistry {
    let text = if kind == "laboratory" { LABORATORY } else { SOVEREIGN };
    laboratory::sign(&Registry::parse(text.as_bytes()).unwrap()).unwrap().verify().unwrap()
}

fn verdict_of(fixture: &Fixture, registry: &VerifiedRegistry) -> scelle::policy::Verdict {
    let asked = fixture.asked();
    let root = chain::read(&asked, DevNo::parse(&fixture.device).unwrap());
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
        let _ = chain::read(&asked, DevNo::parse(&fixture.device).unwrap());
    }
}
