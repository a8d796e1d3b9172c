//! What is kept of a scrub: bytes here. What they say is `volume::scrub`'s.

use super::{Error, Result, Tx, View, Weight};

pub(super) const KEPT: &str = "SELECT kept FROM scrub WHERE id = ?";

/// Longest that is kept, in bytes.
pub const KEPT_SCRUB_BYTES_MAX: usize = 512 << 10;

/// Of which scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptScrub {
    /// The one that is to go on.
    Unfinished = 1,
    /// The last that has ended.
    Last = 2,
}

impl View<'_> {
    /// What is kept of a scrub.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or of SQLite.
    pub fn kept_scrub(&self, of: KeptScrub) -> Result<Option<Vec<u8>>> {
        self.one(KEPT, (of as u8,), |row| Ok(row.get_ref(0)?.as_blob()?.to_vec()))
    }
}

impl Tx<'_> {
    /// Keeps this of a scrub in place of what was kept, or nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is too long, or of SQLite.
    pub fn keep_scrub(&mut self, of: KeptScrub, kept: Option<&[u8]>) -> Result<()> {
        match kept {
            Some(kept) if kept.len() > KEPT_SCRUB_BYTES_MAX => Err(Error::Corrupt("the report of a scrub is too long")),
            Some(kept) => {
                let weight = Weight { bytes: kept.len() as u64, ..Weight::rows(2) };
                self.execute(weight, "INSERT OR REPLACE INTO scrub(id, kept) VALUES(?, ?)", (of as u8, kept))?;
                Ok(())
            }
            None => {
                self.execute(Weight::rows(2), "DELETE FROM scrub WHERE id = ?", (of as u8,))?;
                Ok(())
            }
        }
    }
}
