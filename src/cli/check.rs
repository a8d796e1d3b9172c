//! `scelle check`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::secret::{self, Obtained};
use super::text::{self, progress};
use super::{DocumentArguments, Passphrase, only_root};
use crate::daemon::gather::Gathered;
use crate::daemon::{WITNESS_DIR, devices, find, gather};
use crate::device::raw::Access;
use crate::limits::HOST_DISK_TIMEOUT_S;
use crate::problem::{ExitCode, Problem};
use crate::volume::{self, CheckReport, Sealed, witness};

/// Arguments of `scelle check`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    documents: DocumentArguments,
    #[command(flatten)]
    passphrase: Passphrase,
    /// A label, a UUID, or the devices of one volume
    #[arg(required = true, value_name = "VOLUME|DEV")]
    devices: Vec<PathBuf>,
}

/// Verifies the volume; writes nothing.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    only_root("check a volume")?;
    let registry = devices::load_registry(&arguments.documents.documents())?;
    let sources = find::devices(&arguments.devices)?;
    let Gathered { approved, left_out } = gather::gather(&sources, &registry, Access::ExclusiveRead, false)?;
    let blame = |error: volume::Error| gather::blame(&left_out, error.into());
    let sealed = Sealed::read(approved).map_err(blame)?;
    let Obtained { secret, hints } =
        secret::obtain(arguments.passphrase.passphrase_file.as_deref(), secret::Purpose::Open)?;
    let assembled = sealed.unlock(&secret).map_err(blame).map_err(|problem| hints.explain(problem))?;
    drop(secret);
    let bar = progress();
    let report = assembled.check(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    let report = report.map_err(blame)?;
    bar.finish_and_clear();
    left_out.iter().for_each(|left_out| println!("left out: {}", text::lines(&left_out.why.to_string())));
    print!("{}", text(&report));
    set_back(&report);
    Ok(match (report.count, report.skipped.is_empty()) {
        (0, true) => ExitCode::Done,
        (0, false) => ExitCode::Degraded,
        _ => ExitCode::Integrity,
    })
}

/// Has this host begin its counts of errors anew, of the replicas that are whole.
fn set_back(report: &CheckReport) {
    let identities = report.whole.iter().map(|(_, identity)| *identity).collect();
    let patience = Duration::from_secs(HOST_DISK_TIMEOUT_S);
    match witness::found_whole(Path::new(WITNESS_DIR), report.volume, identities, patience) {
        Ok(anew) => {
            for (id, _) in report.whole.iter().filter(|(_, identity)| anew.contains(identity)) {
                println!("whole: {}: its counts of errors begin anew", text::lines(id));
            }
        }
        Err(error) => log::warn!("the counts of errors in {WITNESS_DIR} stay as they are: {error}"),
    }
}

fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    for damage in &report.damages {
        let line = match (damage.device.as_str(), damage.recoverable) {
            ("", _) => format!("damage: volume: {}\n", damage.what),
            (device, true) => format!("damage: {device}: {} (another replica has it)\n", damage.what),
            (device, false) => format!("damage: {device}: {} (no replica has it)\n", damage.what),
        };
        text.push_str(&line);
    }
    for (what, blocks) in &report.lost {
        text.push_str(&format!("lost: {blocks} blocks of {what} are on no replica\n"));
    }
    for skipped in &report.skipped {
        text.push_str(&format!("skipped: {skipped}\n"));
    }
    let (generation, blocks, count) = (report.generation, report.blocks, report.count);
    text.push_str(&format!("generation {generation}: {blocks} blocks verified, {count} damaged\n"));
    text
}
