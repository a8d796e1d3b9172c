//! The document: its fields, and the rules that hold between them.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::table::{
    COUNTRIES, COUNTRY, DAY, FLAG, ID, Kind, TEXT, TEXTS, TEXTS_OR_NONE, VERSION, check_identity, document,
};
use super::{Date, Error, Identity, IdentityField, Transport, table};
use crate::limits;

pub(super) const WHAT: &str = "the registry";

document! {
    /// The registry document, as `registry.toml` holds it.
    pub struct Registry then Registry::period {
        version: u64 = VERSION; ["registry-rolled-back", "registry-equivocal"]
            "Grows with every issue. A registry older than a volume has seen is refused, and so is another one of the same version.";
        issued: Date = DAY; ["registry-not-yet-valid"]
            "First day of validity.";
        valid_until: Date = DAY; ["registry-expired"]
            "Last day of validity; at most ten years after the first.";
        policy: Policy = POLICY; []
            "What is required of every device.";
        sites as "site": Vec<Site> = SITES, or "none" by "Vec::new"; ["site-unknown"]
            "The sites, one table each.";
        devices as "device": Vec<DeviceEntry> = DEVICES, or "none" by "Vec::new"; ["device-not-listed"]
            "The devices, one table each.";
    }

    /// The policy: independent predicates, each of which must hold; none makes up for another.
    pub struct Policy {
        owners: Vec<String> = TEXTS; ["owner-not-approved"]
            "Who may own a site and its devices.";
        administrators: Vec<String> = TEXTS; ["administrator-not-approved"]
            "Who may administer them.";
        countries: Vec<String> = COUNTRIES; ["country-not-approved"]
            "Where a site may be.";
        jurisdictions: Vec<String> = COUNTRIES; ["jurisdiction-not-approved"]
            "Whose law may be able to compel the operator of a site.";
        transports: Vec<Transport> = TRANSPORTS; ["transport-not-allowed"]
            "How a device may be reached.";
        certifications: Vec<String> = TEXTS_OR_NONE, or "none" by "Vec::new";
            ["certification-missing", "certification-expired"]
            "Certifications that every site must hold, each of them, besides all else. A certified site of another owner \
             is refused like any other.";
        min_sites: u32 = REPLICAS; ["too-few-sites"]
            "How many sites the replicas of a volume must span.";
        min_replicas: u32 = REPLICAS, or "1" by "one"; ["too-few-replicas"]
            "How many approved replicas a volume needs to take writes.";
        virtual_hosts: bool = FLAG; ["host-virtual", "host-unknown"]
            "Whether the host may be a virtual machine, or one that does not say.";
    }

    /// A place where devices are.
    pub struct Site then Site::period {
        id: String = ID; []
            "Unique among the sites.";
        name: String = TEXT; []
            "How people call it.";
        country: String = COUNTRY; ["country-not-approved"]
            "Where it is.";
        owner: String = TEXT; ["owner-not-approved"]
            "Who owns it, and its devices.";
        administrator: String = TEXT; ["administrator-not-approved"]
            "Who administers it.";
        jurisdictions: Vec<String> = COUNTRIES; ["jurisdiction-not-approved"]
            "Every country whose law can compel its owner or its administrator, wherever the devices are; each must be \
             listed by the policy.";
        inspected: Date = DAY; ["inspection-in-future"]
            "Day of the last inspection.";
        inspection_valid_until: Date = DAY; ["inspection-expired"]
            "Last day on which that inspection counts; at most ten years later.";
        certifications: Vec<Certification> = CERTIFICATIONS, or "none" by "Vec::new"; ["certification-missing"]
            "What it, or its operator, is certified for.";
    }

    /// A certification or qualification of a site or its operator.
    pub struct Certification {
        name: String = TEXT; ["certification-missing"]
            "What for, exactly as the policy calls it.";
        reference: String = TEXT; []
            "By which decision, so that it can be looked up.";
        valid_until: Date = DAY; ["certification-expired"]
            "Last day on which it counts.";
    }

    /// A device.
    pub struct DeviceEntry {
        id: String = ID; ["device-used-twice"]
            "Unique among the devices.";
        site: String = ID; ["site-unknown"]
            "Id of its site.";
        status: Status = STATUS; ["device-revoked"]
            "Whether it may be used. A revoked device stays listed, so that the refusal can say so.";
        identity: Identity = IDENTITY;
            ["device-not-listed", "device-listed-twice", "transport-mismatch", "wwid-mismatch", "serial-mismatch",
             "model-mismatch", "size-mismatch", "fs-device-mismatch", "inode-mismatch", "name-mismatch"]
            "Its transport, and every field that identities of this transport have; no other.";
    }
}

const POLICY: Kind<Policy> = Kind { shown: "table", check: |name, policy| within(name, policy.check()) };
const SITES: Kind<Vec<Site>> = Kind {
    shown: "tables",
    check: |name, sites| {
        unique(name, limits::SITES_MAX, sites.iter().map(|site| &site.id))?;
        sites.iter().try_for_each(|site| within(&format!("{name} {:?}", site.id), site.check()))
    },
};
const DEVICES: Kind<Vec<DeviceEntry>> = Kind {
    shown: "tables",
    check: |name, devices| {
        unique(name, limits::REGISTRY_DEVICES_MAX, devices.iter().map(|device| &device.id))?;
        devices.iter().try_for_each(|device| within(&format!("{name} {:?}", device.id), device.check()))
    },
};
const CERTIFICATIONS: Kind<Vec<Certification>> = Kind {
    shown: "list of tables",
    check: |name, list| {
        unique(name, limits::REGISTRY_LIST_MAX, list.iter().map(|certification| &certification.name))?;
        list.iter().try_for_each(|certification| within(name, certification.check()))
    },
};
const TRANSPORTS: Kind<Vec<Transport>> = Kind {
    shown: "list of transports",
    check: |name, transports| {
        if transports.is_empty() {
            return Err(format!("{name} must list one transport or some"));
        }
        for (i, transport) in transports.iter().enumerate() {
            if transport.identity_fields().is_none() {
                return Err(format!("{name}: a device on {transport} has no identity to approve it by"));
            }
            if transports[..i].contains(transport) {
                return Err(format!("{name} lists {transport} twice"));
            }
        }
        Ok(())
    },
};
const REPLICAS: Kind<u32> = Kind {
    shown: "number, 1 to 16",
    check: |name, n| match *n as usize {
        1..=limits::REPLICAS_MAX => Ok(()),
        _ => Err(format!("{name} must be 1 to {}", limits::REPLICAS_MAX)),
    },
};
const STATUS: Kind<Status> = Kind { shown: "\"approved\" or \"revoked\"", check: |_, _| Ok(()) };
const IDENTITY: Kind<Identity> = Kind { shown: "table", check: |name, identity| check_complete(name, identity) };

/// The words of the manual and the limit agree.
const _: () = assert!(limits::REPLICAS_MAX == 16);

fn one() -> u32 {
    1
}

fn within(what: &str, result: Result<(), String>) -> Result<(), String> {
    result.map_err(|detail| format!("{what}: {detail}"))
}

/// Refuses more than `max` names, and two names that differ in nothing but upper and lower case.
fn unique<'a>(what: &str, max: usize, names: impl ExactSizeIterator<Item = &'a String>) -> Result<(), String> {
    if names.len() > max {
        return Err(format!("there are {} tables {what}, more than the {max} that are read", names.len()));
    }
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name.to_lowercase()) {
            return Err(format!("two tables {what} are called {name:?}"));
        }
    }
    Ok(())
}

/// An identity has every field of its transport and no other.
fn check_complete(name: &str, identity: &Identity) -> Result<(), String> {
    let transport = identity.transport;
    let Some(fields) = transport.identity_fields() else {
        return Err(format!("{name}: a device on {transport} has no identity to approve it by"));
    };
    for field in IdentityField::ALL {
        let shown = format!("{name}.{}", field.as_str());
        match (identity.field(field), fields.contains(&field)) {
            (None, true) => return Err(format!("{shown} is missing")),
            (Some(_), false) => return Err(format!("{shown} does not belong to transport {transport}")),
            (Some(value), true) => check_identity(&shown, &value)?,
            (None, false) => {}
        }
    }
    if identity.size == Some(0) {
        return Err(format!("{name}.size is zero"));
    }
    Ok(())
}

/// Every approval ends: its last day is at most ten years after its first.
fn check_period(from: (&str, Date), until: (&str, Date)) -> Result<(), String> {
    let ((from_name, from), (until_name, until)) = (from, until);
    if until < from {
        return Err(format!("{until_name} ({until}) is before {from_name} ({from})"));
    }
    if from.days_until(until) > limits::VALIDITY_DAYS_MAX {
        return Err(format!("{until_name} ({until}) is more than ten years after {from_name} ({from})"));
    }
    Ok(())
}

impl Policy {
    /// Whether the policy lists a transport that only a laboratory has.
    pub fn is_laboratory(&self) -> bool {
        self.transports.iter().any(|t| t.is_laboratory())
    }
}

impl Site {
    fn period(&self) -> Result<(), String> {
        check_period(("inspected", self.inspected), ("inspection_valid_until", self.inspection_valid_until))
    }
}

/// Whether a device of the registry may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It may be used.
    Approved,
    /// It may not be used any more.
    Revoked,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Approved => "approved",
            Self::Revoked => "revoked",
        })
    }
}

impl Registry {
    fn period(&self) -> Result<(), String> {
        check_period(("issued", self.issued), ("valid_until", self.valid_until))
    }

    /// Parses and checks a document. Signatures are not looked at: see [`super::verify`].
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Syntax`] (also for unknown or missing fields), [`Error::Invalid`].
    pub fn parse(document: &[u8]) -> Result<Self, Error> {
        let registry: Self = table::parse(WHAT, document, limits::REGISTRY_BYTES_MAX)?;
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

    /// The site of this id.
    pub fn site(&self, id: &str) -> Option<&Site> {
        self.sites.iter().find(|site| site.id == id)
    }
}
