//! One of two histories of a volume, as messages name it.

use std::fmt;

use crate::label::Root;
use crate::registry::utc_second;
use crate::units::{Generation, shown};

/// One of two histories, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The replica, or this mount.
    pub name: String,
    /// Its last commit.
    pub generation: Generation,
    /// When that was made, by the clock of the host.
    pub committed: String,
    /// The host that mounted it last, if its trail can be read.
    pub host: Option<String>,
}

impl Side {
    /// A history that ends with `root`.
    pub(super) fn new(name: String, root: &Root, host: Option<String>) -> Self {
        let seconds = u64::try_from(root.committed_unix_ns / 1_000_000_000).ok();
        let committed = seconds.and_then(utc_second).map_or_else(|| "an unknown time".to_owned(), |time| time + "Z");
        Self { name, generation: root.generation, committed, host: host.map(|host| shown(&host)) }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is at generation {} of {}", self.name, self.generation, self.committed)?;
        self.host.as_ref().map_or(Ok(()), |host| write!(f, " on host {host}"))
    }
}
