//! How old a file's content is, by the mounts that wrote it.

use super::{Fs, Result, data::BLOCK};
use crate::{
    meta::{FILE_BLOCKS_MAX, Kind},
    units::Ino,
};

/// Most extents that are looked at for one answer. Anybody who may read a file can ask, and a file can have millions.
const EXTENTS_MAX: u64 = 8192;

impl Fs {
    /// For each of `epochs`, how many bytes of the file's space were surely written by mounts before that one. Reserved
    /// space that was never written counts, for it holds nothing. Extents of a file beyond the first 8192 are not
    /// looked at.
    ///
    /// Returns `None` for an inode that has no blocks of its own: a folder, a link, a device.
    ///
    /// # Errors
    /// [`Error::Stale`](super::Error::Stale), or of the metadata.
    pub fn written_before(&self, ino: Ino, epochs: &[u32]) -> Result<Option<Vec<u64>>> {
        if self.getattr(ino)?.kind != Kind::File {
            return Ok(None);
        }
        let mut bytes = vec![0; epochs.len()];
        let mut seen = 0;
        self.each_span(ino, 0, FILE_BLOCKS_MAX, |span| {
            for (bytes, epoch) in bytes.iter_mut().zip(epochs) {
                if span.epoch.is_none_or(|written| written < *epoch) {
                    *bytes += (span.to - span.from) * BLOCK;
                }
            }
            seen += 1;
            seen < EXTENTS_MAX
        })?;
        Ok(Some(bytes))
    }
}
