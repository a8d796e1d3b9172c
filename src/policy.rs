//! From (registry, device facts, host facts, day) to a verdict, and from an approving verdict to an [`ApprovedDevice`].
//!
//! [`examine`] is pure and denies by default: a device is approved only when every rule held on every node of its
//! backing chain down to every leaf. [`ApprovedDevice::approve`] is the only maker of what the write path takes.

mod approved;
mod examine;
pub mod laboratory;
pub mod load;
pub mod operators;

pub use approved::{ApprovedDevice, ApprovedEntry, Refused, WriteError};
pub use examine::{examine, examine_set};

use serde::Serialize;

/// Stable code of a reason. Once given, a code keeps its meaning; retired ones stay as comments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// The registry is not valid yet.
    RegistryNotYetValid,
    /// The registry's validity is over.
    RegistryExpired,
    /// The registry is older than the one the device was approved with.
    RegistryRolledBack,
    /// A laboratory registry for a sovereign volume, or the other way round.
    RegistryKindChanged,
    /// The host is a virtual machine and the policy does not allow it.
    HostVirtual,
    /// The host does not say whether it is a virtual machine and the policy does not allow it.
    HostUnknown,
    /// The host is that of an operator whom the policy does not list.
    HostOperatorNotApproved,
    /// The device is that of an operator whom the policy does not list.
    DeviceOperatorNotApproved,
    /// A device of a kind that can be asked who it is did not answer, or not usably.
    DeviceSilent,
    /// The device answers something else than what the kernel shows of it.
    DeviceDisagrees,
    /// The device has a volatile cache that the kernel would not flush.
    WriteCacheNotFlushed,
    /// Two sources about what is below a node differ.
    ChainDisagrees,
    /// What is below a node may be about to change.
    ChainUnstable,
    /// Bytes go, or may go, to where nothing can be examined.
    ChainHidden,
    /// A file under a loop device is on a filesystem whose devices cannot be followed.
    FilesystemNotAllowed,
    /// The device's facts could not be read.
    DeviceUnreadable,
    /// The device is not the one that was opened any more.
    DeviceChanged,
    /// The device has another identity than when it was approved.
    DeviceSwapped,
    /// A node of the chain could not be read wholly.
    ChainUnreadable,
    /// The chain is deeper than is followed.
    ChainTooDeep,
    /// The chain has more nodes than are followed.
    ChainTooLarge,
    /// The chain is a circle.
    ChainCycle,
    /// A node that combines or redirects devices in a way no policy can allow.
    ChainNodeNotAllowed,
    /// The leaves are entries of several sites, or there is none.
    ChainLeavesDiffer,
    /// The transport is not recognised.
    TransportUnknown,
    /// The policy does not list the transport.
    TransportNotAllowed,
    /// No entry of the registry has this identity.
    DeviceNotListed,
    /// Several entries of the registry match.
    DeviceListedTwice,
    /// The entry says revoked.
    DeviceRevoked,
    /// An entry almost matches, but its transport differs.
    TransportMismatch,
    /// An entry almost matches, but its world-wide identifier differs.
    WwidMismatch,
    /// An entry almost matches, but its serial number differs.
    SerialMismatch,
    /// An entry almost matches, but its model differs.
    ModelMismatch,
    /// An entry almost matches, but its size differs.
    SizeMismatch,
    /// An entry almost matches, but the filesystem of its file differs.
    FsDeviceMismatch,
    /// An entry almost matches, but the inode of its file differs.
    InodeMismatch,
    /// An entry almost matches, but its name differs.
    NameMismatch,
    /// A loop device that does not begin at the beginning of its file.
    LoopOffset,
    /// The entry names a site that the registry does not have.
    SiteUnknown,
    /// The site's inspection is in the future.
    InspectionInFuture,
    /// The site's inspection does not count any more.
    InspectionExpired,
    /// The policy does not list the site's owner.
    OwnerNotApproved,
    /// The policy does not list the site's administrator.
    AdministratorNotApproved,
    /// The policy does not list the site's country.
    CountryNotApproved,
    /// A jurisdiction that can compel the site's operator is not listed by the policy.
    JurisdictionNotApproved,
    /// Two replicas are the same device.
    DeviceUsedTwice,
    /// The replicas span too few sites.
    TooFewSites,
    /// Fewer replicas than the policy asks for.
    TooFewReplicas,
    /// The device was fenced by the volume, e.g. after an error.
    Fenced,
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // serde's name of the variant is the one list of codes.
        self.serialize(f)
    }
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Stable code.
    pub code: ReasonCode,
    /// The same for people, with the values.
    pub text: String,
}

impl Reason {
    /// A reason.
    pub fn new(code: ReasonCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]", self.text, self.code)
    }
}

/// A rule and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleOutcome {
    /// Which rule.
    pub rule: &'static str,
    /// Whether it held.
    pub passed: bool,
    /// What it looked at.
    pub text: String,
}

/// What the policy says of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether it may hold a replica.
    pub approved: bool,
    /// Id of the registry's entry, if one matches.
    pub registry_id: Option<String>,
    /// Id of the entry's site.
    pub site: Option<String>,
    /// Why not: empty exactly when approved.
    pub reasons: Vec<Reason>,
    /// Every rule that was looked at.
    pub rules: Vec<RuleOutcome>,
}

impl Verdict {
    /// A refusal for one reason, without having looked at the rules.
    pub fn refused(reason: Reason) -> Self {
        Self { approved: false, registry_id: None, site: None, reasons: vec![reason], rules: Vec::new() }
    }

    /// Whether this code is among the reasons.
    pub fn has(&self, code: ReasonCode) -> bool {
        self.reasons.iter().any(|r| r.code == code)
    }
}

#[cfg(test)]
mod tests;
