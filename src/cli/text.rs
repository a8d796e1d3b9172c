//! What several commands print: numbers and progress for people, JSON, and text that may not be read to its end.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::control::{Officers, Site};
use crate::problem::{Code, Problem};
use crate::units::shown;

/// Writes `text` out. A closed pipe is no failure: the reader has read enough.
pub(super) fn print(out: &mut dyn Write, text: &str) -> Result<(), Problem> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Problem::new(Code::Output, error.to_string())),
        _ => Ok(()),
    }
}

/// Text for a terminal, in which names of others may stand. Its own line breaks stay.
pub(super) fn lines(text: &str) -> String {
    text.split('\n').map(shown).collect::<Vec<_>>().join("\n")
}

/// JSON over several lines.
pub(super) fn pretty<T: Serialize>(value: &T) -> Result<String, Problem> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Problem::new(Code::Json, error.to_string()))?;
    Ok(json + "\n")
}

/// A bar of what is done, on a terminal.
pub(super) fn progress() -> ProgressBar {
    let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::default_bar());
    bar
}

/// A number of bytes for people, in binary units.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (count.max(1).ilog2() / 10) as usize;
    if power == 0 {
        return format!("{count} B");
    }
    let unit = 1_u128 << (10 * power);
    let tenths = (u128::from(count) * 10 + unit / 2) / unit;
    format!("{}.{} {}", tenths / 10, tenths % 10, units[power])
}

/// What is known of a replica's place: where it is by the verdict in force, else where it was to be when that was last
/// known.
pub(super) fn place(now: &Site, last_known: Option<&Site>, listed: bool) -> String {
    let unlisted = if listed { "" } else { "no longer listed in the registry" };
    match last_known {
        _ if !now.id.is_empty() => site(now),
        Some(last) if listed => format!("last known: {}", site(last)),
        Some(last) => format!("{unlisted}; last known: {}", site(last)),
        None if listed => "where it is, is not known".to_owned(),
        None => unlisted.to_owned(),
    }
}

fn site(site: &Site) -> String {
    let Site { id, name, country, owner, administrator, jurisdictions } = site;
    let law = jurisdictions.join(", ");
    format!("at {id} ({name}, {country}); owner {owner}, administrator {administrator}, law {law}")
}

/// The kind of a volume, and whose signatures it rests on, in a line.
pub(super) fn trust(sovereign: bool, kind: &str, officers: &Officers) -> String {
    let Officers { anchors, threshold, count } = officers;
    let kind = self::kind(sovereign, kind);
    format!("{kind}, {threshold} of {count} officers must sign, trust anchors {anchors}")
}

/// The kind of a volume, for people. A daemon that was started before its program was updated does not say it.
fn kind(sovereign: bool, kind: &str) -> String {
    match (sovereign, kind) {
        (true, "sovereign") => "sovereign".to_owned(),
        (_, "private" | "laboratory") => format!("NOT SOVEREIGN: {kind} registry"),
        _ => "NOT KNOWN TO BE SOVEREIGN: the daemon is of an earlier version".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_as_of_now_only_when_a_verdict_says_so() {
        let paris = Site { id: "tj-paris".into(), name: "Paris".into(), country: "FR".into(), ..Site::default() };
        let nowhere = Site::default();
        assert!(place(&paris, None, true).starts_with("at tj-paris (Paris, FR)"));
        assert!(place(&nowhere, Some(&paris), true).starts_with("last known: at tj-paris"));
        assert!(place(&nowhere, Some(&paris), false).starts_with("no longer listed in the registry; last known: at"));
        assert_eq!(place(&nowhere, None, false), "no longer listed in the registry");
        assert_eq!(place(&nowhere, None, true), "where it is, is not known");
    }

    #[test]
    fn sizes_are_readable() {
        for (count, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 << 20, "1.5 GiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(bytes(count), expected);
        }
    }
}
