//! The document: parsing and the rules that hold inside of it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Date, Error, Identity, IdentityField, Transport};
use crate::limits;

const WHAT: &str = "the registry";

/// The registry document, as `registry.toml` holds it. Every field is required and no other is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Grows with every issue, from 1.
    pub version: u64,
    /// First day of validity.
    pub issued: Date,
    /// Last day of validity.
    pub valid_until: Date,
    /// What is required of every device.
    pub policy: Policy,
    /// The sites.
    #[serde(rename = "site", default)]
    pub sites: Vec<Site>,
    /// The devices.
    #[serde(rename = "device", default)]
    pub devices: Vec<DeviceEntry>,
}

/// The policy: independent predicates, each of which must hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Who may own a site and its devices.
    pub owners: Vec<String>,
    /// Who may administer it.
    pub administrators: Vec<String>,
    /// Countries (ISO 3166-1 alpha-2) where it may be.
    pub countries: Vec<String>,
    /// Jurisdictions that may be able to compel its operator.
    pub jurisdictions: Vec<String>,
    /// Transports a leaf may have.
    pub transports: Vec<Transport>,
    /// How many sites a volume's replicas must span.
    pub min_sites: u32,
    /// How many approved replicas a volume needs to accept writes. 1 unless given.
    #[serde(default = "one")]
    pub min_replicas: u32,
    /// Whether the host may be a virtual machine, or one that does not say.
    pub virtual_hosts: bool,
}

fn one() -> u32 {
    1
}

impl Policy {
    /// Whether the policy lists a transport that only a laboratory has.
    pub fn is_laboratory(&self) -> bool {
        self.transports.iter().any(|t| t.is_laboratory())
    }
}

/// A place where devices are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Identifier, unique in the registry.
    pub id: String,
    /// How people call it.
    pub name: String,
    /// Country, ISO 3166-1 alpha-2.
    pub country: String,
    /// Who owns it.
    pub owner: String,
    /// Who administers it.
    pub administrator: String,
    /// Jurisdictions that can compel its operator; at least one.
    pub jurisdictions: Vec<String>,
    /// Day of the last inspection.
    pub inspected: Date,
    /// Last day on which that inspection counts.
    pub inspection_valid_until: Date,
}

/// A device of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// Identifier, unique in the registry.
    pub id: String,
    /// Id of its site.
    pub site: String,
    /// Whether it may be used.
    pub status: Status,
    /// By what it is recognised; complete for its transport.
    pub identity: Identity,
}

/// Whether a device of the registry may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It may.
    Approved,
    /// It may not, any more.
    Revoked,
}

/// Refuses a document that is larger than [`limits::REGISTRY_BYTES_MAX`].
pub(super) fn check_size(document: &[u8]) -> Result<(), Error> {
    let (bytes, max) = (document.len(), limits::REGISTRY_BYTES_MAX);
    if bytes > max { Err(Error::TooLarge { what: WHAT, bytes, max }) } else { Ok(()) }
}

impl Registry {
    /// Parses and checks a document. This says nothing of its signatures: see [`super::verify`].
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Syntax`] (also for unknown or missing fields), [`Error::Invalid`].
    pub fn parse(document: &[u8]) -> Result<Self, Error> {
        check_size(document)?;
        let text = std::str::from_utf8(document)
            .map_err(|e| Error::Syntax { what: WHAT, detail: format!("not UTF-8: {e}") })?;
        let registry: Self =
            toml::from_str(text).map_err(|e| Error::Syntax { what: WHAT, detail: e.to_string().trim_end().into() })?;
        registry.check().map_err(|detail| Error::Invalid { what: WHAT, detail })?;
        Ok(registry)
    }

    /// The document as TOML.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it breaks the rules that [`Registry::parse`] checks.
    pub fn to_toml(&self) -> Result<String, Error> {
        self.check().map_err(|detail| Error::Invalid { what: WHAT, detail })?;
        toml::to_string(self).map_err(|e| Error::Invalid { what: WHAT, detail: e.to_string() })
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 {
            return Err("version must be at least 1".into());
        }
        if self.valid_until < self.issued {
            return Err(format!("valid_until ({}) is before issued ({})", self.valid_until, self.issued));
        }
        self.policy.check()?;
        if self.sites.len() > limits::SITES_MAX || self.devices.len() > limits::REGISTRY_DEVICES_MAX {
            return Err("too many sites or devices".into());
        }
        let mut ids = HashSet::new();
        for site in &self.sites {
            site.check().map_err(|e| format!("site {:?}: {e}", site.id))?;
            if !ids.insert(site.id.as_str()) {
                return Err(format!("two sites have the id {:?}", site.id));
            }
        }
        ids.clear();
        for device in &self.devices {
            device.check().map_err(|e| format!("device {:?}: {e}", device.id))?;
            if !ids.insert(device.id.as_str()) {
                return Err(format!("two devices have the id {:?}", device.id));
            }
        }
        Ok(())
    }
}

impl Policy {
    fn check(&self) -> Result<(), String> {
        check_list("policy.owners", &self.owners)?;
        check_list("policy.administrators", &self.administrators)?;
        check_list("policy.jurisdictions", &self.jurisdictions)?;
        check_list("policy.countries", &self.countries)?;
        self.countries.iter().try_for_each(|c| check_country(c))?;
        if self.transports.is_empty() || self.transports.len() > limits::REGISTRY_LIST_MAX {
            return Err("policy.transports must list one transport or some".into());
        }
        if let Some(transport) = self.transports.iter().find(|t| t.identity_fields().is_none()) {
            return Err(format!("policy.transports: a device on {transport} has no identity to approve it by"));
        }
        for (name, value) in [("min_sites", self.min_sites), ("min_replicas", self.min_replicas)] {
            if value == 0 || value as usize > limits::REPLICAS_MAX {
                return Err(format!("policy.{name} must be 1 to {}", limits::REPLICAS_MAX));
            }
        }
        Ok(())
    }
}

impl Site {
    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        for (name, text) in [("name", &self.name), ("owner", &self.owner), ("administrator", &self.administrator)] {
            check_text(name, text)?;
        }
        check_country(&self.country)?;
        check_list("jurisdictions", &self.jurisdictions)?;
        if self.inspection_valid_until < self.inspected {
            return Err("inspection_valid_until is before inspected".into());
        }
        Ok(())
    }
}

impl DeviceEntry {
    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        check_id(&self.site)?;
        let transport = self.identity.transport;
        let Some(fields) = transport.identity_fields() else {
            return Err(format!("a device on {transport} has no identity to approve it by"));
        };
        for field in IdentityField::ALL {
            match (self.identity.field(field), fields.contains(&field)) {
                (None, true) => return Err(format!("identity.{} is missing", field.as_str())),
                (Some(_), false) => {
                    return Err(format!("identity.{} does not belong to transport {transport}", field.as_str()));
                }
                (Some(value), true) => check_text(field.as_str(), &value)?,
                (None, false) => {}
            }
        }
        if self.identity.size == Some(0) {
            return Err("identity.size is zero".into());
        }
        Ok(())
    }
}

/// An id is 1 to 64 ASCII letters, digits, `.`, `_`, `-`, and begins with a letter or a digit.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let bytes = id.as_bytes();
    if bytes.len() > limits::REGISTRY_ID_MAX
        || !bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        || !bytes.iter().all(legal)
    {
        return Err(format!(
            "{:?} is not an identifier (1 to {} letters, digits, '.', '_', '-')",
            id.chars().take(80).collect::<String>(),
            limits::REGISTRY_ID_MAX
        ));
    }
    Ok(())
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > limits::REGISTRY_TEXT_MAX || text.chars().any(char::is_control) {
        return Err(format!("{name} must be 1 to {} bytes without control characters", limits::REGISTRY_TEXT_MAX));
    }
    if text.trim() != text {
        return Err(format!("{name} begins or ends with a space"));
    }
    Ok(())
}

fn check_list(name: &str, list: &[String]) -> Result<(), String> {
    if list.is_empty() || list.len() > limits::REGISTRY_LIST_MAX {
        return Err(format!("{name} must list 1 to {} values", limits::REGISTRY_LIST_MAX));
    }
    list.iter().try_for_each(|text| check_text(name, text))
}

fn check_country(country: &str) -> Result<(), String> {
    if country.len() == 2 && country.bytes().all(|b| b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(format!("country {country:?} is not a two-letter code (ISO 3166-1 alpha-2)"))
}
