//! Answers `scelle replica`: `resync` checks everything again, then brings back every replica that it can; `add`, `remove`
//! and `replace` change the replica table.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::watch::Checker;
use super::{devices, find};
use crate::audit::Audit;
use crate::control::{ResyncAnswer, ResyncWanted, Returned, TableAnswer, TableChange, TableWanted, WentOn};
use crate::device::raw::Access;
use crate::limits::REPLICAS_MAX;
use crate::mirror::State;
use crate::policy::ApprovedDevice;
use crate::problem::{Code, ExitCode, Problem};
use crate::units::{Generation, Uuid};
use crate::volume::{self, Findings, Members, Removed};

/// Brings back the replica that `wanted` names by a device node or an identifier of the registry. Without a name,
/// brings back every replica that is not in sync.
///
/// # Errors
/// When `wanted` names no replica. Why a replica that is named does not come back is in the answer.
pub(super) fn resync(checker: &Checker, volume: Uuid, wanted: &ResyncWanted) -> Result<ResyncAnswer, Problem> {
    let (name, discard) = (wanted.replica.as_deref(), wanted.discard.map(Generation));
    if discard.is_some() && name.is_none() {
        return Err(Problem::new(Code::Arguments, "which replica is to discard what it went on to is not named"));
    }
    // The registry may have changed a moment ago, and a device may have come back.
    checker.check_and_apply();
    let members = checker.members();
    let mut turn = Turn { checker, members, volume, discard, answer: ResyncAnswer::default() };
    for (index, node) in targets(members, name)? {
        let outcome = match (index, &node) {
            (Some(index), _) => turn.bring_back(index, node.as_deref()).map(|state| (index, state)),
            (None, Some(node)) => turn.take_in(node),
            (None, None) => continue,
        };
        match outcome {
            Ok((index, state)) => turn.answer.returned.push(Returned {
                registry_id: members.registry_id(index),
                device: members.device(index).map_or_else(String::new, |device| device.name().to_owned()),
                task: if state == State::Resyncing { members.task(index) } else { None },
            }),
            Err(problem) => {
                if let Some(index) = index.filter(|_| problem.code == Code::VolumeDiverged) {
                    members.explain(index, &format!("{}. {}", problem.text, problem.advice));
                }
                turn.answer.problems.push(problem);
            }
        }
    }
    Ok(turn.answer)
}

/// Changes the replica table, or says what that would do.
///
/// # Errors
/// When what is named is not there; what the policy, the devices and the volume say.
pub(super) fn change(checker: &Checker, wanted: &TableWanted) -> Result<TableAnswer, Problem> {
    // The registry may have changed a moment ago: a device that officers have just listed, or revoked.
    checker.check_and_apply();
    let members = checker.members();
    match &wanted.change {
        TableChange::Remove { replica } => {
            let index = one(members, replica)?;
            if wanted.plan {
                return Ok(TableAnswer { steps: members.plan_remove(index)?.steps, ..TableAnswer::default() });
            }
            let Removed { registry_id, device, not_wiped } = members.remove(index)?;
            Ok(TableAnswer { registry_id, device, not_wiped, ..TableAnswer::default() })
        }
        TableChange::Add { device } => enrol(checker, Path::new(device), None, wanted.plan),
        TableChange::Replace { old, device } => {
            enrol(checker, Path::new(device), Some(one(members, old)?), wanted.plan)
        }
    }
}

fn enrol(checker: &Checker, node: &Path, replaces: Option<usize>, plan: bool) -> Result<TableAnswer, Problem> {
    let members = checker.members();
    let refused = |problem: &Problem| {
        if problem.exit() == ExitCode::Refused {
            let mut findings = Findings::default();
            findings.tell(Audit::resync_refused(node, problem));
            members.apply(findings);
        }
    };
    if ours(members, &std::fs::canonicalize(node).unwrap_or_default()).is_some() {
        let text = format!("{} is in use as a replica of this volume", node.display());
        return Err(Problem::new(Code::ReplicaInUse, text));
    }
    let device = devices::approve_one(node, &checker.found().registry, Access::Exclusive).inspect_err(refused)?;
    if plan {
        return Ok(TableAnswer { steps: members.plan_enrol(&device, replaces)?.steps, ..TableAnswer::default() });
    }
    let name = device.name().to_owned();
    let index = members.enrol(device, replaces).map_err(Problem::from).inspect_err(refused)?;
    let (registry_id, task) = (members.registry_id(index), members.task(index));
    Ok(TableAnswer { registry_id, device: name, task, ..TableAnswer::default() })
}

/// The one replica that is named, by its identifier in the registry or its device node.
fn one(members: &Members, wanted: &str) -> Result<usize, Problem> {
    let index = match wanted.contains('/') {
        true => std::fs::canonicalize(wanted).ok().and_then(|node| ours(members, &node)),
        false => members.by_registry_id(wanted),
    };
    index.ok_or_else(|| Problem::new(Code::ReplicaUnknown, format!("no replica of this volume is called {wanted:?}")))
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

/// One question, and the answer so far.
struct Turn<'a> {
    checker: &'a Checker,
    members: &'a Members,
    volume: Uuid,
    /// The end of the history that is to be discarded.
    discard: Option<Generation>,
    answer: ResyncAnswer,
}

impl Turn<'_> {
    /// Brings one replica back: with the device that is open, if the policy approves it; else with a device whose label
    /// shows the replica.
    fn bring_back(&mut self, index: usize, node: Option<&Path>) -> Result<State, Problem> {
        let members = self.members;
        if !members.absent().contains(&index) {
            return Ok(members.state(index));
        }
        let device = members.device(index);
        let verdict = device.as_ref().map(|device| device.verdict());
        if let Some(device) = device.as_ref().filter(|_| verdict.as_ref().is_some_and(|verdict| verdict.approved)) {
            return match self.telling(device, || members.rejoin(index)) {
                // The watch was quicker.
                Err(_) if !members.absent().contains(&index) => Ok(members.state(index)),
                outcome => outcome,
            };
        }
        let held = device.as_ref().map(|device| PathBuf::from(device.name()));
        if node.is_none() {
            // Whoever can copy a label can make a device that claims to be this replica: the first that is one counts.
            let mut refused = None;
            for found in find::replica(self.volume, index).into_iter().filter(|path| Some(path) != held.as_ref()) {
                match self.take_in(&found) {
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

    fn take_in(&mut self, node: &Path) -> Result<(usize, State), Problem> {
        let (checker, members) = (self.checker, self.members);
        let device = devices::approve_one(node, &checker.found().registry, Access::Exclusive).map(Arc::new);
        let taken = device.and_then(|device| self.telling(&device, || members.take_in(Arc::clone(&device))));
        taken.inspect_err(|problem| {
            if problem.exit() == ExitCode::Refused {
                let mut findings = Findings::default();
                findings.tell(Audit::resync_refused(node, problem));
                members.apply(findings);
            }
        })
    }

    /// Brings a device back. If it went on elsewhere, the answer tells what only it has, also before that is discarded.
    fn telling<T>(
        &mut self,
        device: &Arc<ApprovedDevice>,
        bring: impl FnOnce() -> Result<T, volume::Error>,
    ) -> Result<T, Problem> {
        if let Some(generation) = self.discard {
            self.tell(device);
            self.members.discard(device, generation)?;
            return Ok(bring()?);
        }
        let outcome = bring().map_err(Problem::from);
        if outcome.as_ref().is_err_and(|problem| problem.code == Code::VolumeDiverged) {
            self.tell(device);
        }
        outcome
    }

    /// Adds to the answer what only this device has, if it went on elsewhere.
    fn tell(&mut self, device: &Arc<ApprovedDevice>) {
        let went_on = match self.members.only_there(device) {
            Ok(None) => return,
            Ok(Some((side, only))) => WentOn {
                what: side.to_string(),
                only_there: only.paths,
                count: only.count,
                incomplete: only.incomplete,
            },
            Err(error) => WentOn {
                what: device.name().to_owned(),
                incomplete: Some(format!("what it holds cannot be read: {error}")),
                ..WentOn::default()
            },
        };
        self.answer.went_on.push(went_on);
    }
}
