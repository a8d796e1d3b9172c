//! Reading the registry, its signatures and the trust anchors from files.

use std::io;
use std::path::{Path, PathBuf};

use crate::limits;
use crate::os::read_bounded;
use crate::problem::{Code, Problem};
use crate::registry::{self, SignatureFile, TrustAnchors, VerifiedRegistry};

/// Where the registry is, unless the caller says otherwise.
pub const REGISTRY_PATH: &str = "/etc/scelle/registry.toml";

/// Where the trust anchors are, unless the caller says otherwise.
pub const TRUST_PATH: &str = "/etc/scelle/trust.toml";

/// Why a registry was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A document or its signatures are not accepted.
    #[error("{}: {source}", path.display())]
    Registry {
        /// The file.
        path: PathBuf,
        /// Why.
        source: registry::Error,
    },
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        let code = match &error {
            LoadError::Io { .. } => Code::RegistryUnreadable,
            LoadError::Registry { source, .. } => source.code(),
        };
        Self::new(code, format!("the registry is not accepted: {error}"))
    }
}

/// The file of an officer's signature: `registry.toml.NAME.minisig` beside `registry.toml`.
pub fn signature_path(registry: &Path, officer: &str) -> PathBuf {
    let mut path = registry.as_os_str().to_owned();
    path.push(format!(".{officer}.minisig"));
    PathBuf::from(path)
}

/// The file of a later version of the trust anchors: `trust.toml.2` beside `trust.toml`.
pub fn successor_path(trust: &Path, version: u32) -> PathBuf {
    let mut path = trust.as_os_str().to_owned();
    path.push(format!(".{version}"));
    PathBuf::from(path)
}

/// Reads trust anchors, and goes on to the last version that replaces them ([`successor_path`]). Each version must be
/// signed by enough of the officers of the version before it.
///
/// # Errors
/// [`LoadError`]; also for a successor that is there and not acceptable. Whoever replaced an officer must not go on
/// trusting that officer because a signature was forgotten.
pub fn load_trust(path: &Path) -> Result<TrustAnchors, LoadError> {
    let bytes = read(path, limits::TRUST_BYTES_MAX)?;
    let refused = |path: &Path, source| LoadError::Registry { path: path.to_owned(), source };
    let mut anchors = TrustAnchors::parse(&bytes).map_err(|source| refused(path, source))?;
    while anchors.version() < limits::TRUST_VERSIONS_MAX {
        let next = successor_path(path, anchors.version() + 1);
        let error = |source| LoadError::Io { path: next.clone(), source };
        let Some(document) = read_bounded(&next, limits::TRUST_BYTES_MAX).map_err(error)? else { break };
        let files = signature_files(&next, &anchors)?;
        anchors = anchors.succeeded_by(&document, &files.as_ref()).map_err(|source| refused(&next, source))?;
    }
    Ok(anchors)
}

/// The signature files beside a document, with their officers.
pub struct SignatureFiles(Vec<(String, Vec<u8>)>);

impl SignatureFiles {
    /// The files in the form that the registry module takes.
    pub fn as_ref(&self) -> Vec<SignatureFile<'_>> {
        self.0.iter().map(|(officer, bytes)| SignatureFile { officer, bytes }).collect()
    }
}

/// Reads the signatures beside a document that officers of `anchors` may have made.
///
/// # Errors
/// [`LoadError`]. A file that is not there is not an error; a file that cannot be read is.
pub fn signature_files(document: &Path, anchors: &TrustAnchors) -> Result<SignatureFiles, LoadError> {
    let mut files = Vec::new();
    for officer in anchors.officers() {
        let path = signature_path(document, &officer.name);
        let bytes = read_bounded(&path, limits::SIGNATURE_BYTES_MAX);
        let bytes = bytes.map_err(|source| LoadError::Io { path: path.clone(), source })?;
        files.extend(bytes.map(|bytes| (officer.name.clone(), bytes)));
    }
    Ok(SignatureFiles(files))
}

/// Reads a registry and the signatures beside it, and verifies them with `anchors`, e.g. the anchors that a volume
/// pins.
///
/// # Errors
/// [`LoadError`]. A signature file that is not there does not count; a signature file that cannot be read is an error.
pub fn load_with(path: &Path, anchors: &TrustAnchors) -> Result<VerifiedRegistry, LoadError> {
    let document = read(path, limits::REGISTRY_BYTES_MAX)?;
    let files = signature_files(path, anchors)?;
    registry::verify(&document, &files.as_ref(), anchors)
        .map_err(|source| LoadError::Registry { path: path.to_owned(), source })
}

/// Reads trust anchors, then the registry as [`load_with`].
///
/// # Errors
/// [`LoadError`].
pub fn load(registry: &Path, trust: &Path) -> Result<(VerifiedRegistry, TrustAnchors), LoadError> {
    let anchors = load_trust(trust)?;
    Ok((load_with(registry, &anchors)?, anchors))
}

fn read(path: &Path, max: usize) -> Result<Vec<u8>, LoadError> {
    let error = |source| LoadError::Io { path: path.to_owned(), source };
    read_bounded(path, max).map_err(error)?.ok_or_else(|| error(io::Error::from_raw_os_error(libc::ENOENT)))
}
