//! The archive that the kernel unpacks as its first file system: cpio's format "newc", not compressed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::failure::{During, Result};

/// Packs the files, folders and symbolic links below `folder` into the archive `out`.
pub fn pack(folder: &Path, out: &Path) -> Result<()> {
    let file = File::create(out).during(|| format!("write {}", out.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), number: 0 };
    archive.folder(folder, folder).during(|| format!("pack {}", folder.display()))?;
    archive
        .entry(b"TRAILER!!!", 0, &[])
        .and_then(|()| archive.out.flush())
        .during(|| format!("write {}", out.display()))
}

/// An archive that is being written.
struct Archive<W: Write> {
    out: W,
    /// The number of the last entry: the kernel takes entries with the same one for the same file.
    number: u32,
}

impl<W: Write> Archive<W> {
    /// Writes what lies in `dir`, named as below `top`; a folder comes before what it holds.
    fn folder(&mut self, top: &Path, dir: &Path) -> io::Result<()> {
        let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let found = fs::symlink_metadata(&path)?;
            let name = path.strip_prefix(top).map_err(io::Error::other)?.as_os_str().as_bytes();
            if found.is_dir() {
                self.entry(name, found.mode(), &[])?;
                self.folder(top, &path)?;
            } else if found.is_symlink() {
                self.entry(name, found.mode(), fs::read_link(&path)?.as_os_str().as_bytes())?;
            } else if found.is_file() {
                self.entry(name, found.mode(), &fs::read(&path)?)?;
            } else {
                return Err(io::Error::other(format!("{}: neither file, folder nor link", path.display())));
            }
        }
        Ok(())
    }

    /// Writes an entry: header, name, content, the latter two up to a multiple of four bytes.
    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
        let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        self.number += 1;
        // Owner, group and time are 0; so are the device numbers, and the checksum that this format does not have.
        let (size, name_size) = (length(content.len())?, length(name.len() + 1)?);
        let fields = [self.number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.padded(&[b"070701", header.as_bytes(), name, &[0]].concat())?;
        self.padded(content)
    }

    /// Writes bytes, and zeros up to a multiple of four.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
    }
}
