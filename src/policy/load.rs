//! Reading the registry, its signatures and the trust anchors from files.

use std::io;
use std::path::{Path, PathBuf};

use crate::device::sys::read_bounded;
use crate::limits;
use crate::registry::{self, SignatureFile, TrustAnchors, VerifiedRegistry};

/// Where the registry is unless told otherwise.
pub const REGISTRY_PATH: &str = "/etc/scelle/registry.toml";

/// Where the trust anchors are unless told otherwise.
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

/// The file of an officer's signature: `registry.toml.NAME.minisig` beside `registry.toml`.
pub fn signature_path(registry: &Path, officer: &str) -> PathBuf {
    let mut path = registry.as_os_str().to_owned();
    path.push(format!(".{officer}.minisig"));
    PathBuf::from(path)
}

/// Reads trust anchors.
///
/// # Errors
/// [`LoadError`].
pub fn load_trust(path: &Path) -> Result<TrustAnchors, LoadError> {
    let bytes = read(path, limits::TRUST_BYTES_MAX)?;
    TrustAnchors::parse(&bytes).map_err(|source| LoadError::Registry { path: path.to_owned(), source })
}

/// Reads a registry and the signatures beside it, and verifies them with these (e.g. a volume's pinned) anchors.
///
/// # Errors
/// [`LoadError`]; a signature file that is not there does not count, one that cannot be read is an error.
pub fn load_with(path: &Path, anchors: &TrustAnchors) -> Result<VerifiedRegistry, LoadError> {
    let document = read(path, limits::REGISTRY_BYTES_MAX)?;
    let mut files = Vec::new();
    for officer in anchors.officers() {
        let file = signature_path(path, &officer.name);
        let bytes = read_bounded(&file, limits::SIGNATURE_BYTES_MAX)
            .map_err(|source| LoadError::Io { path: file.clone(), source })?;
        files.extend(bytes.map(|bytes| (officer.name.as_str(), bytes)));
    }
    let signatures: Vec<SignatureFile<'_>> =
        files.iter().map(|(officer, bytes)| SignatureFile { officer, bytes }).collect();
    registry::verify(&document, &signatures, anchors)
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
    read_bounded(path, max).map_err(error)?.ok_or_else(|| error(io::ErrorKind::NotFound.into()))
}
