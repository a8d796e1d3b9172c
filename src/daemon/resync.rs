//! Answers `scelle replica resync`: checks everything again, then brings back every replica that it can.

use std::path::{Path, PathBuf};

use super::watch::Checker;
use super::{devices, find};
use crate::audit::Audit;
use crate::control::{ResyncAnswer, Returned};
use crate::device::raw::Access;
use crate::limits::REPLICAS_MAX;
use crate::mirror::State;
use crate::problem::{Code, ExitCode, Problem};
use crate::units::Uuid;
use crate::volume::{Findings, Members};

/// Brings back the replica that `wanted` names by a device node or an identifier of the registry. Without a name,
/// brings back every replica that is not in sync.
///
/// # Errors
/// When `wanted` names no replica. Why a replica that is named does not come back is in the answer.
pub(super) fn resync(checker: &Checker, volume: Uuid, wanted: Option<&str>) -> Result<ResyncAnswer, Problem> {
    // The registry may have changed a moment ago, and a device may have come back.
    checker.check_and_apply();
    let members = checker.members();
    let mut answer = ResyncAnswer::default();
    for (index, node) in targets(members, wanted)? {
        let outcome = match (index, &node) {
            (Some(index), _) => bring_back(checker, volume, index, node.as_deref()).map(|state| (index, state)),
            (None, Some(node)) => take_in(checker, node),
            (None, None) => continue,
        };
        match outcome {
            Ok((index, state)) => answer.returned.push(Returned {
                registry_id: members.registry_id(index).to_owned(),
                device: members.device(index).map_or_else(String::new, |device| device.name().to_owned()),
                task: if state == State::Resyncing { members.task(index) } else { None },
            }),
            Err(problem) => answer.problems.push(problem),
        }
    }
    Ok(answer)
}

type Target = (Option<usize>, Option<PathBuf>);

fn targets(members: &Members, wanted: Option<&str>) -> Result<Vec<Target>, Problem> {
    let Some(wanted) = wanted else {
        // The answer also names replicas that the watch brought back a moment ago: the asker may want to wait for them.
        let under_way = (0..REPLICAS_MAX).filter(|index| members.state(*index) == State::Resyncing);
        return Ok(members.absent().into_iter().chain(under_way).map(|index| (Some(index), None)).collect());
    };
    if wanted.contains('/') {
        let node = std::fs::canonicalize(wanted)
            .map_err(|error| Problem::new(Code::DeviceNotFound, format!("{wanted}: {error}")))?;
        return Ok(vec![(ours(members, &node), Some(node))]);
    }
    match members.by_registry_id(wanted) {
        Some(index) => Ok(vec![(Some(index), None)]),
        None => Err(Problem::new(Code::ReplicaUnknown, format!("no replica of this volume is called {wanted:?}"))),
    }
}

/// The replica whose device we hold open as this node.
fn ours(members: &Members, node: &Path) -> Option<usize> {
    (0..REPLICAS_MAX).find(|index| members.device(*index).is_some_and(|device| Path::new(device.name()) == node))
}

/// Brings one replica back: with the device that is open, if the policy approves it; else with a device whose label
/// shows the replica.
fn bring_back(checker: &Checker, volume: Uuid, index: usize, node: Option<&Path>) -> Result<State, Problem> {
    let members = checker.members();
    if !members.absent().contains(&index) {
        return Ok(members.state(index));
    }
    let device = members.device(index);
    let verdict = device.as_ref().map(|device| device.verdict());
    if verdict.as_ref().is_some_and(|verdict| verdict.approved) {
        return match members.rejoin(index) {
            // The watch was quicker.
            Err(_) if !members.absent().contains(&index) => Ok(members.state(index)),
            outcome => Ok(outcome?),
        };
    }
    let held = device.as_ref().map(|device| PathBuf::from(device.name()));
    if node.is_none() {
        // Whoever can copy a label can make a device that claims to be this replica: the first that is one counts.
        let mut refused = None;
        for found in find::replica(volume, index).into_iter().filter(|path| Some(path) != held.as_ref()) {
            match take_in(checker, &found) {
                Ok((_, state)) => return Ok(state),
                Err(problem) => refused = Some(problem),
            }
        }
        if let Some(problem) = refused {
            return Err(problem);
        }
    }
    match (device, verdict) {
        (Some(device), Some(verdict)) => {
            let device = device.name().to_owned();
            Err(crate::policy::Refused { device, verdict: Box::new(verdict) }.into())
        }
        _ => {
            let text = format!("no device of this host shows replica {}", members.registry_id(index));
            Err(Problem::new(Code::ReplicaMissing, text).advise("Attach it, and ask again."))
        }
    }
}

fn take_in(checker: &Checker, node: &Path) -> Result<(usize, State), Problem> {
    let device = devices::approve_one(node, &checker.found().registry, Access::Exclusive);
    let taken = device.and_then(|device| Ok(checker.members().take_in(device)?));
    taken.inspect_err(|problem| {
        if problem.exit() == ExitCode::Refused {
            let mut findings = Findings::default();
            findings.tell(Audit::resync_refused(node, problem));
            checker.members().apply(findings);
        }
    })
}
