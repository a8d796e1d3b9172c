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
use crate::mirror::device_offset;
use crate::problem::{Code, ExitCode, Problem};
use crate::units::BLOCK_SIZE;
use crate::volume::{self, CheckReport, Compared, Difference, Sealed, witness};

/// Arguments of `scelle check`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    documents: DocumentArguments,
    #[command(flatten)]
    passphrase: Passphrase,
    /// Compare the replicas block by block, without a key: nothing is verified
    #[arg(long, conflicts_with = "passphrase_file")]
    keyless: bool,
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
    if arguments.keyless {
        left_out.iter().for_each(|left_out| println!("left out: {}", text::lines(&left_out.why.to_string())));
        return compare(&sealed);
    }
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

/// Compares the replicas without a key.
fn compare(sealed: &Sealed) -> Result<ExitCode, Problem> {
    sealed.set_aside().iter().for_each(|why| println!("left out: {}", text::lines(why)));
    let bar = progress();
    let compared = sealed.compare(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if compared.devices.len() < 2 {
        let text = format!("{} is alone: there is nothing to compare it with", compared.devices.join(", "));
        return Err(Problem::new(Code::Arguments, text).advise("Name the devices of two replicas or more."));
    }
    print!("{}", text::lines(&compared_text(&compared)));
    Ok(if compared.different == 0 { ExitCode::Done } else { ExitCode::Degraded })
}

fn compared_text(compared: &Compared) -> String {
    let Compared { devices, blocks, runs, different, replicas } = compared;
    let mut text = String::new();
    for Difference { addr, blocks, others, unread } in runs {
        let (last, bytes) = (addr.0 + blocks - 1, blocks * BLOCK_SIZE as u64);
        text.push_str(&format!("differs: blocks {} to {last} ({blocks} blocks, {bytes} bytes", addr.0));
        text.push_str(&format!(" from byte {} of a device)", device_offset(*addr)));
        if !others.is_empty() {
            text.push_str(&format!(": {} from the others", others.join(", ")));
        }
        if !unread.is_empty() {
            text.push_str(&format!(": {} cannot be read there", unread.join(", ")));
        }
        text.push('\n');
    }
    let listed: u64 = runs.iter().map(|run| run.blocks).sum();
    if *different > listed {
        text.push_str(&format!("and {} more blocks\n", different - listed));
    }
    text.push_str(&format!("{blocks} blocks compared on {}, {different} differ\n", devices.join(", ")));
    if devices.len() < *replicas {
        text.push_str(&format!("the volume has {replicas} replicas: the others were not compared\n"));
    }
    text.push_str(if *different == 0 {
        "nothing was verified: that takes the key (scelle check, scelle scrub)\n"
    } else {
        "a difference may lie in blocks that are not in use: scelle check with the key, or scelle scrub, can tell\n"
    });
    text
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockAddr;

    #[test]
    fn a_comparison_says_where_replicas_differ_and_what_that_may_mean() {
        let devices = vec!["/dev/a".to_owned(), "/dev/b".to_owned()];
        let equal = Compared { devices: devices.clone(), blocks: 100, replicas: 2, ..Compared::default() };
        let text = compared_text(&equal);
        assert!(text.starts_with("100 blocks compared on /dev/a, /dev/b, 0 differ\nnothing was verified"), "{text}");
        let (addr, others) = (BlockAddr(7), vec!["/dev/b".to_owned()]);
        let runs = vec![Difference { addr, blocks: 2, others, unread: Vec::new() }];
        let text = compared_text(&Compared { runs, different: 5, replicas: 3, ..equal });
        let first =
            "differs: blocks 7 to 8 (2 blocks, 8192 bytes from byte 1077248 of a device): /dev/b from the others\n";
        assert!(text.starts_with(first) && text.contains("and 3 more blocks\n"), "{text}");
        assert!(text.contains("has 3 replicas") && text.contains("not in use"), "{text}");
    }
}
