//! Answers `scelle scrub`, and shows a scrub in the status.

use std::sync::Arc;

use crate::control::{Scrub, ScrubAction, ScrubAnswer, ScrubBytes, ScrubFinding, ScrubWanted};
use crate::problem::{Code, Problem};
use crate::registry::utc_second;
use crate::units::BLOCK_SIZE;
use crate::volume::{Scope, ScrubReport, ScrubState, Scrubs};

/// Does what is asked.
///
/// # Errors
/// See [`Scrubs::start`].
pub(super) fn answer(scrubs: &Arc<Scrubs>, wanted: &ScrubWanted) -> Result<ScrubAnswer, Problem> {
    let (task, goes_on) = match wanted.action {
        ScrubAction::Start => {
            let scope = match (&wanted.path, wanted.known) {
                (Some(_), true) => {
                    return Err(Problem::new(Code::Arguments, "a path and known damage cannot be asked for together"));
                }
                (Some(path), false) => Scope::Below(path.clone()),
                (None, true) => Scope::Known,
                (None, false) => Scope::All,
            };
            let (task, goes_on) = scrubs.start(&scope, wanted.rate)?;
            (Some(task), goes_on)
        }
        ScrubAction::Pause => (None, scrubs.pause().map(|()| false)?),
        ScrubAction::Stop => (None, scrubs.stop().map(|()| false)?),
    };
    Ok(ScrubAnswer { task, goes_on })
}

/// The scrub that is under way or waits, else the last one.
pub(super) fn shown(scrubs: &Scrubs) -> Scrub {
    let finished = scrubs.last().filter(|last| last.state == ScrubState::Finished).and_then(|last| last.ended);
    let Some(report) = scrubs.report() else { return Scrub::default() };
    let unrepaired = report.unrepaired();
    let ScrubReport { scope, state, why, began, ended, interruptions, .. } = report;
    let ScrubReport { done_blocks, total_blocks, replicas, found, repaired, findings, not_looked_at, .. } = report;
    let bytes = replicas.into_iter().filter(|row| !row.replica.is_empty());
    Scrub {
        state: state.as_str().to_owned(),
        last_finished: finished.and_then(utc),
        errors: found,
        repaired,
        unrepaired,
        subject: scope.subject(),
        began: utc(began),
        ended: ended.and_then(utc),
        interruptions,
        done_bytes: done_blocks * BLOCK_SIZE as u64,
        total_bytes: total_blocks * BLOCK_SIZE as u64,
        bytes: bytes.map(|row| ScrubBytes { replica: row.replica, bytes: row.bytes, left_out: row.left_out }).collect(),
        findings: findings
            .into_iter()
            .map(|finding| ScrubFinding {
                what: finding.what,
                offset: finding.offset,
                replica: finding.replica,
                device: finding.device,
                how: finding.how,
                repaired: finding.repaired,
            })
            .collect(),
        not_looked_at,
        why,
    }
}

/// What is to be said of what a scrub could not repair, if there is anything.
pub(super) fn concern(scrub: &Scrub) -> Option<Problem> {
    let Scrub { unrepaired, ended, subject, .. } = scrub;
    let when = ended.as_ref().map_or_else(String::new, |at| format!(" that ended at {at}"));
    let text = format!("the scrub{when} ({subject}) could not repair {unrepaired} of the errors that it found");
    (*unrepaired > 0).then(|| Problem::new(Code::ScrubDamage, text))
}

/// A time as RFC 3339 has it, in UTC.
fn utc(second: u64) -> Option<String> {
    Some(utc_second(second)? + "Z")
}
