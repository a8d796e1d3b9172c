//! What a registry says, in words: who may hold what until when, who signed, what ends soon.

use std::fmt::Write as _;

use crate::policy::{EXPIRY_WARNING_DAYS, Reason, expiries, standing};
use crate::registry::{Certification, Date, DeviceEntry, IdentityField, Registry, Signature, Site, TrustAnchors, hex};

/// What the whole of it proves.
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
    text.push_str(match policy.is_laboratory() {
        true => "A laboratory registry: a volume made with it is never sovereign.\n",
        false => "A sovereign registry.\n",
    });
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
    let _ = write!(text, "trust anchors version {}, digest {}\n", anchors.version(), hex(&anchors.digest()));
    if let Some(before) = anchors.replaced().last() {
        let _ = writeln!(text, "  put in place of {} by the officers of that version", hex(before));
    }
    text
}

/// What is over or ends within [`EXPIRY_WARNING_DAYS`], and which entries approve nothing.
pub(super) fn warnings(registry: &Registry, today: Date) -> Vec<String> {
    let soon = expiries(registry).into_iter().filter(|e| today.days_until(e.last_day) <= EXPIRY_WARNING_DAYS);
    let mut warnings: Vec<String> =
        soon.map(|e| format!("{} ends on {} ({})", e.what, e.last_day, left(today, e.last_day))).collect();
    for device in &registry.devices {
        let reasons = standing(registry, device, today).reasons;
        // What is over has been said, and a revoked device is meant to be refused.
        let other = |reason: &&Reason| {
            use crate::policy::ReasonCode as Code;
            !matches!(
                reason.code,
                Code::DeviceRevoked | Code::RegistryExpired | Code::RegistryNotYetValid | Code::InspectionExpired
            )
        };
        warnings
            .extend(reasons.iter().find(other).map(|reason| format!("{} is approved by nothing: {reason}", device.id)));
        let twin = registry.devices.iter().take_while(|d| d.id != device.id).find(|d| d.identity == device.identity);
        warnings
            .extend(twin.map(|twin| format!("{} and {} have one identity: neither is approved", twin.id, device.id)));
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
