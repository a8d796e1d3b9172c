//! The host's memory of the last generation of a volume: one small file for each volume. It recognises that *all*
//! replicas were set back together, which nothing on the devices can show. What follows from that is decided in
//! `volume::open`.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::units::{Generation, Uuid};

fn file(folder: &Path, volume: Uuid) -> PathBuf {
    folder.join(format!("{volume}.generation"))
}

/// What the host remembers; nothing when it has never mounted the volume.
///
/// # Errors
/// When the file cannot be read or is not a number. Then nothing is known, and the caller has to say so.
pub fn read(folder: &Path, volume: Uuid) -> std::io::Result<Option<Generation>> {
    let text = match std::fs::read_to_string(file(folder, volume)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let number = text.trim().parse().map_err(|_| std::io::Error::from(ErrorKind::InvalidData))?;
    Ok(Some(Generation(number)))
}

/// When the host wrote that down, in seconds since 1970; `None` when it has not, or cannot say.
pub fn written_unix_s(folder: &Path, volume: Uuid) -> Option<u64> {
    let modified = std::fs::metadata(file(folder, volume)).and_then(|meta| meta.modified()).ok()?;
    Some(modified.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
}

/// Remembers a generation: a new file is written beside the old one, synced, and renamed over it.
///
/// # Errors
/// The system's.
pub fn write(folder: &Path, volume: Uuid, generation: Generation) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let target = file(folder, volume);
    let beside = target.with_extension("new");
    let mut out = std::fs::File::create(&beside)?;
    writeln!(out, "{generation}")?;
    out.sync_all()?;
    std::fs::rename(beside, target)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn remembers_the_last_generation() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Uuid([3; 16]);
        assert_eq!(read(folder.path(), volume).unwrap(), None);
        for generation in [5, 12] {
            write(folder.path(), volume, Generation(generation)).unwrap();
            assert_eq!(read(folder.path(), volume).unwrap(), Some(Generation(generation)));
        }
        std::fs::write(file(folder.path(), volume), "x").unwrap();
        assert!(read(folder.path(), volume).is_err());
    }
}
