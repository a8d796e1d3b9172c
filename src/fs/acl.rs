//! POSIX access control lists (acl(5), POSIX.1e draft 17), as Linux keeps them: pure functions.
//!
//! The value of `system.posix_acl_access` and `system.posix_acl_default` is (include/uapi/linux/posix_acl_xattr.h):
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | version, 2, little-endian |
//! | 4 + 8·i | 2 | tag of entry i |
//! | 6 + 8·i | 2 | permission, 0 to 7 |
//! | 8 + 8·i | 4 | uid or gid, all ones where there is none |
//!
//! The kernel enforces the lists (`FUSE_POSIX_ACL` with `default_permissions`). Here they are checked, kept in step
//! with the mode, and inherited, by the rules of fs/posix_acl.c.

use super::{Error, Result};

/// Name of the attribute that controls access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of a folder's attribute that new entries inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// Whom an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    UserObj,
    User(u32),
    GroupObj,
    Group(u32),
    Mask,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    who: Who,
    perm: u32,
}

/// A valid list: an owner, a group and an others entry, and a mask if there are entries for named users or groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Parses and checks an attribute's value. `None` is a value without entries, which means "remove the list".
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another version, [`Error::Invalid`] for anything that posix_acl_valid() refuses.
    pub fn parse(value: &[u8]) -> Result<Option<Self>> {
        let (version, rest) = value.split_first_chunk::<4>().ok_or(Error::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::Unsupported);
        }
        let (records, tail) = rest.as_chunks::<8>();
        if !tail.is_empty() {
            return Err(Error::Invalid);
        }
        if records.is_empty() {
            return Ok(None);
        }
        let acl = Self(records.iter().map(Entry::parse).collect::<Result<_>>()?);
        if acl.valid() { Ok(Some(acl)) } else { Err(Error::Invalid) }
    }

    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            let (tag, id) = entry.who.encode();
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&entry.perm.to_le_bytes()[..2]);
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// As posix_acl_valid(): owner, users, group, groups, mask, others, in this order.
    fn valid(&self) -> bool {
        let rank = |entry: &Entry| match entry.who {
            Who::UserObj => 0,
            Who::User(_) => 1,
            Who::GroupObj => 2,
            Who::Group(_) => 3,
            Who::Mask => 4,
            Who::Other => 5,
        };
        let count = |wanted| self.0.iter().filter(|entry| rank(entry) == wanted).count();
        self.0.is_sorted_by_key(rank)
            && [0, 2, 5].iter().all(|&one| count(one) == 1)
            && (count(4) == 1 || count(4) == 0 && count(1) + count(3) == 0)
    }

    /// The permission bits that `mode` has with this list, and whether the list says nothing more than those bits do
    /// (posix_acl_equiv_mode()).
    pub fn mode(&self, mode: u32) -> (u32, bool) {
        let mut bits = 0;
        let mut mask = None;
        let mut trivial = true;
        for entry in &self.0 {
            match entry.who {
                Who::UserObj => bits |= entry.perm << 6,
                Who::GroupObj => bits |= entry.perm << 3,
                Who::Other => bits |= entry.perm,
                Who::Mask => mask = Some(entry.perm),
                Who::User(_) | Who::Group(_) => trivial = false,
            }
        }
        if let Some(mask) = mask {
            trivial = false;
            bits = bits & !0o070 | mask << 3;
        }
        (mode & !0o777 | bits, trivial)
    }

    /// Follows a chmod: owner, mask (or without one the group) and others get the bits of `mode` (posix_acl_chmod()).
    pub fn chmod(&mut self, mode: u32) {
        for entry in self.classes() {
            match entry.who {
                Who::UserObj => entry.perm = mode >> 6 & 7,
                Who::GroupObj | Who::Mask => entry.perm = mode >> 3 & 7,
                Who::Other => entry.perm = mode & 7,
                Who::User(_) | Who::Group(_) => {}
            }
        }
    }

    /// Turns a folder's default list into the access list of something created in it with `mode`: list and mode are
    /// both cut down to what the other allows. Returns the new mode, and whether the list says no more than it
    /// (posix_acl_create()).
    pub fn create(&mut self, mode: u32) -> (u32, bool) {
        for entry in self.classes() {
            match entry.who {
                Who::UserObj => entry.perm &= mode >> 6,
                Who::GroupObj | Who::Mask => entry.perm &= mode >> 3,
                Who::Other => entry.perm &= mode,
                Who::User(_) | Who::Group(_) => {}
            }
        }
        self.mode(mode)
    }

    /// The entries that stand for the three classes of the mode. If there is a mask, it stands for the group class, not
    /// the group's own entry.
    fn classes(&mut self) -> impl Iterator<Item = &mut Entry> {
        let masked = self.0.iter().any(|entry| entry.who == Who::Mask);
        self.0.iter_mut().filter(move |entry| !(masked && entry.who == Who::GroupObj))
    }
}

impl Entry {
    fn parse(record: &[u8; 8]) -> Result<Self> {
        let [t0, t1, p0, p1, id @ ..] = *record;
        let (tag, perm, id) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]), u32::from_le_bytes(id));
        let who = match tag {
            0x01 => Who::UserObj,
            0x02 if id != NO_ID => Who::User(id),
            0x04 => Who::GroupObj,
            0x08 if id != NO_ID => Who::Group(id),
            0x10 => Who::Mask,
            0x20 => Who::Other,
            _ => return Err(Error::Invalid),
        };
        if perm <= 7 { Ok(Self { who, perm: u32::from(perm) }) } else { Err(Error::Invalid) }
    }
}

impl Who {
    fn encode(self) -> (u16, u32) {
        match self {
            Self::UserObj => (0x01, NO_ID),
            Self::User(id) => (0x02, id),
            Self::GroupObj => (0x04, NO_ID),
            Self::Group(id) => (0x08, id),
            Self::Mask => (0x10, NO_ID),
            Self::Other => (0x20, NO_ID),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An attribute's value from (tag, permission, id).
    pub fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// u::U g::G o::O
    fn minimal(user: u16, group: u16, other: u16) -> Vec<u8> {
        value(&[(1, user, NO_ID), (4, group, NO_ID), (0x20, other, NO_ID)])
    }

    /// u::7 u:1000:6 g::5 m::7 o::4
    pub fn extended() -> Vec<u8> {
        value(&[(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 4, NO_ID)])
    }

    #[test]
    fn values_round_trip() {
        for bytes in [minimal(6, 4, 0), extended()] {
            assert_eq!(Acl::parse(&bytes).unwrap().unwrap().encode(), bytes);
        }
        assert!(Acl::parse(&value(&[])).unwrap().is_none());
    }

    #[test]
    fn invalid_values_are_refused() {
        let (owner, group, other, user) = ((1, 7, NO_ID), (4, 5, NO_ID), (0x20, 4, NO_ID), (2, 6, 1000));
        let mask = (0x10, 7, NO_ID);
        for entries in [
            &[owner, group][..],
            &[owner, group, other, other],
            &[group, owner, other],
            &[owner, user, group, other],
            &[owner, (2, 6, NO_ID), group, mask, other],
            &[(1, 8, NO_ID), group, other],
            &[owner, (3, 1, 0), group, other],
            &[owner, group, mask, mask, other],
        ] {
            assert!(matches!(Acl::parse(&value(entries)), Err(Error::Invalid)), "{entries:?}");
        }
        assert!(matches!(Acl::parse(&extended()[..11]), Err(Error::Invalid)));
        assert!(matches!(Acl::parse(b"\x02"), Err(Error::Invalid)));
        assert!(matches!(Acl::parse(b"\x01\0\0\0"), Err(Error::Unsupported)));
    }

    #[test]
    fn a_mask_is_the_group_class() {
        let acl = Acl::parse(&extended()).unwrap().unwrap();
        assert_eq!(acl.mode(0o102_000), (0o102_774, false));
        let acl = Acl::parse(&minimal(6, 4, 1)).unwrap().unwrap();
        assert_eq!(acl.mode(0o777), (0o641, true));
    }

    #[test]
    fn chmod_sets_the_mask_and_leaves_the_group() {
        let mut acl = Acl::parse(&extended()).unwrap().unwrap();
        acl.chmod(0o640);
        let wanted = value(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (0x10, 4, NO_ID), (0x20, 0, NO_ID)]);
        assert_eq!(acl.encode(), wanted);
        let mut acl = Acl::parse(&minimal(7, 7, 7)).unwrap().unwrap();
        acl.chmod(0o640);
        assert_eq!(acl.encode(), minimal(6, 4, 0));
    }

    #[test]
    fn creation_cuts_both_down() {
        let mut acl = Acl::parse(&extended()).unwrap().unwrap();
        assert_eq!(acl.create(0o100_666), (0o100_664, false));
        let wanted = value(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID)]);
        assert_eq!(acl.encode(), wanted);
        let mut acl = Acl::parse(&minimal(7, 5, 0)).unwrap().unwrap();
        assert_eq!(acl.create(0o777), (0o750, true));
    }
}
