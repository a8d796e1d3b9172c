//! Says in words what a registry says: who may hold what until when, who signed, what ends soon.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::policy::kind::{self, AUTHORITY_PATH};
use crate::policy::{Classified, EXPIRY_WARNING_DAYS, expiries, standing};
use crate::problem::Code;
use crate::registry::{Certification, Date, DeviceEntry, IdentityField, Registry, Signature, Site, TrustAnchors, hex};

/// What a registry proves as a whole.
const CLAIM: &str = "It proves that named officers authorised these devices, and by which identity they are recognised. It does not\n\
     prove where they are: that is what the inspections are for, and why those end.\n";

/// The registry in words, as of `today`.
pub(super) fn registry(registry: &Registry, today: Date) -> String {
    let policy = &registry.policy;
    let mut text = format!(
        "Registry version {}, valid {} to {} ({})\n",
        registry.version,
        registry.issued,
        registry.valid_until,
        left(today, registry.valid_until)
    );
    text.push_str(&floor(registry, today));
    let transports: Vec<&str> = policy.transports.iter().map(|t| t.as_str()).collect();
    let certifications = match policy.certifications.is_empty() {
        true => "none is required".to_owned(),
        false => format!("{}, each of them", policy.certifications.join(", ")),
    };
    let hosts = if policy.virtual_hosts { "may be virtual, or not say" } else { "a machine of its own" };
    text.push_str("\nA device may hold a replica when all of this is so; nothing makes up for anything else:\n");
    for (name, value) in [
        ("owner", policy.owners.join(" or ")),
        ("administrator", policy.administrators.join(" or ")),
        ("country", policy.countries.join(" or ")),
        ("law", format!("none but that of {} can compel the operator", policy.jurisdictions.join(", "))),
        ("certification", certifications),
        ("transport", transports.join(" or ")),
        ("host", hosts.to_owned()),
        ("volume", format!("{} replica(s) or more, at {} site(s) or more", policy.min_replicas, policy.min_sites)),
    ] {
        let _ = writeln!(text, "  {name:<14} {value}");
    }
    for site in &registry.sites {
        text.push_str(&of_site(site, today));
    }
    for device in &registry.devices {
        text.push_str(&of_device(registry, device, today));
    }
    text + "\n" + CLAIM
}

/// What the registry can make of a volume, whoever signs it.
fn floor(registry: &Registry, today: Date) -> String {
    if registry.policy.is_laboratory() {
        return "A laboratory registry: a volume made with it is never sovereign.\n".to_owned();
    }
    // How many must sign is not in the registry, and has its own line.
    let lacking = kind::floor(registry, usize::MAX, Some(today));
    let mut text = match lacking.is_empty() {
        true => format!(
            "Good for a sovereign volume, where {AUTHORITY_PATH} names its trust anchors and two officers must sign.\n"
        ),
        false => "Good for a private volume. Not for a sovereign one, because:\n".to_owned(),
    };
    lacking.iter().for_each(|lacking| text.push_str(&format!("  {lacking}\n")));
    text
}

/// The kind of a verified registry on this host.
pub(super) fn kind_of(found: &Classified) -> String {
    let Classified { kind, lacking, threshold, officers, anchors } = found;
    let mut text = format!("{kind} registry, {threshold} of {officers} officers, trust anchors {anchors}\n");
    lacking.iter().for_each(|lacking| text.push_str(&format!("  not sovereign: {lacking}\n")));
    text
}

fn of_site(site: &Site, today: Date) -> String {
    let until = site.inspection_valid_until;
    let mut text = format!(
        "\nSite {}: {}, {}\n  owned by {}, administered by {}, reached by the law of {}\n  inspected on {}, which counts \
         until {until} ({})\n",
        site.id,
        site.name,
        site.country,
        site.owner,
        site.administrator,
        site.jurisdictions.join(", "),
        site.inspected,
        left(today, until)
    );
    for Certification { name, reference, valid_until } in &site.certifications {
        let _ = writeln!(text, "  certified {name} ({reference}) until {valid_until} ({})", left(today, *valid_until));
    }
    text
}

fn of_device(registry: &Registry, device: &DeviceEntry, today: Date) -> String {
    let identity = &device.identity;
    let fields = IdentityField::ALL.iter().filter_map(|f| Some(format!("{} {}", f.as_str(), identity.field(*f)?)));
    let fields: Vec<String> = fields.collect();
    let mut text =
        format!("\nDevice {}, at {}\n  {}: {}\n", device.id, device.site, identity.transport, fields.join(", "));
    let standing = standing(registry, device, today);
    match standing.reasons.is_empty() {
        true => {
            let _ = writeln!(
                text,
                "  may hold replicas until {}, the last day of {}",
                standing.until.last_day, standing.until.what
            );
        }
        false => standing.reasons.iter().for_each(|reason| text.push_str(&format!("  may hold nothing: {reason}\n"))),
    }
    text
}

/// Which officers have signed.
pub(super) fn signatures(anchors: &TrustAnchors, signatures: &[(String, Signature)]) -> String {
    let valid = signatures.iter().filter(|(_, signature)| *signature == Signature::Counts).count();
    let mut text =
        format!("signed by {valid} of {} officers, {} must\n", anchors.officers().len(), anchors.threshold());
    for (officer, signature) in signatures {
        let said = match signature {
            Signature::Counts => "signed".to_owned(),
            Signature::Absent => "has not signed".to_owned(),
            Signature::Void(why) => format!("DOES NOT COUNT: {why}"),
        };
        let _ = writeln!(text, "  {officer:<20} {said}");
    }
    let _ = writeln!(text, "trust anchors version {}, digest {}", anchors.version(), hex(&anchors.digest()));
    if let Some(before) = anchors.replaced().last() {
        let _ = writeln!(text, "  put in place of {} by the officers of that version", hex(before));
    }
    text
}

/// Warnings: validities that are over or end within [`EXPIRY_WARNING_DAYS`], and entries that approve nothing.
pub(super) fn warnings(registry: &Registry, today: Date) -> Vec<String> {
    let soon = expiries(registry).into_iter().filter(|e| today.days_until(e.last_day) <= EXPIRY_WARNING_DAYS);
    let mut warnings: Vec<String> =
        soon.map(|e| format!("{} ends on {} ({})", e.what, e.last_day, left(today, e.last_day))).collect();
    let mut identities: HashMap<[u8; 32], &str> = HashMap::new();
    for device in &registry.devices {
        // Validities that are over have been said, and a revoked device is meant to be refused.
        let said = |code| {
            use Code::{DeviceRevoked, InspectionExpired, RegistryExpired, RegistryNotYetValid};
            matches!(code, DeviceRevoked | InspectionExpired | RegistryExpired | RegistryNotYetValid)
        };
        let reasons = standing(registry, device, today).reasons;
        if let Some(reason) = reasons.iter().find(|reason| !said(reason.code)) {
            warnings.push(format!("{} is approved by nothing: {reason}", device.id));
        }
        if let Some(twin) = identities.insert(device.identity.digest(), &device.id) {
            warnings.push(format!("{twin} and {} have one identity: neither is approved", device.id));
        }
    }
    warnings
}

/// How long until a last day.
pub(super) fn left(today: Date, last_day: Date) -> String {
    match today.days_until(last_day) {
        0 => "today is the last day".to_owned(),
        1 => "1 day left".to_owned(),
        days if days > 0 => format!("{days} days left"),
        days => format!("OVER since {} day(s)", -days),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::policy::laboratory;
    use crate::probe::identity::{DeviceFacts, Node};
    use crate::registry::{Status, Transport};

    #[test]
    fn what_ends_within_a_month_is_said_before_it_refuses() {
        let day = |text: &str| Date::parse(text).unwrap();
        let mut root = Node::bare("sda", Transport::Virtio);
        (root.serial, root.size_bytes) = (Some("vol-1".into()), 4096);
        let facts = DeviceFacts { root };
        let mut document = laboratory::registry_for(
            &[("disk-1", facts.clone()), ("disk-2", facts)],
            day("2026-01-01"),
            day("2026-12-31"),
        );
        document.devices[1].identity.serial = Some("vol-2".into());
        let on = |document: &Registry, today: &str| warnings(document, day(today));
        assert_eq!(on(&document, "2026-11-30"), [""; 0]);
        let ends = [
            "registry version 1 ends on 2026-12-31 (30 days left)",
            "the inspection of site laboratory ends on 2026-12-31 (30 days left)",
        ];
        assert_eq!(on(&document, "2026-12-01"), ends);
        assert!(on(&document, "2026-12-30")[0].ends_with("(1 day left)"));
        assert!(on(&document, "2026-12-31")[0].ends_with("(today is the last day)"));
        assert!(on(&document, "2027-01-02")[1].ends_with("(OVER since 2 day(s))"));
        // What can never be approved, and what is refused on purpose.
        document.devices[1].identity.serial = Some("vol-1".into());
        assert_eq!(on(&document, "2026-06-01"), ["disk-1 and disk-2 have one identity: neither is approved"]);
        document.devices[1].identity.serial = Some("vol-2".into());
        document.devices[1].status = Status::Revoked;
        assert_eq!(on(&document, "2026-06-01"), [""; 0]);
        assert!(
            registry(&document, day("2026-06-01")).contains("  may hold nothing: the registry has disk-2 as revoked")
        );
        document.devices[0].site = "elsewhere".into();
        assert!(on(&document, "2026-06-01")[0].ends_with("which the registry does not describe [site-unknown]"));
    }
}
