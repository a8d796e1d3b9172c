//! A kernel made of lines: what it shows of devices and of its host, and what they answer. The tests of verdicts
//! (`tests/policy`) and the fuzz target `system` read the same format.
//!
//! | line | meaning |
//! |---|---|
//! | `# …` | a comment; the first one says the situation |
//! | `device MAJ:MIN` | the device to examine |
//! | `registry sovereign` or `registry laboratory` | which of the registries of `tests/policy` |
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
//! | `nvme MAJ:MIN: KEY VALUE; …` or `scsi MAJ:MIN: KEY VALUE; …` | what the device itself, or an NVMe controller of that number, answers: see [`answers`] |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use scelle::os::DevNo;
use scelle::os::ioctl::{DmTable, LoopStatus};
use scelle::os::ioctl::{NvmeAnswers, ScsiAnswers};
use scelle::probe::sys::{System, Target};

/// The drivers of block devices' major numbers.
const DEVICES: &str = "Character devices:\n  1 mem\n  7 vcs\n\nBlock devices:\n  1 ramdisk\n  7 loop\n  8 sd\n  9 md\n \
     11 sr\n 43 nbd\n 65 sd\n147 drbd\n152 aoe\n179 mmc\n202 xvd\n230 zvol\n250 rbd\n251 rnbd_client\n252 zram\n\
    253 device-mapper\n254 virtblk\n255 bcache\n256 nullb\n259 blkext\n";

/// Most answers that are kept: each takes kilobytes of memory, and may take ten bytes of text.
const ANSWERS_MAX: usize = 256;

/// A kernel made of lines.
#[derive(Clone)]
pub struct Fixture {
    pub device: DevNo,
    pub registry: String,
    pub expect: Vec<String>,
    pub says: Vec<String>,
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    later: BTreeMap<PathBuf, Vec<u8>>,
    links: BTreeMap<PathBuf, PathBuf>,
    loops: BTreeMap<String, LoopStatus>,
    tables: BTreeMap<String, DmTable>,
    pub nvme: BTreeMap<String, NvmeAnswers>,
    pub scsi: BTreeMap<String, ScsiAnswers>,
    /// Lines that make no sense, and were left out.
    pub nonsense: Vec<String>,
}

/// A fixture as the kernel that is asked: it remembers what was read once.
pub struct Asked<'a> {
    fixture: &'a Fixture,
    read: Mutex<BTreeSet<PathBuf>>,
}

/// `KEY VALUE; KEY VALUE; …` as pairs.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> + Clone {
    text.split(';').map(str::trim).map(|pair| pair.split_once(' ').unwrap_or((pair, "")))
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect()
}

/// Puts bytes into a field of `len` bytes at `at`, `filler` after them, as much of it as is there.
fn put(buffer: &mut [u8], at: usize, len: usize, bytes: &[u8], filler: u8) {
    let padded = bytes.iter().copied().chain(std::iter::repeat(filler)).take(len);
    buffer.iter_mut().skip(at).zip(padded).for_each(|(to, byte)| *to = byte);
}

/// Answers of devices, made of the fields that a line names; `None` if it names one that there is not.
///
/// NVMe: `vid` (hex), `serial`, `model`, `sectors` (of 512 bytes), `eui`, `nguid`, `uuid` (hex), `cache`; or the raw
/// `controller`, `namespace`, `descriptors` in hex. SCSI: `vendor`, `model`, `serial`, `naa`, `cache`; `ata` and the
/// disk's own `ata-model`, `ata-serial`; or the raw `standard`, `page80`, `page83`, `caching`, `identify` in hex.
mod answers {
    use super::*;

    pub(super) fn nvme(text: &str) -> Option<NvmeAnswers> {
        let (mut controller, mut namespace) = (vec![0; 4096], vec![0; 4096]);
        let mut answers = NvmeAnswers { nsid: 1, ..NvmeAnswers::default() };
        namespace[130] = 9;
        for (key, value) in pairs(text) {
            let raw = bytes_of(value);
            match key {
                "vid" => put(&mut controller, 0, 2, &u16::from_str_radix(value, 16).ok()?.to_le_bytes(), 0),
                "serial" => put(&mut controller, 4, 20, value.as_bytes(), b' '),
                "model" => put(&mut controller, 24, 40, value.as_bytes(), b' '),
                "sectors" => put(&mut namespace, 0, 8, &value.parse::<u64>().ok()?.to_le_bytes(), 0),
                "eui" => put(&mut namespace, 120, 8, &raw, 0),
                "nguid" => put(&mut namespace, 104, 16, &raw, 0),
                "uuid" => answers.descriptors = [vec![3, 16, 0, 0], raw, vec![0; 4]].concat(),
                "cache" => put(&mut controller, 525, 1, &[1], 0),
                "controller" => controller = raw,
                "namespace" => namespace = raw,
                "descriptors" => answers.descriptors = raw,
                _ => return None,
            }
        }
        Some(NvmeAnswers { controller, namespace, ..answers })
    }

    pub(super) fn scsi(text: &str) -> Option<ScsiAnswers> {
        let page = |number, content: &[u8]| [&[0, number, 0, content.len() as u8], content].concat();
        let mut answers = ScsiAnswers { standard: vec![0; 96], ..ScsiAnswers::default() };
        let mut ata = vec![0u8; 512];
        let mut has_ata = false;
        for (key, value) in pairs(text) {
            let raw = bytes_of(value);
            match key {
                "vendor" => put(&mut answers.standard, 8, 8, value.as_bytes(), b' '),
                "model" => put(&mut answers.standard, 16, 16, value.as_bytes(), b' '),
                "serial" => answers.serial = page(0x80, value.as_bytes()),
                "naa" => answers.designators = page(0x83, &[&[1, 3, 0, 8], &raw[..]].concat()),
                "cache" => answers.caching = Some(vec![0, 18, 0, 0, 0, 0, 0, 0, 8, 0x12, 4]),
                "ata" => has_ata = true,
                "ata-serial" => put(&mut ata, 20, 20, value.as_bytes(), b' '),
                "ata-model" => put(&mut ata, 54, 40, value.as_bytes(), b' '),
                "standard" => answers.standard = raw,
                "page80" => answers.serial = raw,
                "page83" => answers.designators = raw,
                "caching" => answers.caching = Some(raw),
                "identify" => answers.ata = Some(raw),
                _ => return None,
            }
        }
        for (at, len, field) in [(20, 20, "serial"), (54, 40, "model")] {
            if let Some((_, value)) = pairs(text).find(|(key, _)| *key == field && ata[at] == 0) {
                put(&mut ata, at, len, value.as_bytes(), b' ');
            }
        }
        if has_ata {
            // ATA strings have the bytes of each word the other way round; word 85 says that the cache is on.
            let mut words: Vec<u8> = ata.chunks(2).flat_map(|word| [word[1], word[0]]).collect();
            words[170] = if answers.caching.is_some() { 0x20 } else { words[170] };
            answers.ata = Some(words);
        }
        Some(answers)
    }

    pub(super) fn table(text: &str) -> Option<DmTable> {
        let mut table = DmTable { active: true, ..DmTable::default() };
        for (key, value) in pairs(text) {
            match key {
                "targets" => table.targets = value.split_whitespace().map(str::to_owned).collect(),
                "devices" => table.devices = value.split_whitespace().map(DevNo::parse).collect::<Option<_>>()?,
                "suspended" => table.suspended = true,
                "unused" => table.active = false,
                "second" => table.inactive = true,
                _ => return None,
            }
        }
        Some(table)
    }
}

impl Fixture {
    /// Takes every line that makes sense.
    pub fn parse(text: &str) -> Self {
        let mut fixture = Self {
            device: DevNo { major: 259, minor: 0 },
            registry: "sovereign".into(),
            expect: Vec::new(),
            says: Vec::new(),
            files: BTreeMap::from([("/proc/devices".into(), DEVICES.into())]),
            later: BTreeMap::new(),
            links: BTreeMap::new(),
            loops: BTreeMap::new(),
            tables: BTreeMap::new(),
            nvme: BTreeMap::new(),
            scsi: BTreeMap::new(),
            nonsense: Vec::new(),
        };
        fixture.host("physical");
        let mut base = PathBuf::from("/");
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let understood = fixture.answer(line).or_else(|| fixture.path(&base, line));
            if understood.or_else(|| fixture.words(&mut base, line)).is_none() {
                fixture.nonsense.push(line.to_owned());
            }
        }
        fixture
    }

    /// A line that says what a device answers, or whose text is free.
    fn answer(&mut self, line: &str) -> Option<()> {
        if let Some(text) = line.strip_prefix("says ") {
            self.says.push(text.to_owned());
            return Some(());
        }
        let (head, text) = line.split_once(": ")?;
        let (kind, dev) = head.split_once(' ')?;
        if self.tables.len() + self.nvme.len() + self.scsi.len() >= ANSWERS_MAX {
            return None;
        }
        match kind {
            "nvme" => drop(self.nvme.insert(dev.into(), answers::nvme(text)?)),
            "scsi" => drop(self.scsi.insert(dev.into(), answers::scsi(text)?)),
            "dm" => drop(self.tables.insert(dev.into(), answers::table(text)?)),
            _ => return None,
        }
        Some(())
    }

    /// A line about a path.
    fn path(&mut self, base: &Path, line: &str) -> Option<()> {
        if let Some((path, text)) = line.split_once(" = ") {
            let bytes = match text.strip_prefix('@') {
                // VPD page 0x80 (SPC-4, 7.8.18): 4 bytes of header, then the serial number.
                Some(serial) => [&[0, 0x80, 0, serial.len() as u8], serial.as_bytes()].concat(),
                None if text.starts_with("hex ") => bytes_of(&text[4..]),
                None => format!("{text}\n").into_bytes(),
            };
            self.files.insert(base.join(path), bytes);
        } else if let Some((path, text)) = line.split_once(" ~ ") {
            self.later.insert(base.join(path), format!("{text}\n").into_bytes());
        } else {
            let (path, target) = line.split_once(" -> ")?;
            self.links.insert(base.join(path), PathBuf::from(target));
        }
        Some(())
    }

    /// A line of words; `at` and `block` change where paths begin.
    fn words(&mut self, base: &mut PathBuf, line: &str) -> Option<()> {
        match line.split_whitespace().collect::<Vec<&str>>()[..] {
            ["device", number] => self.device = DevNo::parse(number)?,
            ["registry", kind] => self.registry = kind.into(),
            ["host", kind] => self.host(kind)?,
            ["expect", ref rest @ ..] => self.expect = rest.iter().map(|w| (*w).to_owned()).collect(),
            ["at", dir] => *base = dir.into(),
            ["driver", major, name] => {
                let others = DEVICES.split_once("Block devices:")?.1;
                let all = format!("Block devices:\n{major} {name}{others}");
                self.files.insert("/proc/devices".into(), all.into_bytes());
            }
            ["block", number, dir] => {
                *base = dir.into();
                self.links.insert(format!("/sys/dev/block/{number}").into(), dir.into());
                self.files.insert(base.join("dev"), format!("{number}\n").into_bytes());
            }
            ["loop", name, "file", fs, inode, offset] => {
                let (inode, offset) = (inode.parse().ok()?, offset.parse().ok()?);
                let status = LoopStatus { fs_device: DevNo::parse(fs)?, inode, block_device: None, offset };
                self.loops.insert(name.into(), status);
            }
            ["loop", name, "device", below] => {
                let (fs_device, block_device) = (DevNo { major: 0, minor: 6 }, Some(DevNo::parse(below)?));
                self.loops.insert(name.into(), LoopStatus { fs_device, inode: 1, block_device, offset: 0 });
            }
            _ => return None,
        }
        Some(())
    }

    fn host(&mut self, kind: &str) -> Option<()> {
        let (dmi, flags) = match kind {
            "virtual" => (None, "fpu sse2 hypervisor"),
            "physical" => (Some(("Dell Inc.", "PowerEdge R760")), "fpu sse2"),
            "silent" => (None, "fpu sse2"),
            "qemu" => (Some(("QEMU", "Standard PC (Q35 + ICH9, 2009)")), "fpu sse2 hypervisor"),
            _ => return None,
        };
        self.files.retain(|path, _| !path.starts_with("/sys/class/dmi"));
        if let Some((vendor, product)) = dmi {
            self.files.insert("/sys/class/dmi/id/sys_vendor".into(), vendor.into());
            self.files.insert("/sys/class/dmi/id/product_name".into(), product.into());
        }
        self.files.insert("/proc/cpuinfo".into(), format!("processor : 0\nflags\t\t: {flags}\n").into_bytes());
        Some(())
    }

    /// The kernel, with nothing read yet.
    pub fn asked(&self) -> Asked<'_> {
        Asked { fixture: self, read: Mutex::default() }
    }
}

fn not_there<T>(found: Option<T>) -> io::Result<T> {
    found.ok_or_else(|| io::Error::from_raw_os_error(6)) // ENXIO
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
        // A path sorts directly before what is below it.
        let is_above = |first: Option<&PathBuf>| first.is_some_and(|first| first.starts_with(&path));
        let exists = is_above(files.range(path.clone()..).next().map(|(key, _)| key))
            || is_above(links.range(path.clone()..).next().map(|(key, _)| key))
            || links.values().any(|target| target.starts_with(&path));
        if exists { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        let Ok(path) = self.resolve(path) else { return Ok(None) };
        let again = !self.read.lock().unwrap().insert(path.clone());
        let later = self.fixture.later.get(&path).filter(|_| again);
        match later.or(self.fixture.files.get(&path)) {
            Some(bytes) if bytes == b"unreadable\n" => Err(io::Error::from_raw_os_error(13)), // EACCES
            Some(bytes) if bytes == b"none told\n" => Err(io::Error::from_raw_os_error(22)),  // EINVAL
            Some(bytes) if bytes.len() > max => Err(io::Error::other("too long")),
            found => Ok(found.cloned()),
        }
    }

    fn list(&self, path: &Path, max: usize) -> io::Result<Vec<String>> {
        let Ok(path) = self.resolve(path) else { return Ok(Vec::new()) };
        let Fixture { files, links, .. } = self.fixture;
        let below = files.keys().chain(links.keys()).filter_map(|p| p.strip_prefix(&path).ok());
        let names: BTreeSet<String> =
            below.filter_map(|p| Some(p.components().next()?.as_os_str().to_string_lossy().into_owned())).collect();
        Ok(names.into_iter().take(max + 1).collect())
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

    fn nvme_identify_by(&self, controller: &Target<'_>, nsid: u32) -> io::Result<NvmeAnswers> {
        Ok(NvmeAnswers { nsid, ..self.nvme_identify(controller)? })
    }

    fn scsi_inquiry(&self, target: &Target<'_>, ata: bool) -> io::Result<ScsiAnswers> {
        let answers = not_there(self.fixture.scsi.get(&target.dev.to_string()).cloned())?;
        if ata && answers.ata.is_none() { Err(io::Error::from_raw_os_error(5)) } else { Ok(answers) } // EIO
    }
}
