//! `scelle create`.

use std::path::PathBuf;

use clap::Args;

use super::secret::{self, Obtained};
use super::{DocumentArguments, Passphrase, only_root};
use crate::crypto::check_strength;
use crate::daemon::devices;
use crate::device::raw::Access;
use crate::limits::VOLUME_LABEL_MAX;
use crate::policy::kind;
use crate::problem::{Code, ExitCode, Problem};
use crate::units::is_plain;
use crate::volume::{self, CreateOptions};

/// Arguments of `scelle create`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name of the volume, at most 64 bytes
    #[arg(long, default_value = "")]
    label: String,
    #[command(flatten)]
    documents: DocumentArguments,
    #[command(flatten)]
    passphrase: Passphrase,
    /// The devices; each becomes a replica
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Makes the volume and prints its UUID.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    check_label(&arguments.label)?;
    only_root("create a volume")?;
    let registry = devices::load_registry(&arguments.documents.documents())?;
    let approved = devices::approve(&arguments.devices, &registry, Access::Exclusive)?;
    if approved.len() == 1 {
        eprintln!("scelle: warning: a volume on one device has no second copy: what that device loses is lost");
    }
    let Obtained { secret, .. } =
        secret::obtain(arguments.passphrase.passphrase_file.as_deref(), secret::Purpose::Create)?;
    if let Err(weak) = check_strength(&secret, &[&arguments.label])
        && registry.is_laboratory()
    {
        eprintln!("scelle: warning: {weak}; only a laboratory takes it");
    }
    let options = CreateOptions { label: arguments.label.clone(), ..CreateOptions::default() };
    // Asking for a passphrase may take its time, and a device may have been revoked meanwhile.
    let registry = devices::load_registry(&arguments.documents.documents())?;
    let uuid = volume::create(approved, &registry, &secret, &options)?;
    println!("{uuid}");
    let found = kind::on_this_host(&registry);
    if !found.is_sovereign() {
        eprintln!("scelle: not sovereign: {} registry", found.kind);
        found.lacking.iter().for_each(|lacking| eprintln!("  {lacking}"));
    }
    Ok(ExitCode::Done)
}

/// Checks a label. It is shown in mount tables and chosen on command lines: so every character shows itself, and it does
/// not look like a path.
fn check_label(label: &str) -> Result<(), Problem> {
    let wrong = if label.len() > VOLUME_LABEL_MAX {
        format!("is longer than {VOLUME_LABEL_MAX} bytes")
    } else if let Some(c) = label.chars().find(|c| !is_plain(*c)) {
        format!("has the character U+{:04X}, which does not show itself", u32::from(c))
    } else if label.contains('/') {
        "has a slash".into()
    } else {
        return Ok(());
    };
    Err(Problem::new(Code::VolumeLabel, format!("the label {label:?} {wrong}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked() {
        for good in ["", "greffe", "Pièces à conviction", &"x".repeat(64)] {
            assert!(check_label(good).is_ok(), "{good}");
        }
        for bad in ["a/b", "a\nb", "a\0b", "a\u{202e}b", "a\u{200b}b", "a\u{feff}b", &"x".repeat(65)] {
            assert!(check_label(bad).is_err(), "{bad}");
        }
    }
}
