//! Chance, from a seed. Written out here, because a run has to repeat on every machine and with every version of every library.

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Where it stands: a run that drew one number more or less stands elsewhere.
    #[must_use]
    pub const fn state(&self) -> u64 {
        self.0
    }

    /// 64 random bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below `end`, which is not 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        // The bias is below 2^-32 for the small numbers that are asked for.
        self.bits() % end
    }

    /// From `first` to `last`, both included.
    pub const fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True `of` times in a million.
    pub const fn chance(&mut self, of: u32) -> bool {
        of > 0 && self.below(1_000_000) < of as u64
    }

    /// True half of the time.
    pub const fn coin(&mut self) -> bool {
        self.bits() & 1 == 1
    }

    /// One of them.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// An index into so many.
    ///
    /// # Panics
    /// If there are none.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }
}
