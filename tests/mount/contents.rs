//! Devices of the kernel on which something already lies: each is refused by name, not a byte of it is changed, and the
//! commands that the refusal gives take it away.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use scelle::device::IdentifiedDevice;
use scelle::device::raw::{Access, RawDevice};
use scelle::volume::{Doomed, Error, create};

use crate::lab::{Disk, ok, run};
use crate::support::court::{create_options, secret};
use crate::support::documents::Documents;

/// What mkfs programs leave: see the head of the file.
const IMAGES: &str = include_str!("../../src/volume/content/images.table");

struct Image {
    bytes: u64,
    block: u32,
    text: &'static str,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn all() -> Vec<Self> {
        let mut images: Vec<Self> = Vec::new();
        for line in IMAGES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(head) = line.strip_prefix("= ") {
                let [mib, block, text] = head.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
                let bytes = mib.parse::<u64>().unwrap() << 20;
                images.push(Self { bytes, block: block.parse().unwrap(), text, pieces: Vec::new() });
            } else {
                let (offset, hex) = line.split_once(' ').unwrap();
                let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
                let bytes = (0..hex.len()).step_by(2).map(byte).collect();
                images.last_mut().unwrap().pieces.push((u64::from_str_radix(offset, 16).unwrap(), bytes));
            }
        }
        images
    }

    fn of(text: &str) -> Self {
        Self::all().into_iter().find(|image| image.text.contains(text)).unwrap()
    }

    /// A loop device with this image and such blocks.
    fn attach(&self, path: &Path, block: u32) -> Disk {
        let file = File::create(path).unwrap();
        file.set_len(self.bytes).unwrap();
        for (offset, piece) in &self.pieces {
            file.write_all_at(piece, *offset).unwrap();
        }
        Disk::with_blocks(path.to_owned(), block)
    }
}

/// Makes a volume on the device, in this process.
fn attempt(device: &Path) -> Result<(), Error> {
    let device: Arc<dyn IdentifiedDevice> = Arc::new(RawDevice::open(device, Access::Exclusive).unwrap());
    let documents = Documents::of(std::slice::from_ref(&device));
    let approved = documents.approve(device);
    create(vec![approved], &documents.registry, &secret(), &create_options()).map(|_| ())
}

/// Asserts that the device is refused, and unchanged; returns what was found and the commands that erase it.
#[track_caller]
fn refused(disk: &Disk) -> (String, String) {
    let before = disk.bytes();
    let Err(Error::NotEmpty { content, erase, .. }) = attempt(&disk.device) else {
        panic!("{} was not refused", disk.image.display());
    };
    assert!(disk.bytes() == before, "{content}: it was written to");
    (content, erase)
}

#[test]
fn a_device_is_refused_by_name_until_it_is_erased_as_told() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for block in [512, 4096] {
        for image in Image::all() {
            let disk = image.attach(&dir.path().join("image"), block);
            let (content, mut erase) = refused(&disk);
            // With other blocks than those it was made on, a partition table is found at another place.
            assert!(content.starts_with(image.text) || image.block != block, "{content:?} instead of {:?}", image.text);
            // One of each way: a volume takes its time to be made. The blocks make no difference.
            let ways = ["exfat", "LUKS", "DRBD", "gpt", "ZFS", "bcachefs"];
            if block != 512 || !ways.iter().any(|way| image.text.contains(way)) {
                continue;
            }
            // One of several superblocks hides others from wipefs.
            for _ in 0..4 {
                ok(&run(Command::new("sh").args(["-ec", &erase])));
                match attempt(&disk.device) {
                    Ok(()) => break,
                    Err(Error::NotEmpty { erase: more, .. }) => erase = more,
                    Err(error) => panic!("{content}: {error}"),
                }
            }
            let (content, _) = refused(&disk);
            assert!(content.starts_with("scelle volume"), "{content}, after {erase}");
        }
    }
}

#[test]
fn a_volume_is_erased_as_told() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    // Its size is no multiple of a block of ours.
    let image = Image { bytes: (20 << 20) + 512, block: 512, text: "", pieces: Vec::new() };
    let disk = image.attach(&dir.path().join("image"), 512);
    attempt(&disk.device).unwrap();
    let (content, erase) = refused(&disk);
    assert!(content.starts_with("scelle volume"), "{content}");
    assert_eq!(erase, format!("scelle destroy {}", disk.device.display()));
    let device: Arc<dyn IdentifiedDevice> = Arc::new(RawDevice::open(&disk.device, Access::Exclusive).unwrap());
    let documents = Documents::of(std::slice::from_ref(&device));
    Doomed::read(documents.approve(device)).unwrap().destroy(&documents.registry).unwrap();
    attempt(&disk.device).unwrap();
}

#[test]
fn p1_what_is_looked_at_is_what_is_open() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let full = Image::of("xfs").attach(&dir.path().join("full"), 512);
    let empty = Disk::new(dir.path().join("empty"), 64 << 20);
    let node = |name: &str, of: &Disk| {
        let path = dir.path().join(name);
        ok(&run(Command::new("cp").arg("-R").arg(&of.device).arg(&path)));
        path
    };
    let (ours, other) = (node("ours", &full), node("other", &empty));
    let device = RawDevice::open(&ours, Access::Exclusive).unwrap();
    std::fs::rename(other, &ours).unwrap();
    let kinds: Vec<String> = device.signatures().unwrap().into_iter().map(|found| found.kind).collect();
    assert_eq!(kinds, ["xfs"]);
    assert!(RawDevice::open(&ours, Access::Exclusive).unwrap().signatures().unwrap().is_empty());
}

/// What another program wrote around the cache of the node that is read is seen: here by way of the image.
#[test]
fn what_the_cache_still_shows_is_not_believed() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = Disk::new(dir.path().join("image"), 64 << 20);
    let reader = File::open(&disk.device).unwrap();
    let mut first = [1; 8192];
    reader.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 8192]);
    let file = File::options().write(true).open(&disk.image).unwrap();
    for (offset, piece) in Image::of("xfs").pieces {
        file.write_all_at(&piece, offset).unwrap();
    }
    file.sync_all().unwrap();
    let found = RawDevice::open(&disk.device, Access::Exclusive).unwrap().signatures().unwrap();
    assert_eq!(found.first().map(|found| found.kind.as_str()), Some("xfs"));
}
