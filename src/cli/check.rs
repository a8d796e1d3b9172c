//! `scelle check`.

use std::path::PathBuf;

use clap::Args;

use super::text::progress;
use super::{DocumentArguments, Passphrase, secret};
use crate::daemon::devices;
use crate::device::raw::Access;
use crate::problem::{ExitCode, Problem};
use crate::volume::{CheckReport, Sealed};

/// Arguments of `scelle check`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    documents: DocumentArguments,
    #[command(flatten)]
    passphrase: Passphrase,
    /// The devices of one volume
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Verifies the volume; writes nothing.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let registry = devices::load_registry(&arguments.documents.documents())?;
    let approved = devices::approve(&arguments.devices, &registry, Access::ExclusiveRead)?;
    let sealed = Sealed::read(approved)?;
    let secret = secret::obtain(arguments.passphrase.passphrase_file.as_deref(), secret::Purpose::Open)?;
    let bar = progress();
    let report = sealed.unlock(&secret)?.check(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    print!("{}", text(&report));
    Ok(if report.count > 0 { ExitCode::Integrity } else { ExitCode::Done })
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
    for skipped in &report.skipped {
        text.push_str(&format!("skipped: {skipped}\n"));
    }
    let (generation, blocks, count) = (report.generation, report.blocks, report.count);
    text.push_str(&format!("generation {generation}: {blocks} blocks verified, {count} damaged\n"));
    text
}
