//! Why the driver ends without having asked everything.

use std::fmt;
use std::io;

/// What the driver's functions return.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why the driver cannot go on.
#[derive(Debug)]
pub enum Failure {
    /// The arguments are none of ours.
    Usage,
    /// Somebody asked us to stop, with a signal.
    Interrupted,
    /// Something did not work: what, and what to do about it.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => {
                out.write_str("usage: scripts/hardware-test [--list] [--keep] [--record DIR] [--case NAME]...")
            }
            Self::Interrupted => out.write_str("stopped by a signal"),
            Self::Failed(text) => out.write_str(text),
        }
    }
}

/// Makes a failure of a text.
pub fn failed(text: impl Into<String>) -> Failure {
    Failure::Failed(text.into())
}

/// Says of an error what was being done.
pub trait During<T> {
    /// Puts before an error what we could not do: "cannot " and these words.
    fn during(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| failed(format!("cannot {}: {error}", doing())))
    }
}
