//! What the registry alone says of an entry, without a look at any device: its site, the predicates, and the last day
//! on which they hold.

use super::RuleOutcome;
use super::examine::Rules;
use crate::problem::{Code, Problem};
use crate::registry::{Certification, Date, DeviceEntry, Policy, Registry, Site, Status, same_but_for_case};

/// How long before its last day something is said to expire soon.
pub const EXPIRY_WARNING_DAYS: i64 = 30;

/// How an entry of a registry stands on a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Why no device can be approved by the entry; empty when a device can.
    pub reasons: Vec<Problem>,
    /// Every rule that was looked at.
    pub rules: Vec<RuleOutcome>,
    /// The last day on which the entry counts if nothing is renewed, and what ends then.
    pub until: Expiry,
}

/// Something that ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    /// Last day on which it counts.
    pub last_day: Date,
    /// What ends, e.g. "the inspection of site tj-paris".
    pub what: String,
}

/// How `entry` stands on `today`. Pure, and without regard to signatures.
pub fn standing(registry: &Registry, entry: &DeviceEntry, today: Date) -> Standing {
    let mut rules = Rules::default();
    rules.registry(registry, today);
    let site = rules.entry(registry, entry, today);
    let ends = std::iter::once(of_registry(registry));
    let ends = ends.chain(site.into_iter().flat_map(|site| of_site(&registry.policy, site)));
    // Invariant: the registry's own end is always there.
    let until = ends.min().unwrap_or_else(|| of_registry(registry));
    Standing { reasons: rules.reasons, rules: rules.outcomes, until }
}

/// Everything in a registry that ends by itself, the earliest end first: the registry, the inspections of its sites,
/// and their certifications, required or not.
pub fn expiries(registry: &Registry) -> Vec<Expiry> {
    let certifications = registry.sites.iter().flat_map(|site| site.certifications.iter().map(|c| of(site, c)));
    let mut expiries: Vec<Expiry> = registry.sites.iter().map(of_inspection).chain(certifications).collect();
    expiries.push(of_registry(registry));
    expiries.sort();
    expiries
}

fn of_registry(registry: &Registry) -> Expiry {
    Expiry { last_day: registry.valid_until, what: format!("registry version {}", registry.version) }
}

fn of_inspection(site: &Site) -> Expiry {
    Expiry { last_day: site.inspection_valid_until, what: format!("the inspection of site {}", site.id) }
}

fn of(site: &Site, certification: &Certification) -> Expiry {
    let Certification { name, reference, valid_until } = certification;
    Expiry { last_day: *valid_until, what: format!("the certification {name} ({reference}) of site {}", site.id) }
}

/// The ends of a site that its devices depend on: of its inspection, and of the certifications that the policy
/// requires.
fn of_site<'a>(policy: &'a Policy, site: &'a Site) -> impl Iterator<Item = Expiry> + 'a {
    let required = site.certifications.iter().filter(|c| policy.certifications.contains(&c.name));
    std::iter::once(of_inspection(site)).chain(required.map(|c| of(site, c)))
}

impl Rules {
    /// Examines an entry and its site.
    pub(super) fn entry<'r>(&mut self, registry: &'r Registry, entry: &DeviceEntry, today: Date) -> Option<&'r Site> {
        self.check(entry.status == Status::Approved, Code::DeviceRevoked, || {
            format!("the registry has {} as {}", entry.id, entry.status)
        });
        let site = registry.site(&entry.site);
        self.check(site.is_some(), Code::SiteUnknown, || match site {
            Some(site) => format!("{} is at {} ({})", entry.id, site.name, site.id),
            None => format!("{} is at {}, which the registry does not describe", entry.id, entry.site),
        });
        let site = site?;
        self.check(site.inspected <= today, Code::InspectionInFuture, || {
            format!("site {} was inspected on {}, today is {today}", site.id, site.inspected)
        });
        let until = site.inspection_valid_until;
        self.check(today <= until, Code::InspectionExpired, || {
            format!("the inspection of site {} counts until {until}, today is {today}", site.id)
        });
        self.predicates(&registry.policy, site, today);
        self.certifications(&registry.policy, site, today);
        Some(site)
    }

    /// Owner, administrator, country, jurisdictions: independent of each other.
    fn predicates(&mut self, policy: &Policy, site: &Site, today: Date) {
        let named = [
            (&site.owner, &policy.owners, Code::OwnerNotApproved),
            (&site.administrator, &policy.administrators, Code::AdministratorNotApproved),
            (&site.country, &policy.countries, Code::CountryNotApproved),
        ];
        for (value, allowed, code) in named {
            let passed = allowed.contains(value);
            self.check(passed, code, || {
                let mut text = format!(
                    "{} of site {} is {value}, the policy has {}",
                    code.given_by(),
                    site.id,
                    allowed.join(", ")
                );
                if let Some(near) = allowed.iter().find(|a| !passed && same_but_for_case(a, value)) {
                    text.push_str(&format!(" (not the same text as {near}: upper and lower case count)"));
                }
                if !passed && code != Code::CountryNotApproved {
                    text.push_str(&not_enough(policy, site, today));
                }
                text
            });
        }
        let foreign: Vec<&str> =
            site.jurisdictions.iter().filter(|j| !policy.jurisdictions.contains(j)).map(String::as_str).collect();
        let lawful = foreign.is_empty() && !site.jurisdictions.is_empty();
        self.check(lawful, Code::JurisdictionNotApproved, || {
            let (theirs, ours) = (site.jurisdictions.join(", "), policy.jurisdictions.join(", "));
            let mut text =
                format!("the operator of site {} can be compelled by {theirs}, the policy has {ours}", site.id);
            if !lawful {
                text.push_str(&format!(": the law of {} reaches it wherever its disks are", foreign.join(", ")));
                text.push_str(&not_enough(policy, site, today));
            }
            text
        });
    }

    /// The certifications that the policy requires. No certification takes the place of another predicate.
    fn certifications(&mut self, policy: &Policy, site: &Site, today: Date) {
        for name in &policy.certifications {
            match site.certifications.iter().find(|c| c.name == *name) {
                Some(Certification { reference, valid_until, .. }) => {
                    self.check(today <= *valid_until, Code::CertificationExpired, || {
                        format!(
                            "site {} is certified {name} ({reference}) until {valid_until}, today is {today}",
                            site.id
                        )
                    });
                }
                None => self.check(false, Code::CertificationMissing, || {
                    format!("the policy requires the certification {name}, site {} does not hold it", site.id)
                }),
            }
        }
    }
}

/// The merits of a site that might seem to make up for a failed predicate, and do not.
fn not_enough(policy: &Policy, site: &Site, today: Date) -> String {
    let mut has = Vec::new();
    if policy.countries.contains(&site.country) {
        has.push(format!("that it is in {}", site.country));
    }
    let valid: Vec<&str> =
        site.certifications.iter().filter(|c| today <= c.valid_until).map(|c| c.name.as_str()).collect();
    if !valid.is_empty() {
        has.push(format!("that it is certified {}", valid.join(", ")));
    }
    match has.is_empty() {
        true => String::new(),
        false => format!("; {} does not suffice", has.join(" and ")),
    }
}
