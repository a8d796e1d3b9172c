//! A small seeded generator (SplitMix64), so that a run can be repeated from its seed alone.

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator with the seed of this run.
    pub fn seeded() -> Self {
        Self::new(seed())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// The seed of this run, `SCELLE_SEED` or the clock. It is printed, so that the run can be repeated.
pub fn seed() -> u64 {
    let seed = match std::env::var("SCELLE_SEED") {
        Ok(text) => text.parse().expect("SCELLE_SEED is a decimal number"),
        Err(_) => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("seed {seed}: repeat with SCELLE_SEED={seed}");
    seed
}

/// How many times the usual work a random test does: `SCELLE_SOAK`, or 1.
pub fn soak() -> u64 {
    match std::env::var("SCELLE_SOAK") {
        Ok(text) => text.parse().expect("SCELLE_SOAK is a number of times"),
        Err(_) => 1,
    }
}
