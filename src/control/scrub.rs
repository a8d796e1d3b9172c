//! A scrub as plain data: what is asked for, and what the status shows. Keys are added, never changed.

use serde::{Deserialize, Serialize};

/// The scrub that is under way or waits, else the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scrub {
    /// `never`, `running`, `paused`, `interrupted`, `finished`, `stopped` or `failed`.
    pub state: String,
    /// When the last one finished, RFC 3339 in UTC.
    pub last_finished: Option<String>,
    /// Errors it found, counted for each replica by itself.
    pub errors: u64,
    /// How many of them were repaired.
    pub repaired: u64,
    /// How many were not.
    pub unrepaired: u64,
    /// What it looks at: `all`, `known damage`, or a path.
    pub subject: String,
    /// When it began, RFC 3339 in UTC.
    pub began: Option<String>,
    /// When it ended, or was made to wait.
    pub ended: Option<String>,
    /// How often it was paused or interrupted.
    pub interruptions: u64,
    /// Bytes that were looked at, on every replica.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// How much was read of each replica.
    pub bytes: Vec<ScrubBytes>,
    /// The first hundred things that were not as they must be.
    pub findings: Vec<ScrubFinding>,
    /// What could not be looked at, and why.
    pub not_looked_at: Vec<String>,
    /// Why it could not go on.
    pub why: Option<String>,
}

impl Default for Scrub {
    fn default() -> Self {
        Self {
            state: "never".into(),
            last_finished: None,
            errors: 0,
            repaired: 0,
            unrepaired: 0,
            subject: String::new(),
            began: None,
            ended: None,
            interruptions: 0,
            done_bytes: 0,
            total_bytes: 0,
            bytes: Vec::new(),
            findings: Vec::new(),
            not_looked_at: Vec::new(),
            why: None,
        }
    }
}

/// How much was read of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubBytes {
    /// Its identifier in the registry.
    pub replica: String,
    /// Bytes.
    pub bytes: u64,
    /// Why not everything on it was looked at, if it was not.
    #[serde(default)]
    pub left_out: Option<String>,
}

/// Something that a replica did not hold as it must.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFinding {
    /// The path of a file, or what else it is part of.
    pub what: String,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// The replica's identifier in the registry.
    pub replica: String,
    /// Its device.
    pub device: String,
    /// What is wrong.
    pub how: String,
    /// Whether it is as it must be again.
    pub repaired: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubAction {
    /// Begin, or go on.
    #[default]
    Start,
    /// Wait until somebody has it go on.
    Pause,
    /// End, and forget where it was.
    Stop,
}

/// What is asked of a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubWanted {
    /// What is to be done.
    pub action: ScrubAction,
    /// Of a new one: the path of what it looks at, from the root of the volume.
    pub path: Option<String>,
    /// Of a new one: it looks at nothing but what is known to be lost.
    pub known: bool,
    /// The most that is read of each replica, in bytes a second.
    pub rate: Option<u64>,
}

/// What became of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubAnswer {
    /// The task that does it.
    pub task: Option<u64>,
    /// Whether it goes on where it was.
    pub goes_on: bool,
}
