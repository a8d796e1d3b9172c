//! Records, their bytes, and how they are chained. Pure: `trail` adds records, and `verify` verifies them.
//!
//! A record is one line of JSON (RFC 8259, UTF-8) without line breaks, at most
//! [`AUDIT_RECORD_BYTES_MAX`](crate::limits::AUDIT_RECORD_BYTES_MAX) bytes:
//!
//! | field | what |
//! |---|---|
//! | `seq` | number of the record: 1, 2, 3, … without a gap |
//! | `time` | by the host's clock, UTC, `YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ` (RFC 3339, always nine decimals) |
//! | `actor` | who: an object with `kind` |
//! | `object` | to what: an object with `kind` |
//! | `event` | code of the event |
//! | `details` | what else belongs to the event; may be absent |
//! | `reasons` | list of `code` and `text`; absent when empty |
//! | `repeated` | `count`, `first` and `last` time of equal events that were not recorded one by one; absent when none |
//! | `reported` | present when a host reported it later: `host`, and `seq`, `time`, `digest` there, and whether that chain was `intact` |
//! | `prev` | digest of the record before |
//!
//! The **digest** of a record is the SHA-384 of exactly its bytes, in 96 lower-case hexadecimal digits. The first
//! record has none before it: in its place stands the SHA-384 of the 51 bytes `scelle audit 1 UUID`.
//!
//! So nothing has to be brought into a canonical form to verify a chain, nor understood: `sha384sum` and a text editor
//! do.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::event::{Entry, Reason};
use crate::crypto::sha384;
use crate::registry::{hex, unhex, utc_second};
use crate::units::Uuid;

/// A SHA-384, written in hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 48]);

impl Digest {
    /// The digest of a record's bytes.
    pub fn of(record: &[u8]) -> Self {
        Self(sha384(&[record]))
    }

    /// What the first record of this volume's trail names as the record before.
    pub fn genesis(volume: Uuid) -> Self {
        Self(sha384(&[b"scelle audit 1 ", volume.to_string().as_bytes()]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        unhex(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not a SHA-384 in 96 lower-case hexadecimal digits"))
    }
}

/// Equal events that were counted instead of recorded one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    /// How many, besides the ones that were recorded.
    pub count: u64,
    /// Time of the first of them.
    pub first: String,
    /// Time of the last of them.
    pub last: String,
}

/// The origin of a record that a host kept until the volume could be written. The volume's chain did not cover the
/// record until then: it is that host's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Name of the host.
    pub host: String,
    /// Number of the report on the host.
    pub seq: u64,
    /// When the host wrote it down.
    pub time: String,
    /// Digest of the report as it was on the host.
    pub digest: Digest,
    /// Whether the host's reports were a whole chain up to this one.
    pub intact: bool,
}

/// A record, decoded from the bytes that are hashed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Number, from 1.
    pub seq: u64,
    /// When, UTC.
    pub time: String,
    /// Who.
    pub actor: Value,
    /// To what.
    pub object: Value,
    /// What happened: a code.
    pub event: String,
    /// What else belongs to the event.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
    /// Why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// Equal events that were only counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<Repeated>,
    /// Which host kept the record before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Reported>,
    /// Digest of the record before.
    pub prev: Digest,
}

impl Record {
    /// A record of `entry`, not yet in a chain.
    pub(super) fn new(entry: &Entry, time: String) -> Self {
        // Invariant: the types of an entry are plain data with text keys, which JSON can always hold.
        let value = |result: serde_json::Result<Value>| result.expect("plain data");
        let mut event = value(serde_json::to_value(&entry.event));
        let details = event.get_mut("details").map_or(Value::Null, Value::take);
        let code = event.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            seq: 0,
            time,
            actor: value(serde_json::to_value(&entry.actor)),
            object: value(serde_json::to_value(&entry.object)),
            event: code,
            details,
            reasons: entry.reasons.clone(),
            repeated: None,
            reported: None,
            prev: Digest([0; 48]),
        }
    }

    /// Decodes a record's bytes. Fields that are not known are left out.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The records of a trail, the last one first; `None` for one that is not understood. `before` gives the last record
    /// before a number, as [`Fs::audit_last`](crate::fs::Fs::audit_last) does. An error does not end it: whoever asks does.
    pub(super) fn from_the_end<E>(
        mut before: impl FnMut(u64) -> Result<Option<(u64, Vec<u8>)>, E>,
    ) -> impl Iterator<Item = Result<Option<Self>, E>> {
        let mut number = u64::MAX;
        std::iter::from_fn(move || {
            let found = before(number).transpose()?;
            Some(found.map(|(seq, bytes)| {
                number = seq;
                Self::parse(&bytes)
            }))
        })
    }

    /// Whether `other` tells of the same event, at whatever time and by whichever process.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        let codes = |record: &Self| record.reasons.iter().map(|reason| reason.code.clone()).collect::<Vec<_>>();
        let by = |record: &Self| (record.actor.get("kind").cloned(), record.actor.get("uid").cloned());
        self.event == other.event
            && self.object == other.object
            && self.details == other.details
            && by(self) == by(other)
            && codes(self) == codes(other)
    }

    /// Counts one more event of this kind.
    pub(super) fn count(&mut self, time: &str) {
        let repeated =
            self.repeated.get_or_insert_with(|| Repeated { count: 0, first: time.to_owned(), last: String::new() });
        repeated.count += 1;
        time.clone_into(&mut repeated.last);
    }
}

/// The end of a chain, where the next record goes.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Number of the last record; 0 when there is none.
    pub seq: u64,
    /// Its digest, or the genesis.
    pub head: Digest,
    /// Its time, when there is one.
    pub time: Option<String>,
}

impl Chain {
    /// The chain whose last record is `last`.
    pub fn after(genesis: Digest, last: Option<(u64, &[u8])>) -> Self {
        match last {
            None => Self { seq: 0, head: genesis, time: None },
            Some((seq, bytes)) => {
                Self { seq, head: Digest::of(bytes), time: Record::parse(bytes).map(|record| record.time) }
            }
        }
    }

    /// Puts a record at the end of the chain; returns its bytes.
    pub(super) fn push(&mut self, record: &mut Record) -> Vec<u8> {
        record.seq = self.seq + 1;
        record.prev = self.head;
        // Invariant: as in `Record::new`.
        let bytes = serde_json::to_vec(record).expect("plain data");
        (self.seq, self.head, self.time) = (record.seq, Digest::of(&bytes), Some(record.time.clone()));
        bytes
    }
}

/// The time now by the host's clock, in the form that records have. A clock before 1970 shows 1970, one after 2554
/// shows 2554.
pub(super) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time_of(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Nanoseconds since 1970 as records have them.
fn time_of(nanoseconds: u64) -> String {
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    // Nanoseconds in 64 bits end in the year 2554.
    let second = utc_second(seconds).unwrap_or_default();
    format!("{second}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_have_one_form() {
        assert_eq!(time_of(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(time_of(1_795_305_599_000_000_007), "2026-11-21T23:59:59.000000007Z");
        assert_eq!(time_of(u64::MAX).len(), time_of(0).len());
        // Their order as times is also their order as texts.
        assert!(time_of(999_999_999) < time_of(1_000_000_000));
    }

    /// Frozen, and computed with sha384sum: a change here makes every exported trail unverifiable.
    #[test]
    fn the_genesis_is_what_sha384sum_says() {
        let genesis = Digest::genesis(Uuid([0x44; 16]));
        assert_eq!(
            genesis.to_string(),
            "053fd649c79dd7a7a4a9108a74fef712069f33796991e7fc33ce2d8b6b02533a0e0ff185da68dfb1bd87dba6fdb6d386"
        );
        let text = serde_json::to_string(&genesis).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), genesis);
        for bad in ["\"\"", &text.to_uppercase(), &text.replacen(char::is_numeric, "g", 1), &text[..95]] {
            assert!(serde_json::from_str::<Digest>(bad).is_err(), "{bad}");
        }
    }
}
