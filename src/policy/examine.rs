//! The rules that a device, and the devices of a volume together, are examined by. Pure: facts in, verdict out.

use super::{RuleOutcome, Verdict};
use crate::probe::host::{HostFacts, Virtualization};
use crate::probe::identity::{DeviceFacts, Doubt, Node};
use crate::registry::{Date, DeviceEntry, Identity, IdentityField, Registry, Site, Transport, VerifiedRegistry};

use super::entry::ApprovedEntry;
use super::operators::{self, Recognised};
use crate::problem::{Code, Problem};

/// Filesystems that keep a file on the block device they are mounted from. Other filesystems keep it on several
/// devices, elsewhere, or in a program.
const FOLLOWED_FILESYSTEMS: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "f2fs"];

/// Examines a device: every rule, on every node of its chain. Pure.
pub fn examine(registry: &VerifiedRegistry, facts: &DeviceFacts, host: &HostFacts, today: Date) -> Verdict {
    examine_entry(registry, facts, host, today).0
}

/// As [`examine`], with the entry that an approving verdict rests on.
pub(super) fn examine_entry<'r>(
    registry: &'r VerifiedRegistry,
    facts: &DeviceFacts,
    host: &HostFacts,
    today: Date,
) -> (Verdict, Option<(&'r DeviceEntry, &'r Site)>) {
    let mut rules = Rules::default();
    rules.registry(registry.document(), today);
    rules.host(registry, host);
    let mut leaves = Vec::new();
    rules.chain(registry, &facts.root, &mut leaves);
    let mut entries: Vec<(&DeviceEntry, Option<&Site>)> = Vec::new();
    for leaf in &leaves {
        if let Some(entry) = rules.leaf(registry, leaf) {
            let site = rules.entry(registry.document(), entry, today);
            entries.push((entry, site));
        }
    }
    // A single leaf without an entry has been refused already, for its own reason.
    if leaves.len() != 1 {
        let one_site = entries.len() == leaves.len()
            && entries.first().is_some_and(|(first, _)| entries.iter().all(|(e, _)| e.site == first.site));
        rules.check(one_site, Code::ChainLeavesDiffer, || {
            let of_one_site = if one_site { ", of one site" } else { "" };
            format!("{} of {} leaves of the backing chain have an entry{of_one_site}", entries.len(), leaves.len())
        });
    }
    let entry = entries.first().copied();
    let verdict = Verdict {
        approved: rules.reasons.is_empty() && entry.is_some_and(|(_, site)| site.is_some()),
        registry_id: entry.map(|(e, _)| e.id.clone()),
        site: entry.map(|(e, _)| e.site.clone()),
        reasons: rules.reasons,
        rules: rules.outcomes,
    };
    let entry = entry.and_then(|(e, s)| Some((e, s?))).filter(|_| verdict.approved);
    (verdict, entry)
}

/// Examines the devices of a volume together: no device twice, enough of them, at enough sites. Pure.
pub fn examine_set(registry: &VerifiedRegistry, entries: &[&ApprovedEntry]) -> Vec<Problem> {
    let mut reasons = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        if entries[..i].iter().any(|e| e.registry_id == entry.registry_id || e.identity_digest == entry.identity_digest)
        {
            let text = format!("{} would hold two replicas", entry.registry_id);
            reasons.push(Problem::new(Code::DeviceUsedTwice, text));
        }
    }
    let policy = registry.policy();
    let mut sites: Vec<&str> = entries.iter().map(|e| e.site.as_str()).collect();
    sites.sort_unstable();
    sites.dedup();
    if sites.len() < policy.min_sites as usize {
        let text = format!("the replicas are at {} site(s), the policy asks for {}", sites.len(), policy.min_sites);
        reasons.push(Problem::new(Code::TooFewSites, text));
    }
    if entries.len() < policy.min_replicas as usize {
        let text = format!("{} approved replica(s), the policy asks for {}", entries.len(), policy.min_replicas);
        reasons.push(Problem::new(Code::TooFewReplicas, text));
    }
    reasons
}

/// The rules looked at so far.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) outcomes: Vec<RuleOutcome>,
    pub(super) reasons: Vec<Problem>,
}

impl Rules {
    /// Records the rule that gives `code` when it does not hold.
    pub(super) fn check(&mut self, passed: bool, code: Code, text: impl FnOnce() -> String) {
        let text = text();
        if !passed {
            self.reasons.push(Problem::new(code, text.clone()));
        }
        self.outcomes.push(RuleOutcome { rule: code.given_by(), passed, code: (!passed).then_some(code), text });
    }

    pub(super) fn registry(&mut self, registry: &Registry, today: Date) {
        let (issued, until) = (registry.issued, registry.valid_until);
        self.check(issued <= today, Code::RegistryNotYetValid, || {
            format!("registry version {} is valid from {issued}, today is {today}", registry.version)
        });
        self.check(today <= until, Code::RegistryExpired, || {
            format!("registry version {} is valid until {until}, today is {today}", registry.version)
        });
    }

    fn host(&mut self, registry: &VerifiedRegistry, host: &HostFacts) {
        let allowed = registry.policy().virtual_hosts;
        let named = [&host.vendor, &host.product].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ");
        let named = if named.is_empty() { "no firmware description".to_owned() } else { named };
        let (passed, code, what) = match host.virtualization {
            Virtualization::Physical => (true, Code::HostVirtual, "a machine of its own"),
            Virtualization::Virtual => (allowed, Code::HostVirtual, "a virtual machine"),
            Virtualization::Unknown => (allowed, Code::HostUnknown, "of unknown kind"),
        };
        self.check(passed, code, || {
            let evidence = if host.evidence.is_empty() { "" } else { ": " };
            let evidence = format!("{evidence}{}", host.evidence.join(", "));
            format!("the host is {what} ({named}){evidence}; the policy has virtual_hosts = {allowed}")
        });
        if let Some(found) = operators::of_host(host) {
            self.operator("the host", &found, registry, Code::HostOperatorNotApproved);
        }
    }

    /// Refuses a host or a device that an operator runs, unless the policy lists the operator. A laboratory registry
    /// lets it pass, and the outcome says whose it is.
    fn operator(&mut self, what: &str, found: &Recognised, registry: &VerifiedRegistry, code: Code) {
        let passed = registry.is_laboratory() || found.is_listed(registry.policy());
        let said = match (passed, registry.is_laboratory()) {
            (true, true) => "a laboratory registry does not mind",
            (true, false) => "the policy lists it as owner and administrator, and its law",
            (false, _) => "the policy does not list it as owner and administrator, and its law",
        };
        self.check(passed, code, || format!("{what} is operated by {found}; {said}"));
    }

    /// Goes down the chain, checks the nodes on the way and collects the leaves.
    fn chain<'f>(&mut self, registry: &VerifiedRegistry, node: &'f Node, leaves: &mut Vec<&'f Node>) {
        for problem in &node.problems {
            let code = match problem {
                Doubt::Unreadable(_) => Code::ChainUnreadable,
                Doubt::TooDeep => Code::ChainTooDeep,
                Doubt::TooManyNodes => Code::ChainTooLarge,
                Doubt::Cycle => Code::ChainCycle,
                Doubt::Changed(_) => Code::DeviceChanged,
                Doubt::Silent(_) => Code::DeviceSilent,
                Doubt::Disagrees(_) => Code::DeviceDisagrees,
                Doubt::CacheNotFlushed(_) => Code::WriteCacheNotFlushed,
                Doubt::ChainDisagrees(_) => Code::ChainDisagrees,
                Doubt::Unstable(_) => Code::ChainUnstable,
                Doubt::Hidden(_) => Code::ChainHidden,
            };
            self.check(false, code, || format!("{}: {problem}", node.name));
        }
        if let Some(found) = operators::of_device(node) {
            self.operator(&node.name, &found, registry, Code::DeviceOperatorNotApproved);
        }
        // Only a registry whose signed policy lists `loop` may approve a loop device. For such a registry the chain
        // ends there.
        let laboratory_loop = node.transport == Transport::Loop
            && node.loop_file.is_some()
            && registry.policy().transports.contains(&Transport::Loop);
        if let Some(file) = node.loop_file.as_ref().filter(|_| !laboratory_loop) {
            let kind = file.fs_type.as_deref().unwrap_or("a filesystem that the mount table does not show");
            let followed = file.fs_device.major != 0 && FOLLOWED_FILESYSTEMS.contains(&kind);
            self.check(followed, Code::FilesystemNotAllowed, || {
                let end = if followed { "on the device below" } else { "and where its bytes go cannot be followed" };
                format!("{} is a file on {kind} ({}), {end}", node.name, file.fs_device)
            });
        }
        if node.is_leaf() || laboratory_loop {
            leaves.push(node);
            return;
        }
        let (passed, code) = match node.transport {
            // A partition reaches its disk and nothing else.
            Transport::Partition => (true, Code::ChainNodeNotAllowed),
            Transport::Loop => (false, Code::TransportNotAllowed),
            _ => (false, Code::ChainNodeNotAllowed),
        };
        self.check(passed, code, || match passed {
            true => format!("{} is a {} of what is below", node.name, node.transport),
            false => format!(
                "{} is on the way, and no policy can approve what {} redirects: give scelle the disk itself",
                node.name, node.transport
            ),
        });
        for child in &node.children {
            self.chain(registry, child, leaves);
        }
    }

    /// Examines a leaf's transport and identity; returns its entry.
    fn leaf<'r>(&mut self, registry: &'r VerifiedRegistry, leaf: &Node) -> Option<&'r DeviceEntry> {
        let transport = leaf.transport;
        let listed = registry.policy().transports.contains(&transport);
        let unknown = matches!(transport, Transport::Unknown | Transport::Partition);
        let code = if unknown { Code::TransportUnknown } else { Code::TransportNotAllowed };
        self.check(listed && !unknown, code, || {
            let is = if listed { "lists it" } else { "does not list it" };
            format!("{} is reached by {}, the policy {is}", leaf.name, leaf.reached_by())
        });
        if let Some(file) = &leaf.loop_file {
            self.check(file.offset == 0, Code::LoopOffset, || {
                format!("{} begins at byte {} of its file", leaf.name, file.offset)
            });
        }
        let identity = leaf.identity();
        let matching: Vec<&DeviceEntry> =
            registry.devices().iter().filter(|e| differences(&e.identity, &identity).is_empty()).collect();
        match matching[..] {
            [entry] => {
                self.check(true, Code::DeviceNotListed, || format!("{} is {} in the registry", leaf.name, entry.id));
                Some(entry)
            }
            [] => {
                self.not_listed(registry, leaf, &identity);
                None
            }
            _ => {
                let ids: Vec<&str> = matching.iter().map(|e| e.id.as_str()).collect();
                self.check(false, Code::DeviceListedTwice, || {
                    format!("{} matches several entries: {}", leaf.name, ids.join(", "))
                });
                None
            }
        }
    }

    /// Refuses a device that is not listed. Says which entry it comes close to, if any, and in what it differs.
    fn not_listed(&mut self, registry: &VerifiedRegistry, leaf: &Node, identity: &Identity) {
        let shares_a_name = |entry: &&DeviceEntry| {
            IdentityField::ALL.iter().any(|f| {
                let value = entry.identity.field(*f);
                f.is_naming() && value.is_some() && value == read_field(leaf, identity, *f)
            })
        };
        let closest =
            registry.devices().iter().filter(shares_a_name).min_by_key(|e| differences(&e.identity, identity).len());
        let Some(entry) = closest else {
            self.check(false, Code::DeviceNotListed, || {
                format!("no entry of the registry has the identity of {}: {}", leaf.name, shown(identity))
            });
            return;
        };
        for difference in differences(&entry.identity, identity) {
            let (code, name) = match difference {
                None => (Code::TransportMismatch, "transport"),
                Some(field) => (mismatch_code(field), field.as_str()),
            };
            let value = |of: &Identity| match difference {
                None => of.transport.to_string(),
                Some(field) => of.field(field).unwrap_or_else(|| "not told".into()),
            };
            self.check(false, code, || {
                format!(
                    "{} resembles {}, but its {name} is {} and the registry has {}",
                    leaf.name,
                    entry.id,
                    value(identity),
                    value(&entry.identity)
                )
            });
        }
    }
}

/// In what a device differs from an entry; `None` stands for the transport. The list is empty only when the transport
/// is the same, and every field that it requires is there and equal.
fn differences(entry: &Identity, device: &Identity) -> Vec<Option<IdentityField>> {
    let mut differences = Vec::new();
    if entry.transport != device.transport {
        differences.push(None);
    }
    // A transport without identity fields cannot be approved. The parser refuses such an entry, and so would this line.
    let Some(fields) = entry.transport.identity_fields() else { return vec![None] };
    for &field in fields {
        let (want, have) = (entry.field(field), device.field(field));
        if want.is_none() || want != have {
            differences.push(Some(field));
        }
    }
    differences
}

/// A field as read from the device, also a field that identities of its transport do not have. So an NVMe disk that
/// shows an enrolled serial number over a network is told apart from a stranger.
fn read_field(node: &Node, identity: &Identity, field: IdentityField) -> Option<String> {
    match field {
        IdentityField::Serial => node.serial.clone(),
        IdentityField::Wwid => node.wwid.clone(),
        _ => identity.field(field),
    }
}

fn shown(identity: &Identity) -> String {
    let mut text = format!("transport {}", identity.transport);
    for field in IdentityField::ALL {
        if let Some(value) = identity.field(field) {
            text.push_str(&format!(", {} {value}", field.as_str()));
        }
    }
    text
}

fn mismatch_code(field: IdentityField) -> Code {
    match field {
        IdentityField::Wwid => Code::WwidMismatch,
        IdentityField::Serial => Code::SerialMismatch,
        IdentityField::Model => Code::ModelMismatch,
        IdentityField::Size => Code::SizeMismatch,
        IdentityField::FsDevice => Code::FsDeviceMismatch,
        IdentityField::Inode => Code::InodeMismatch,
        IdentityField::Name => Code::NameMismatch,
    }
}
