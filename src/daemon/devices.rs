//! Leads from names on the command line to devices that the registry approves, or to a problem that says why not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::request::Documents;
use crate::device::raw::{Access, RawDevice};
use crate::policy::load;
use crate::policy::{ApprovedDevice, examine_set, in_a_line};
use crate::probe::host::HostFacts;
use crate::probe::sys::Kernel;
use crate::problem::{Code, Problem};
use crate::registry::{Date, VerifiedRegistry};

/// Reads and verifies the registry.
pub fn load_registry(documents: &Documents) -> Result<VerifiedRegistry, Problem> {
    load::load(&documents.registry, &documents.trust).map(|(registry, _)| registry).map_err(Problem::from)
}

/// Today, by the host's clock.
pub fn today() -> Result<Date, Problem> {
    Date::today().ok_or_else(|| {
        Problem::new(Code::Clock, "the host's clock shows a date that cannot be: no validity can be judged")
    })
}

/// Opens the devices and has the policy examine each of them, and all together. Nothing is written.
pub fn approve(paths: &[PathBuf], registry: &VerifiedRegistry, access: Access) -> Result<Vec<ApprovedDevice>, Problem> {
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
        return Err(Problem::new(first.code, format!("these devices together: {}", in_a_line(&reasons))));
    }
    Ok(approved)
}

/// Opens one device and has the policy examine it. Nothing is written.
pub fn approve_one(path: &Path, registry: &VerifiedRegistry, access: Access) -> Result<ApprovedDevice, Problem> {
    let device = RawDevice::open(path, access)?;
    Ok(ApprovedDevice::approve(Arc::new(device), registry, &HostFacts::read(&Kernel), today()?)?)
}

/// Refuses a device that is named twice. It would otherwise be "in use": by ourselves.
pub fn refuse_repeated(paths: &[PathBuf]) -> Result<(), Problem> {
    let mut seen: Vec<(PathBuf, &Path)> = Vec::new();
    for path in paths {
        // A path that does not exist is reported when it is opened.
        let Ok(node) = std::fs::canonicalize(path) else { continue };
        if let Some((_, earlier)) = seen.iter().find(|(other, _)| *other == node) {
            let text = format!("{} and {} are the same device", earlier.display(), path.display());
            return Err(Problem::new(Code::DeviceTwice, text));
        }
        seen.push((node, path));
    }
    Ok(())
}
