//! From names on the command line to devices that the registry approves, or a failure that says why not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::request::Documents;
use crate::control::{ExitCode, Failure};
use crate::device::raw::{Access, OpenError, RawDevice};
use crate::label;
use crate::policy::load::{self, LoadError};
use crate::policy::{ApprovedDevice, ReasonCode, Refused, examine_set, in_a_line};
use crate::probe::host::HostFacts;
use crate::probe::sys::Kernel;
use crate::registry::{self, Date, VerifiedRegistry};
use crate::volume;
use crate::{audit, crypto};

/// Reads and verifies the registry.
pub fn load_registry(documents: &Documents) -> Result<VerifiedRegistry, Failure> {
    load::load(&documents.registry, &documents.trust).map(|(registry, _)| registry).map_err(Failure::from)
}

/// Today, by the host's clock.
pub fn today() -> Result<Date, Failure> {
    Date::today().ok_or_else(|| {
        Failure::failed("clock", "the host's clock shows a date that cannot be: no validity can be judged")
            .advise("Set the clock, then try again.")
    })
}

/// Opens the devices and has the policy examine each, and all together. Nothing is written.
pub fn approve(paths: &[PathBuf], registry: &VerifiedRegistry, access: Access) -> Result<Vec<ApprovedDevice>, Failure> {
    let (host, today) = (HostFacts::read(&Kernel), today()?);
    refuse_repeated(paths)?;
    let mut approved = Vec::with_capacity(paths.len());
    for path in paths {
        let device = RawDevice::open(path, access)?;
        approved.push(ApprovedDevice::approve(Arc::new(device), registry, &host, today)?);
    }
    let entries: Vec<_> = approved.iter().map(ApprovedDevice::registry_entry).collect();
    let entries: Vec<_> = entries.iter().map(AsRef::as_ref).collect();
    let reasons = examine_set(registry, &entries);
    if let Some(first) = reasons.first() {
        return Err(refusal(first.code, format!("these devices together: {}", in_a_line(&reasons))));
    }
    Ok(approved)
}

/// A refusal for a reason of the table, which also says what to do.
pub fn refusal(code: ReasonCode, text: String) -> Failure {
    Failure::new(ExitCode::Refused, code.as_str(), text).advise(code.remedy())
}

/// Opens one device and has the policy examine it. Nothing is written.
pub fn approve_one(path: &Path, registry: &VerifiedRegistry, access: Access) -> Result<ApprovedDevice, Failure> {
    let device = RawDevice::open(path, access)?;
    Ok(ApprovedDevice::approve(Arc::new(device), registry, &HostFacts::read(&Kernel), today()?)?)
}

/// The same device twice would otherwise be "in use": by ourselves.
fn refuse_repeated(paths: &[PathBuf]) -> Result<(), Failure> {
    let mut seen: Vec<(PathBuf, &Path)> = Vec::new();
    for path in paths {
        // What does not exist is reported by opening it.
        let Ok(node) = std::fs::canonicalize(path) else { continue };
        if let Some((_, earlier)) = seen.iter().find(|(other, _)| *other == node) {
            let text = format!("{} and {} are the same device", earlier.display(), path.display());
            return Err(Failure::usage("device-twice", text).advise("Give each device once."));
        }
        seen.push((node, path));
    }
    Ok(())
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let text = format!("the registry is not accepted: {error}");
        match &error {
            LoadError::Io { .. } => Self::usage("registry-unreadable", text)
                .advise("Give --registry FILE and --trust FILE, or install both documents in /etc/scelle."),
            LoadError::Registry { source, .. } => match source {
                registry::Error::TooFewSignatures { .. } => Self::new(ExitCode::Refused, "registry-signatures", text)
                    .advise("The signatures must be beside the document, as FILE.OFFICER.minisig. See scelle registry verify."),
                registry::Error::Syntax { .. } | registry::Error::TooLarge { .. } => {
                    Self::usage("registry-syntax", text)
                }
                registry::Error::Invalid { .. } => Self::usage("registry-invalid", text),
                registry::Error::Key(_) => Self::usage("registry-key", text),
            },
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::InUse { .. } => Self::new(ExitCode::Busy, "device-in-use", text)
                .advise("Is the volume mounted already? See scelle status, and findmnt for other filesystems."),
            OpenError::NotBlockDevice { .. } => Self::usage("device-kind", text),
            OpenError::ReadOnly { .. } => Self::failed("device-read-only", text),
            OpenError::Geometry { .. } => Self::usage("device-geometry", text),
            OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::usage("device-not-found", text)
            }
            OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::failed("device-open", text)
                    .advise("This needs root; in a container or a systemd unit, the device must be allowed too.")
            }
            OpenError::Io { .. } => Self::failed("device-open", text),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let Refused { device, verdict } = refused;
        let code = verdict.reasons.first().map_or_else(String::new, |reason| reason.code.to_string());
        let why = in_a_line(&verdict.reasons);
        Self::new(ExitCode::Refused, code, format!("{device} is refused, and nothing was written to it: {why}"))
            .advise(format!("The whole verdict: scelle device inspect {device}"))
    }
}

impl From<volume::Error> for Failure {
    fn from(error: volume::Error) -> Self {
        use volume::ErrorKind as Kind;
        if let volume::Error::Registry(reasons) = &error
            && let Some(first) = reasons.first()
        {
            return refusal(first.code, error.to_string());
        }
        let error = match error {
            volume::Error::Device(refused) => return refused.into(),
            error => error,
        };
        let code = match error.kind() {
            Kind::Usage | Kind::NotAVolume => ExitCode::Usage,
            Kind::Refused => ExitCode::Refused,
            Kind::WrongKey => ExitCode::WrongKey,
            Kind::Integrity => ExitCode::Integrity,
            Kind::Busy => ExitCode::Busy,
            Kind::Degraded => ExitCode::Degraded,
            Kind::Io => ExitCode::Failed,
        };
        Self::new(code, reason(&error), error.to_string())
    }
}

/// The stable code of each failure of a volume.
fn reason(error: &volume::Error) -> &'static str {
    use volume::Error as E;
    match error {
        E::Label { source, .. } => label_reason(source),
        E::NotEmpty { .. } => "device-not-empty",
        E::DeviceCount { .. } => "device-count",
        E::SameDevice { .. } => "device-twice",
        E::MixedVolumes { .. } => "device-of-another-volume",
        E::NotEnrolled { .. } => "device-not-enrolled",
        E::Device(_) => "device-refused",
        E::Registry(_) => "registry-other",
        E::Incomplete { .. } => "volume-incomplete",
        E::Diverged(_) => "volume-diverged",
        E::Rejoin { code, .. } => code,
        E::NoRoot(_) => "volume-no-root",
        E::RolledBack { .. } => "volume-rolled-back",
        E::ReadOnlyFeatures(_) => "format-read-only",
        E::Crypto(crypto::Error::WrongKey) => "wrong-key",
        E::Crypto(_) => "crypto",
        E::Store(_) => "store",
        E::Fs(_) | E::Audit(audit::Error::Fs(_)) => "filesystem",
        E::System { .. } | E::Audit(audit::Error::Key(_)) => "system",
        E::Unproven { .. } => "volume-unproven",
    }
}

fn label_reason(error: &label::Error) -> &'static str {
    use label::Error as E;
    match error {
        E::NotScelle => "not-a-volume",
        E::UnsupportedVersion { .. } | E::UnknownIncompatFeature { .. } => "format-newer",
        E::Truncated { .. } => "device-truncated",
        E::DeviceSize { .. } => "device-size",
        E::Device(_) => "device-io",
        E::Crypto(crypto::Error::WrongKey) => "wrong-key",
        _ => "label-damaged",
    }
}
