//! No change of a registry lets more be approved, but one that the officers wrote: what is missing, misspelt or unknown
//! refuses.

use proptest::prelude::*;

use super::*;
use crate::problem::Code;
use crate::registry::{self, Certification};

/// Signs a text whatever it says, if it is a registry at all.
fn signed(text: &str) -> Option<VerifiedRegistry> {
    let document = Registry::parse(text.as_bytes()).ok()?;
    // Signed as it stands would be the same document: the policy sees what was parsed.
    Some(laboratory::sign(&document).unwrap().verify().unwrap())
}

fn approved(text: &str) -> bool {
    signed(text).is_some_and(|registry| examine(&registry, &nvme(), &physical(), today()).approved)
}

fn secnumcloud(valid_until: &str) -> Certification {
    Certification { name: "SecNumCloud 3.2".into(), reference: "ANSSI 2025-17".into(), valid_until: day(valid_until) }
}

fn text_with(change: impl FnOnce(&mut Registry)) -> String {
    registry_with(&nvme(), change).document().to_toml().unwrap()
}

/// A registry for each predicate, in which it alone refuses.
fn refusing() -> Vec<String> {
    let changes: [&dyn Fn(&mut Registry); 13] = [
        &|r| r.valid_until = day("2026-11-20"),
        &|r| r.issued = day("2026-11-22"),
        &|r| r.devices[0].status = Status::Revoked,
        &|r| r.devices[0].site = "elsewhere".into(),
        &|r| r.devices[0].identity.serial = Some("other".into()),
        &|r| r.sites[0].inspection_valid_until = day("2026-11-20"),
        &|r| r.sites[0].inspected = day("2026-11-22"),
        &|r| r.sites[0].owner = "Cloud Inc.".into(),
        &|r| r.sites[0].administrator = "Cloud Inc.".into(),
        &|r| r.sites[0].country = "IE".into(),
        &|r| r.sites[0].jurisdictions.push("US".into()),
        &|r| r.policy.transports = vec![Transport::Sas],
        &|r| r.policy.certifications = vec!["SecNumCloud 3.2".into()],
    ];
    changes.into_iter().map(text_with).collect()
}

#[test]
fn a_line_that_is_lost_approves_nothing() {
    for text in refusing() {
        assert!(!approved(&text), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        for lost in 0..lines.len() {
            // A certification that is required of nobody is the one requirement that may be absent
            // (scelle-registry(5)).
            if lines[lost].starts_with("certifications = [\"") {
                continue;
            }
            let rest: String =
                lines.iter().enumerate().filter(|(i, _)| *i != lost).map(|(_, l)| format!("{l}\n")).collect();
            assert!(!approved(&rest), "without {:?}:\n{rest}", lines[lost]);
        }
    }
}

#[test]
fn a_line_that_is_added_or_written_twice_approves_nothing() {
    for text in refusing() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let mut twice = lines.clone();
            twice.insert(i, line);
            assert!(!approved(&twice.join("\n")), "twice {line:?}");
            let mut unknown = lines.clone();
            unknown.insert(i + 1, "override = true");
            assert!(!approved(&unknown.join("\n")), "an unknown field after {line:?}");
        }
    }
}

#[test]
fn a_certification_is_a_predicate_of_its_own() {
    let required = |r: &mut Registry| r.policy.certifications = vec!["SecNumCloud 3.2".into()];
    refused(required, Code::CertificationMissing);
    let until = |last: &'static str| {
        move |r: &mut Registry| {
            required(r);
            r.sites[0].certifications = vec![secnumcloud(last)];
        }
    };
    refused(until("2026-11-20"), Code::CertificationExpired);
    assert!(examine(&registry_with(&nvme(), until("2026-11-21")), &nvme(), &physical(), today()).approved);
    // Its name is compared as it is written.
    refused(
        |r| {
            required(r);
            r.sites[0].certifications = vec![secnumcloud("2027-12-16")];
            r.sites[0].certifications[0].name = "SECNUMCLOUD 3.2".into();
        },
        Code::CertificationMissing,
    );
}

#[test]
fn in_france_and_certified_does_not_make_up_for_another_owner() {
    let registry = registry_with(&nvme(), |r| {
        let site = &mut r.sites[0];
        (site.owner, site.certifications) = ("Cloud SAS".into(), vec![secnumcloud("2027-12-16")]);
        site.jurisdictions = vec!["FR".into(), "US".into()];
    });
    let verdict = examine(&registry, &nvme(), &physical(), today());
    assert_eq!(codes(&verdict), [Code::OwnerNotApproved, Code::JurisdictionNotApproved]);
    let [owner, law] = &verdict.reasons[..] else { panic!("{:?}", verdict.reasons) };
    assert!(
        owner.text.ends_with("that it is in FR and that it is certified SecNumCloud 3.2 does not suffice"),
        "{owner}"
    );
    assert!(law.text.contains("the law of US reaches it wherever its disks are"), "{law}");
}

#[test]
fn owners_are_compared_letter_by_letter() {
    let with_owner = |owner: &str| registry_with(&nvme(), |r| r.sites[0].owner = owner.into());
    for owner in ["laboratory", "LABORATORY", "Laboratory.", "Labor atory", "Laboratorÿ"] {
        let verdict = examine(&with_owner(owner), &nvme(), &physical(), today());
        assert_eq!(codes(&verdict), [Code::OwnerNotApproved], "{owner}");
        let hint = verdict.reasons[0].text.contains("upper and lower case count");
        assert_eq!(hint, owner.eq_ignore_ascii_case("Laboratory"), "{owner}");
    }
}

#[test]
fn the_standing_of_an_entry_ends_with_the_first_thing_it_rests_on() {
    let standing_with = |change: &dyn Fn(&mut Registry)| {
        let registry = registry_with(&nvme(), change);
        standing(registry.document(), &registry.devices()[0], today())
    };
    let plain = standing_with(&|_| ());
    assert!(plain.reasons.is_empty() && plain.rules.iter().all(|rule| rule.passed));
    assert_eq!(plain.until.last_day, day("2026-12-31"));
    let inspected = standing_with(&|r| r.sites[0].inspection_valid_until = day("2026-12-01"));
    assert_eq!(inspected.until.what, "the inspection of site laboratory");
    let certified = |r: &mut Registry| r.sites[0].certifications = vec![secnumcloud("2026-11-30")];
    assert_eq!(standing_with(&certified).until.last_day, day("2026-12-31"), "not required: nothing rests on it");
    let required = standing_with(&|r| {
        certified(r);
        r.policy.certifications = vec!["SecNumCloud 3.2".into()];
    });
    assert_eq!(required.until.last_day, day("2026-11-30"));
    assert!(required.until.what.contains("SecNumCloud 3.2 (ANSSI 2025-17) of site laboratory"));
    let revoked = standing_with(&|r| r.devices[0].status = Status::Revoked);
    assert_eq!(revoked.reasons[0].code, Code::DeviceRevoked);
    let registry = registry_with(&nvme(), certified);
    let ends: Vec<String> = expiries(registry.document()).iter().map(|e| e.last_day.to_string()).collect();
    assert_eq!(ends, ["2026-11-30", "2026-12-31", "2026-12-31"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is cut out of a signed registry and put into it: its signatures are void, or it is what it was.
    #[test]
    fn no_edit_survives_its_signatures(at in any::<prop::sample::Index>(), cut in 0..60usize, put in "[ -~\n]{0,40}") {
        let document = registry_with(&nvme(), |_| ()).document().clone();
        let mut signed = laboratory::sign(&document).unwrap();
        let before = signed.registry.clone();
        let at = at.index(before.len());
        signed.registry.replace_range(at..(at + cut).min(before.len()), &put);
        match signed.verify() {
            Ok(verified) => prop_assert_eq!(verified.document(), &document),
            Err(registry::Error::TooFewSignatures { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
        prop_assert!(signed.registry == before || signed.verify().is_err());
    }

    /// A policy that lists less never approves more, and neither does a site that more laws reach.
    #[test]
    fn listing_less_approves_no_more(keep in any::<[bool; 5]>(), us in any::<bool>(), required in any::<bool>()) {
        let wide = |r: &mut Registry| {
            r.policy.owners.push("Another".into());
            r.policy.countries.push("BE".into());
        };
        let narrow = |r: &mut Registry| {
            wide(r);
            let lists = [
                &mut r.policy.owners, &mut r.policy.administrators, &mut r.policy.countries, &mut r.policy.jurisdictions,
            ];
            for (list, keep) in lists.into_iter().zip(keep) {
                if !keep {
                    list[0] = "ZZ".into();
                }
            }
            if us {
                r.sites[0].jurisdictions.push("US".into());
            }
            if required {
                r.policy.certifications.push("SecNumCloud 3.2".into());
            }
        };
        let verdict = examine(&registry_with(&nvme(), narrow), &nvme(), &physical(), today());
        prop_assert_eq!(verdict.approved, keep[..4] == [true; 4] && !us && !required);
        prop_assert_eq!(verdict.approved, verdict.rules.iter().all(|rule| rule.passed));
        prop_assert!(examine(&registry_with(&nvme(), wide), &nvme(), &physical(), today()).approved);
    }
}
