//! From (registry, device facts, host facts, day) to a verdict, and from an approving verdict to an [`ApprovedDevice`].
//!
//! [`examine`] is pure and denies by default: a device is approved only when every rule held on every node of its
//! backing chain, down to every leaf. [`ApprovedDevice::approve`] is the only maker of an [`ApprovedDevice`], and the
//! write path takes nothing else.
//!
//! How a device's facts are read is in [`probe`](crate::probe); how a registry is verified, in
//! [`registry`](crate::registry).

mod approved;
pub mod clock;
mod entry;
mod examine;
pub mod kind;
pub mod laboratory;
pub mod load;
pub mod operators;
mod standing;

pub use approved::{ApprovedDevice, DeviceMeters, Refused, WriteError};
pub use entry::ApprovedEntry;
pub use examine::{examine, examine_set};
pub use kind::{Classified, Kind};
pub use standing::{EXPIRY_WARNING_DAYS, Expiry, Standing, expiries, standing};

use serde::Serialize;

use crate::problem::{Code, Problem};

/// Reasons in one line. The first reason is its text alone: where the line is shown, its code stands for all of them.
pub fn in_a_line(reasons: &[Problem]) -> String {
    let Some((first, others)) = reasons.split_first() else { return String::new() };
    others.iter().fold(first.text.clone(), |line, reason| format!("{line}; {reason}"))
}

/// A rule and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleOutcome {
    /// Which rule.
    pub rule: &'static str,
    /// Whether it held.
    pub passed: bool,
    /// The code of its reason, when the rule did not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What the rule looked at.
    pub text: String,
}

/// What the policy says of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether the device may hold a replica.
    pub approved: bool,
    /// Id of the registry's entry, if one matches.
    pub registry_id: Option<String>,
    /// Id of the entry's site.
    pub site: Option<String>,
    /// Why not: empty exactly when approved.
    pub reasons: Vec<Problem>,
    /// Every rule that was looked at.
    pub rules: Vec<RuleOutcome>,
}

impl Verdict {
    /// A refusal for one reason, without a look at the rules.
    pub fn refused(reason: Problem) -> Self {
        Self { approved: false, registry_id: None, site: None, reasons: vec![reason], rules: Vec::new() }
    }

    /// Whether this code is among the reasons.
    pub fn has(&self, code: Code) -> bool {
        self.reasons.iter().any(|r| r.code == code)
    }
}

#[cfg(test)]
mod tests;
