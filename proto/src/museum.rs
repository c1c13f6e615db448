//! Bugs that can be put back, one at a time, to see that the tests find them (`prove museum`).
//!
//! At each place where a rule is kept stands `mutated("the bug's name")`, and behind it what the code would do without the rule. Without
//! the feature `museum` that is the constant `false`, and nothing of it is left in the program; a release has no such feature.

/// Whether this bug is put back now.
#[cfg(feature = "museum")]
#[must_use]
#[inline]
pub fn mutated(name: &'static str) -> bool {
    switch::is_on(name)
}

/// Never.
#[cfg(not(feature = "museum"))]
#[must_use]
#[inline(always)]
pub const fn mutated(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "museum")]
pub use switch::{put_back, repair};

#[cfg(feature = "museum")]
mod switch {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Looked at first: almost always there is no bug, and the machines ask millions of times in a second.
    static ANY: AtomicBool = AtomicBool::new(false);
    static WHICH: RwLock<&str> = RwLock::new("");

    /// Puts a bug back, in the whole process, and takes away the one before it.
    ///
    /// # Panics
    /// Never: nobody panics with the lock.
    pub fn put_back(name: &'static str) {
        *WHICH.write().expect("nobody panics with this lock") = name;
        ANY.store(true, Ordering::SeqCst);
    }

    /// From now on the code is as it should be.
    pub fn repair() {
        ANY.store(false, Ordering::SeqCst);
    }

    #[inline]
    pub(super) fn is_on(name: &str) -> bool {
        ANY.load(Ordering::Relaxed) && *WHICH.read().expect("nobody panics with this lock") == name
    }
}
