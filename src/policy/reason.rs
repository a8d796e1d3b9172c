//! Reasons: one table of codes makes the type and describes it. The manual page scelle-registry(5) is compared with it
//! by a test.

use serde::{Serialize, Serializer};

/// Makes [`ReasonCode`] from its rows: variant, code, the rule that gives it, meaning, what to do.
macro_rules! reasons {
    ($($variant:ident $code:literal by $rule:literal $meaning:literal $remedy:literal)*) => {
        /// Stable code of a reason. Once given, a code keeps its meaning; retired ones stay as comments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ReasonCode {$(
            #[doc = $meaning]
            #[doc = ""]
            #[doc = $remedy]
            $variant,
        )*}

        impl ReasonCode {
            /// Every code, in the order of the manual.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code.
            pub const fn as_str(self) -> &'static str {
                match self {$(Self::$variant => $code,)*}
            }

            /// The rule that gives it.
            pub const fn rule(self) -> &'static str {
                match self {$(Self::$variant => $rule,)*}
            }

            /// What it means.
            pub const fn meaning(self) -> &'static str {
                match self {$(Self::$variant => $meaning,)*}
            }

            /// What to do about it.
            pub const fn remedy(self) -> &'static str {
                match self {$(Self::$variant => $remedy,)*}
            }
        }
    };
}

reasons! {
    RegistryNotYetValid "registry-not-yet-valid" by "registry-issued"
        "The registry is not valid yet."
        "Look at the host's clock. If it is right, use the registry in force until the day this one begins."
    RegistryExpired "registry-expired" by "registry-valid"
        "The validity of the registry is over."
        "Have the officers issue and sign the next version."
    RegistryRolledBack "registry-rolled-back" by "registry-version"
        "The registry is older than the one the device was approved with."
        "Put the newest registry and its signatures back in place."
    RegistryOther "registry-other" by "registry-trust"
        "The trust anchors are neither those that the volume trusts nor successors that their officers have signed."
        "Use the trust.toml of the volume, with every trust.toml.N since and its signatures. No other officers can open it."
    RegistryKindChanged "registry-kind-changed" by "registry-kind"
        "A laboratory registry for a sovereign volume, or the other way round."
        "Use a registry of the kind the volume was made with. The kind of a volume never changes."
    HostVirtual "host-virtual" by "host"
        "The host is a virtual machine and the policy does not allow it."
        "Move the devices to a machine of the ministry's own. In a virtual machine every identity is the hypervisor's word."
    HostUnknown "host-unknown" by "host"
        "The host does not say whether it is a virtual machine, and the policy does not allow that."
        "Use a host whose firmware describes itself (DMI)."
    HostOperatorNotApproved "host-operator-not-approved" by "host-operator"
        "The host is that of an operator whom the policy does not list."
        "Move the devices to a machine of the ministry's own. A place or a certificate does not change whose order the operator obeys."
    DeviceOperatorNotApproved "device-operator-not-approved" by "device-operator"
        "The device is that of an operator whom the policy does not list."
        "Use a disk of the ministry's own. A place or a certificate does not change whose order the operator obeys."
    DeviceSilent "device-silent" by "chain-readable"
        "A device of a kind that can be asked who it is did not answer, or not usably."
        "Look at the cabling and at the kernel's log (dmesg). A disk that does not say who it is cannot be approved."
    DeviceDisagrees "device-disagrees" by "chain-readable"
        "The device answers something else than what the kernel shows of it."
        "The device was exchanged or changed since the kernel found it, or it lies. Find out what it is before it is used again."
    WriteCacheNotFlushed "write-cache-not-flushed" by "chain-readable"
        "The device has a volatile cache that the kernel would not flush."
        "Set queue/write_cache of the device back to what it is (write back), and find out who changed it."
    ChainDisagrees "chain-disagrees" by "chain-readable"
        "Two sources about what is below a node differ."
        "Undo the stack of devices and use the disk itself."
    ChainUnstable "chain-unstable" by "chain-readable"
        "What is below a node may be about to change."
        "Finish or undo what was begun on it (dmsetup info), or use the disk itself."
    ChainHidden "chain-hidden" by "chain-readable"
        "Bytes go, or may go, to where nothing can be examined."
        "Use the disk itself."
    DeviceUnreadable "device-unreadable" by "device"
        "The device's facts could not be read."
        "Look at the cabling and at the kernel's log (dmesg), then inspect it again."
    DeviceChanged "device-changed" by "device"
        "The device is not the one that was opened any more."
        "Find out who exchanged it, and inspect what is there now."
    DeviceSwapped "device-swapped" by "device"
        "The device has another identity than when it was approved."
        "Put the device back that was there, or replace the replica."
    ChainUnreadable "chain-unreadable" by "chain-readable"
        "A node of the backing chain could not be read wholly."
        "What could not be read may hide a device elsewhere. Look at the kernel's log; use the disk itself."
    ChainTooDeep "chain-too-deep" by "chain-readable"
        "The backing chain is deeper than is followed."
        "Use the disk itself, not what is stacked on it."
    ChainTooLarge "chain-too-large" by "chain-readable"
        "The backing chain has more nodes than are followed."
        "Use the disks themselves, not what is stacked on them."
    ChainCycle "chain-cycle" by "chain-readable"
        "The backing chain is a circle."
        "Undo the stack of devices and use the disk itself."
    ChainNodeNotAllowed "chain-node-not-allowed" by "chain-node"
        "A node combines or redirects devices in a way that no policy can allow."
        "Use the disk itself: scelle encrypts and mirrors on its own, so dm-crypt, LVM and md are not needed below it."
    ChainLeavesDiffer "chain-leaves-differ" by "leaves"
        "The leaves of the backing chain are entries of several sites, or have none."
        "Use one disk for each replica."
    TransportUnknown "transport-unknown" by "transport"
        "The transport is not recognised."
        "There is nothing by which this device could be approved. Use a disk of a listed transport."
    TransportNotAllowed "transport-not-allowed" by "transport"
        "The policy does not list the transport."
        "Use a disk of a listed transport. What comes over a network may be anywhere."
    DeviceNotListed "device-not-listed" by "identity"
        "No entry of the registry has this identity."
        "If the device is to be used, describe it (scelle registry new --from DEV), and have the officers sign a registry that lists it."
    DeviceListedTwice "device-listed-twice" by "identity"
        "Several entries of the registry have this identity."
        "Have the officers remove all but one, and sign."
    TransportMismatch "transport-mismatch" by "identity"
        "An entry almost matches, but its transport differs."
        "An enrolled identity over another transport is a copy or a relay. Find out what the device really is."
    WwidMismatch "wwid-mismatch" by "identity"
        "An entry almost matches, but its world-wide identifier differs."
        "Take it for a copied identity until somebody has looked at the device."
    SerialMismatch "serial-mismatch" by "identity"
        "An entry almost matches, but its serial number differs."
        "Compare with the label on the disk. Another disk needs an entry of its own."
    ModelMismatch "model-mismatch" by "identity"
        "An entry almost matches, but its model differs."
        "Take it for a copied identity until somebody has looked at the device."
    SizeMismatch "size-mismatch" by "identity"
        "An entry almost matches, but its size differs."
        "Find out why the size changed (a new namespace, a host-protected area, a copy), then have it enrolled again."
    FsDeviceMismatch "fs-device-mismatch" by "identity"
        "An entry almost matches, but the filesystem of its file differs."
        "Make the laboratory registry again: device numbers of filesystems change."
    InodeMismatch "inode-mismatch" by "identity"
        "An entry almost matches, but the inode of its file differs."
        "Make the laboratory registry again, for this file."
    NameMismatch "name-mismatch" by "identity"
        "An entry almost matches, but its name differs."
        "Make the laboratory registry again, for this device."
    FilesystemNotAllowed "filesystem-not-allowed" by "chain-node"
        "A file under a loop device is on a filesystem whose devices cannot be followed."
        "Use a disk, not a file."
    LoopOffset "loop-offset" by "loop-offset"
        "A loop device that does not begin at the beginning of its file."
        "Attach the whole file (losetup without --offset)."
    DeviceRevoked "device-revoked" by "status"
        "The entry says revoked."
        "Do not use it. Replace the replica by another device."
    SiteUnknown "site-unknown" by "site"
        "The entry names a site that the registry does not describe."
        "Have the officers describe the site, and sign."
    InspectionInFuture "inspection-in-future" by "inspection-done"
        "The inspection of the site is in the future."
        "Look at the host's clock, and at the date in the registry."
    InspectionExpired "inspection-expired" by "inspection-valid"
        "The inspection of the site does not count any more."
        "Have the site inspected, and the officers sign a registry with the new date."
    OwnerNotApproved "owner-not-approved" by "owner"
        "The policy does not list the owner of the site."
        "Use a device of a listed owner. Where a device is, and what its site is certified for, does not make up for it."
    AdministratorNotApproved "administrator-not-approved" by "administrator"
        "The policy does not list the administrator of the site."
        "Use a site of a listed administrator: who administers a device can be ordered to hand it over."
    CountryNotApproved "country-not-approved" by "country"
        "The policy does not list the country of the site."
        "Use a site in a listed country."
    JurisdictionNotApproved "jurisdiction-not-approved" by "jurisdictions"
        "A law that can compel the operator of the site is not listed by the policy."
        "Use a site whose owner and administrator answer to listed laws only, wherever the disks are."
    CertificationMissing "certification-missing" by "certifications"
        "The site lacks a certification that the policy requires."
        "Use a site that holds it, or have the officers enter it with its reference, and sign."
    CertificationExpired "certification-expired" by "certifications"
        "A certification of the site that the policy requires is over."
        "Have it renewed, and the officers sign a registry with the new date."
    DeviceUsedTwice "device-used-twice" by "distinct"
        "Two replicas are the same device."
        "Give each replica a device of its own."
    TooFewSites "too-few-sites" by "min-sites"
        "The replicas span fewer sites than the policy asks for."
        "Add a replica at another site."
    TooFewReplicas "too-few-replicas" by "min-replicas"
        "There are fewer approved replicas than the policy asks for."
        "Bring the missing replicas back, or add others."
    Fenced "fenced" by "volume"
        "The volume fenced the device, after an error."
        "See scelle status for the error. Have the device looked at or replaced."
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
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
