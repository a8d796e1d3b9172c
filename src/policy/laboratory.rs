//! Documents for a laboratory: a registry that names given devices, signed with keys made on the spot.
//!
//! Nothing here approves: the documents go through [`crate::registry::verify`] and the policy as any other.

#[cfg(test)]
use std::sync::Arc;

#[cfg(test)]
use super::ApprovedDevice;
#[cfg(test)]
use crate::device::IdentifiedDevice;
use crate::probe::identity::DeviceFacts;
#[cfg(test)]
use crate::probe::{host::HostFacts, sys::Kernel};
use crate::registry::{self, Date, DeviceEntry, Policy, Registry, Site, Status, Transport};

/// A signed registry with its trust anchors, as the content of the files.
#[derive(Clone, Debug)]
pub struct Documents {
    /// `registry.toml`.
    pub registry: String,
    /// `trust.toml`.
    pub trust: String,
    /// Officer's name and content of the `.minisig` file.
    pub signatures: Vec<(String, String)>,
}

/// An unsigned registry with an entry for each device and one site, in the vocabulary of a laboratory. Its transports
/// are those of the devices.
pub fn registry_for(devices: &[(&str, DeviceFacts)], issued: Date, valid_until: Date) -> Registry {
    let text = |t: &str| vec![t.to_owned()];
    let mut transports: Vec<Transport> = devices.iter().map(|(_, f)| f.root.transport).collect();
    transports.sort_unstable();
    transports.dedup();
    Registry {
        version: 1,
        issued,
        valid_until,
        policy: Policy {
            owners: text("Laboratory"),
            administrators: text("Laboratory"),
            countries: text("FR"),
            jurisdictions: text("FR"),
            transports,
            certifications: Vec::new(),
            min_sites: 1,
            min_replicas: 1,
            virtual_hosts: true,
        },
        sites: vec![Site {
            id: "laboratory".into(),
            name: "Laboratory".into(),
            country: "FR".into(),
            owner: "Laboratory".into(),
            administrator: "Laboratory".into(),
            jurisdictions: text("FR"),
            inspected: issued,
            inspection_valid_until: valid_until,
            certifications: Vec::new(),
        }],
        devices: devices
            .iter()
            .map(|(id, facts)| DeviceEntry {
                id: (*id).to_owned(),
                site: "laboratory".into(),
                status: Status::Approved,
                identity: facts.root.identity(),
            })
            .collect(),
    }
}

/// Signs a registry with freshly made keys of two officers, both of whom must sign. The keys are forgotten.
///
/// # Errors
/// When the registry breaks its own rules (e.g. a device whose transport has no identity), or no keys can be made.
pub fn sign(document: &Registry) -> Result<Documents, registry::Error> {
    Officers::new(&["officer-a", "officer-b"])?.sign(document)
}

/// Officers with freshly made keys, all of whom must sign.
pub struct Officers {
    keys: Vec<(String, registry::KeyFiles)>,
    trust: String,
}

impl Officers {
    /// Makes a key for each of them.
    ///
    /// # Errors
    /// When no keys can be made.
    pub fn new(names: &[&str]) -> Result<Self, registry::Error> {
        let made = names.iter().map(|name| Ok(((*name).to_owned(), registry::keygen(name, None)?)));
        let keys = made.collect::<Result<Vec<_>, registry::Error>>()?;
        let mut trust = format!("threshold = {}\n", keys.len());
        for (name, key) in &keys {
            trust.push_str(&format!("\n[[officer]]\nname = \"{name}\"\npublic_key = \"{}\"\n", key.public_key));
        }
        Ok(Self { keys, trust })
    }

    /// The content of `trust.toml`.
    pub fn trust(&self) -> &str {
        &self.trust
    }

    /// Signs a registry, which may be another version of one that they have signed.
    ///
    /// # Errors
    /// When the registry breaks its own rules (e.g. a device whose transport has no identity).
    pub fn sign(&self, document: &Registry) -> Result<Documents, registry::Error> {
        let registry = document.to_toml()?;
        let sign =
            |key: &registry::KeyFiles| registry::sign(registry.as_bytes(), &key.secret, None, "laboratory registry");
        let signed = self.keys.iter().map(|(name, key)| Ok((name.clone(), sign(key)?)));
        let signatures = signed.collect::<Result<Vec<_>, registry::Error>>()?;
        Ok(Documents { registry, trust: self.trust.clone(), signatures })
    }
}

impl Documents {
    /// Verifies the documents, as those of any registry.
    ///
    /// # Errors
    /// As [`registry::verify`].
    pub fn verify(&self) -> Result<registry::VerifiedRegistry, registry::Error> {
        let anchors = registry::TrustAnchors::parse(self.trust.as_bytes())?;
        let signatures: Vec<_> = self
            .signatures
            .iter()
            .map(|(officer, text)| registry::SignatureFile { officer, bytes: text.as_bytes() })
            .collect();
        registry::verify(self.registry.as_bytes(), &signatures, &anchors)
    }
}

/// These devices, approved by a registry that names them and nothing else.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's devices have an identity")]
pub(crate) fn approve<D: IdentifiedDevice + 'static>(devices: &[Arc<D>]) -> Vec<Arc<ApprovedDevice>> {
    let facts: Vec<_> = devices.iter().map(|device| device.facts().unwrap()).collect();
    let named: Vec<_> = facts.iter().map(|facts| (facts.root.name.as_str(), facts.clone())).collect();
    let day = |text| Date::parse(text).unwrap();
    let document = registry_for(&named, day("2026-01-01"), day("2027-01-01"));
    let registry = sign(&document).unwrap().verify().unwrap();
    let host = HostFacts::read(&Kernel);
    let approve =
        |device: &Arc<D>| ApprovedDevice::approve(device.clone(), &registry, &host, day("2026-06-01")).unwrap();
    devices.iter().map(|device| Arc::new(approve(device))).collect()
}
