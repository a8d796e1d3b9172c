//! The images of the disks: made anew for each machine, and looked at afterwards.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::failure::{During, Result, failed};
use crate::interrupt;
use crate::tables::{Image, SPARES, Tables};

/// Size of every disk, in bytes.
pub const SIZE: u64 = 32 << 20;

/// A partition table of the oldest kind (PC BIOS), from byte 446 of a disk on: a partition from sector 2048, of 32768
/// sectors, three empty ones, the signature.
fn partition_table() -> [u8; 66] {
    let mut table = [0; 66];
    table[..16].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x80, 0, 0]);
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    table
}

/// The image of a disk.
pub fn path(work: &Path, name: &str) -> PathBuf {
    work.join(format!("{name}.img"))
}

/// Makes all images anew.
pub fn make(work: &Path, tables: &Tables) -> Result<()> {
    let of_table = tables.disks().map(|(device, image)| (device.name.as_str(), image));
    for (name, image) in of_table.chain(SPARES.map(|name| (name, Image::Filled))) {
        interrupt::check()?;
        let path = path(work, name);
        write(&path, image).during(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

/// Writes an image.
fn write(path: &Path, image: Image) -> io::Result<()> {
    let mut file = File::create(path)?;
    if matches!(image, Image::Blank) {
        return file.set_len(SIZE);
    }
    io::copy(&mut File::open("/dev/urandom")?.take(SIZE), &mut file)?;
    if matches!(image, Image::Disk) {
        file.write_all_at(&[0; 446], 0)?;
        file.write_all_at(&partition_table(), 446)?;
    }
    Ok(())
}

/// The SHA-256 of a disk's image, in hexadecimal.
pub fn hash(work: &Path, name: &str) -> Result<String> {
    interrupt::check()?;
    let path = path(work, name);
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut file = File::open(&path).during(|| format!("open {}", path.display()))?;
    let mut size = 0;
    loop {
        let count = file.read(&mut piece).during(|| format!("read {}", path.display()))?;
        if count == 0 {
            break;
        }
        hasher.update(&piece[..count]);
        size += count as u64;
    }
    if size != SIZE {
        return Err(failed(format!("{} has {size} bytes instead of {SIZE}", path.display())));
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
