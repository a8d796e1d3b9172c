//! From a passphrase to a slot key: argon2id, version 0x13 (RFC 9106).

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use super::secret::KeyBytes;
use super::{Error, Secret};
use crate::limits::{
    KDF_LABEL_WORK_MAX, KDF_LANES_MAX, KDF_LANES_MIN, KDF_MEMORY_KIB_MAX, KDF_MEMORY_KIB_MIN, KDF_PASSES_MAX,
    KDF_PASSES_MIN, KEY_SLOTS_MAX,
};

/// Cost of argon2id, as a key slot records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
}

impl KdfParams {
    /// The least that is accepted, field by field.
    pub const FLOOR: Self =
        Self { memory_kib: KDF_MEMORY_KIB_MIN, iterations: KDF_PASSES_MIN, parallelism: KDF_LANES_MIN };

    /// The most that is accepted, field by field. It bounds what a hostile label can make us spend before its MAC is
    /// checked.
    pub const CEILING: Self =
        Self { memory_kib: KDF_MEMORY_KIB_MAX, iterations: KDF_PASSES_MAX, parallelism: KDF_LANES_MAX };

    /// What a new slot gets.
    pub const DEFAULT: Self = Self { memory_kib: 256 << 10, iterations: 3, parallelism: 4 };

    /// What one derivation costs, in KiB of memory times passes. Lanes change nothing about it.
    pub const fn work(&self) -> u64 {
        self.memory_kib as u64 * self.iterations as u64
    }

    /// Refuses what is below the floor or above the ceiling in any field.
    pub fn check(&self) -> Result<(), Error> {
        let all = |f: fn(u32, u32) -> bool, bound: &Self| {
            f(self.memory_kib, bound.memory_kib)
                && f(self.iterations, bound.iterations)
                && f(self.parallelism, bound.parallelism)
        };
        if !all(|a, b| a >= b, &Self::FLOOR) {
            return Err(Error::WeakKdf { found: *self });
        }
        if !all(|a, b| a <= b, &Self::CEILING) {
            return Err(Error::ExcessiveKdf { found: *self });
        }
        Ok(())
    }
}

const _: () = assert!(KEY_SLOTS_MAX as u64 * KdfParams::DEFAULT.work() <= KDF_LABEL_WORK_MAX);

impl fmt::Display for KdfParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB, {} passes, {} lanes", self.memory_kib, self.iterations, self.parallelism)
    }
}

/// The key that a passphrase becomes; it opens one key slot. Wiped when dropped.
pub struct SlotKey(pub(super) KeyBytes);

impl fmt::Debug for SlotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotKey(..)")
    }
}

/// Derives the key of a slot: 32 bytes of argon2id over the secret and the slot's salt.
///
/// The working memory is wiped before it is given back.
///
/// # Errors
/// [`Error::WeakKdf`] and [`Error::ExcessiveKdf`] before any work, [`Error::KdfMemory`] when memory is short.
pub fn derive_slot_key(secret: &Secret, salt: &[u8; 32], params: &KdfParams) -> Result<SlotKey, Error> {
    params.check()?;
    // Invariant: `check` has bounded every field inside argon2's own limits, and so the inputs of the hash.
    let cost = Params::new(params.memory_kib, params.iterations, params.parallelism, Some(32))
        .expect("parameters between the floor and the ceiling");
    let blocks = cost.block_count();
    let mut memory = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(blocks).map_err(|_| Error::KdfMemory { memory_kib: params.memory_kib })?;
    memory.resize(blocks, Block::default());
    let mut key = KeyBytes::zero();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, cost)
        .hash_password_into_with_memory(secret.expose(), salt, key.get_mut(), memory.as_mut_slice())
        .expect("a secret, a salt and an output within argon2's limits");
    Ok(SlotKey(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn weaker_than_the_floor_in_one_field_is_refused() {
        let floor = KdfParams::FLOOR;
        let secret = Secret::new(b"x".to_vec()).unwrap();
        for weak in [
            KdfParams { memory_kib: floor.memory_kib - 1, ..KdfParams::CEILING },
            KdfParams { iterations: floor.iterations - 1, ..KdfParams::CEILING },
            KdfParams { parallelism: floor.parallelism - 1, ..KdfParams::CEILING },
            KdfParams { memory_kib: 0, iterations: 0, parallelism: 0 },
        ] {
            let refused = derive_slot_key(&secret, &[0; 32], &weak).unwrap_err();
            assert_eq!(refused, Error::WeakKdf { found: weak });
        }
    }

    #[test]
    fn more_than_the_ceiling_is_refused_before_memory_is_taken() {
        let secret = Secret::new(b"x".to_vec()).unwrap();
        for greedy in [
            KdfParams { memory_kib: u32::MAX, ..KdfParams::DEFAULT },
            KdfParams { iterations: u32::MAX, ..KdfParams::DEFAULT },
            KdfParams { parallelism: 17, ..KdfParams::DEFAULT },
        ] {
            let refused = derive_slot_key(&secret, &[0; 32], &greedy).unwrap_err();
            assert_eq!(refused, Error::ExcessiveKdf { found: greedy });
        }
        KdfParams::CEILING.check().unwrap();
        KdfParams::DEFAULT.check().unwrap();
    }

    /// RFC 9106 §5.3: the primitive with its tiny parameters, called directly because we refuse them.
    #[test]
    fn rfc_9106_argon2id_vector() {
        let params = argon2::ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .output_len(32)
            .data(argon2::AssociatedData::new(&[4; 12]).unwrap())
            .build()
            .unwrap();
        let mut out = [0; 32];
        Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params)
            .unwrap()
            .hash_password_into(&[1; 32], &[2; 16], &mut out)
            .unwrap();
        let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659");
    }
}
