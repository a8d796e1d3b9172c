//! What a scrub says of itself, and what is kept of one in the volume.

use serde::{Deserialize, Serialize};

use super::super::traverse::Cursor;
use crate::fs::{Fs, KeptScrub};

/// Most findings that are told one by one. All are counted.
pub const FINDINGS_MAX: usize = 100;

/// Longest path that is told, in bytes; of a longer one the end is.
const PATH_MAX: usize = 1024;

/// What a scrub looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everything.
    #[default]
    All,
    /// The file at this path, or the files below it.
    Below(String),
    /// The blocks that are known to be lost.
    Known,
}

impl Scope {
    /// In words.
    pub fn subject(&self) -> String {
        match self {
            Self::All => "all".to_owned(),
            Self::Below(path) => path.clone(),
            Self::Known => "known damage".to_owned(),
        }
    }
}

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubState {
    /// It is under way.
    #[default]
    Running,
    /// Somebody has it wait.
    Paused,
    /// The volume was closed, or its daemon ended, before it was done.
    Interrupted,
    /// It came to its end.
    Finished,
    /// Somebody had it end before.
    Stopped,
    /// It could not go on.
    Failed,
}

impl ScrubState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Interrupted => "interrupted",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether it can go on where it was.
    pub const fn is_to_go_on(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Interrupted)
    }
}

/// Something that one replica does not hold as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFinding {
    /// What it is part of: the path of a file, or what else.
    pub what: String,
    /// The file, until its path is known.
    pub ino: Option<u64>,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// Identifier of the replica in the registry.
    pub replica: String,
    /// Its device.
    pub device: String,
    /// What is wrong.
    pub how: String,
    /// Whether it is as it must be again.
    pub repaired: bool,
}

/// How much of a replica was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubbedReplica {
    /// Its identifier in the registry.
    pub replica: String,
    /// Bytes.
    pub bytes: u64,
    /// Why not everything on it was looked at, if it was not.
    pub left_out: Option<String>,
}

/// What a scrub has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// What it looks at.
    pub scope: Scope,
    /// How far it is.
    pub state: ScrubState,
    /// Why it could not go on.
    pub why: Option<String>,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// When it ended, or was made to wait.
    pub ended: Option<u64>,
    /// How often it was paused or interrupted.
    pub interruptions: u64,
    /// Blocks that were looked at, on every replica in sync.
    pub done_blocks: u64,
    /// Blocks in all, as they were when it began.
    pub total_blocks: u64,
    /// By the replica table.
    pub replicas: Vec<ScrubbedReplica>,
    /// What was not as it must be, counted for each replica by itself.
    pub found: u64,
    /// How much of that is as it must be again.
    pub repaired: u64,
    /// The first findings.
    pub findings: Vec<ScrubFinding>,
    /// What could not be looked at, and why.
    pub not_looked_at: Vec<String>,
}

impl ScrubReport {
    /// How much could not be repaired.
    pub fn unrepaired(&self) -> u64 {
        self.found - self.repaired.min(self.found)
    }

    /// Adds something that was found.
    pub(super) fn add(&mut self, finding: ScrubFinding) {
        self.found += 1;
        self.repaired += u64::from(finding.repaired);
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// The row of a replica.
    pub(super) fn replica(&mut self, index: usize) -> &mut ScrubbedReplica {
        if self.replicas.len() <= index {
            self.replicas.resize_with(index + 1, ScrubbedReplica::default);
        }
        &mut self.replicas[index]
    }
}

/// What is kept of a scrub that is to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    pub report: ScrubReport,
    pub cursor: Cursor,
    /// Labels and roots were looked at.
    pub labels_done: bool,
    /// Bytes a second, if it is held to a rate.
    pub rate: Option<u64>,
}

/// Keeps this of a scrub in the volume, or nothing.
pub(super) fn keep<T: serde::Serialize>(fs: &Fs, of: KeptScrub, what: Option<&T>) -> Result<(), String> {
    let bytes = what.map(serde_json::to_vec).transpose().map_err(|error| error.to_string())?;
    fs.keep_scrub(of, bytes.as_deref()).map_err(|error| error.to_string())
}

/// A finding in a sentence.
pub(super) fn sentence(finding: &ScrubFinding) -> String {
    let ScrubFinding { what, offset, replica, device, how, .. } = finding;
    let at = offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
    format!("{what}{at} on {replica} ({device}): {how}")
}

/// A path for people, not too long.
pub(super) fn told_path(path: &[u8]) -> String {
    let shown = crate::units::shown(&String::from_utf8_lossy(path));
    if shown.len() <= PATH_MAX {
        return shown;
    }
    let cut = (shown.len() - PATH_MAX..shown.len()).find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
    format!("...{}", &shown[cut..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::KEPT_SCRUB_BYTES_MAX;

    #[test]
    fn what_is_kept_of_a_scrub_is_bounded_whatever_it_finds() {
        let mut report = ScrubReport::default();
        let long = "\u{1}".repeat(64);
        for number in 0..200 {
            let what = told_path("é".repeat(4096).as_bytes());
            assert!(what.len() <= PATH_MAX + 3 && what.ends_with('é'));
            let (replica, device, how) = (long.clone(), long.clone(), long.clone());
            let finding = ScrubFinding {
                what,
                ino: Some(u64::MAX),
                offset: Some(u64::MAX),
                replica,
                device,
                how,
                repaired: number % 2 == 0,
            };
            report.add(finding);
        }
        assert_eq!((report.found, report.unrepaired(), report.findings.len()), (200, 100, FINDINGS_MAX));
        for index in 0..16 {
            report.replica(index).left_out = Some(long.clone());
        }
        let kept = serde_json::to_vec(&Unfinished { report, ..Unfinished::default() }).unwrap_or_default();
        assert!(kept.len() < KEPT_SCRUB_BYTES_MAX / 2, "{}", kept.len());
    }

    #[test]
    fn what_is_kept_of_a_scrub_is_read_again() {
        let report =
            ScrubReport { scope: Scope::Below("/deeds".into()), state: ScrubState::Paused, ..ScrubReport::default() };
        let unfinished = Unfinished { report, rate: Some(7), ..Unfinished::default() };
        let kept = serde_json::to_vec(&unfinished).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Unfinished>(&kept).ok(), Some(unfinished));
    }
}
