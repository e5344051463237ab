//! A small reproducible generator (xorshift64*, Vigna 2016): the same seed gives the same run everywhere.

/// State of the generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed; any number will do.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((self.bits() >> 33) as usize) % limit.max(1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A random byte.
    pub fn byte(&mut self) -> u8 {
        (self.bits() >> 40) as u8
    }
}

/// The seed of this run: from the environment, or a fixed one.
pub fn seed(fixed: u64) -> u64 {
    match std::env::var("COFFERDAM_TEST_SEED") {
        Ok(text) => text.parse().expect("COFFERDAM_TEST_SEED is a number"),
        Err(_) => fixed,
    }
}

/// A number from the environment, or a fixed one.
pub fn setting(name: &str, fixed: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => fixed,
    }
}
