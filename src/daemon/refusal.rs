//! Takes a refused mount into the audit trail too, although there is no volume yet that it could be written to.

use super::WITNESS_DIR;
use super::find;
use super::request::Request;
use crate::audit::{Actor, Entry, Event, Object, Reason, Reports};
use crate::limits::REPLICAS_MAX;
use crate::os::process;
use crate::problem::{ExitCode, Problem};

/// Leaves a report of `problem` for every volume that the devices say they belong to. The next mount of that volume
/// that can write takes the report into the trail. What labels say is not authenticated; nor are reports.
pub fn report(request: &Request, problem: &Problem) {
    let refused = [ExitCode::Refused, ExitCode::WrongKey, ExitCode::Integrity, ExitCode::Degraded];
    if !refused.contains(&problem.exit()) {
        return;
    }
    let user = Actor::user(&process::identity());
    let mut volumes = Vec::new();
    for path in request.sources.devices.iter().take(REPLICAS_MAX) {
        volumes.extend(find::label_of(path).map(|label| label.newest.claims().volume));
    }
    volumes.sort_unstable();
    volumes.dedup();
    for volume in volumes {
        let entry = Entry::done(user.clone(), Object::Volume, Event::MountRefused);
        let entry = entry.because([Reason::from(problem)]);
        if let Err(error) = Reports::new(WITNESS_DIR.as_ref(), volume).add(&entry) {
            log::error!("the audit trail of volume {volume} will not know of this: {WITNESS_DIR}: {error}");
            if error.kind() == std::io::ErrorKind::TimedOut {
                // The next volume's reports are on the same disk.
                break;
            }
        }
    }
    // The command says it on the terminal.
    log::info!("audit: mount refused: {problem}");
}
