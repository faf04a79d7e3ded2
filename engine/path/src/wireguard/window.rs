//! The replay window of a session: RFC 6479's bitmap of blocks, as wide as the kernel's (COUNTER_BITS_TOTAL,
//! drivers/net/wireguard/messages.h).

/// Bits in the window.
const BITS: u64 = 8192;
const WORD: u64 = u64::BITS as u64;
const WORDS: usize = (BITS / WORD) as usize;
/// How far a counter may lie behind the highest one. The block that is being filled does not count.
const DEPTH: u64 = BITS - WORD;

/// The accepted counters of a session.
#[derive(Clone, Debug)]
pub struct Window {
    /// One more than the highest accepted counter.
    next: u64,
    bits: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Window { next: 0, bits: [0; WORDS] }
    }
}

impl Window {
    /// Accepts the counter of an authentic record. Returns false if the record is a replay or too old for the
    /// window.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        if self.next > DEPTH && counter < self.next - DEPTH {
            return false;
        }
        if counter >= self.next {
            // Clear the blocks between the old front and the new one.
            let front = self.next.saturating_sub(1) / WORD;
            let new = counter / WORD;
            let fresh = if self.next == 0 { new + 1 } else { new - front };
            for step in 0..fresh.min(WORDS as u64) {
                self.bits[((new - step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter.saturating_add(1);
        }
        let word = &mut self.bits[(counter / WORD % WORDS as u64) as usize];
        let bit = 1 << (counter % WORD);
        let seen = *word & bit != 0;
        *word |= bit;
        !seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_counter_is_accepted_once_in_any_order() {
        let mut window = Window::default();
        for counter in [0, 1, 5, 3, 4, 2, DEPTH, 6] {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter), "{counter} again");
        }
        assert!(window.accept(10 * BITS));
        assert!(!window.accept(10 * BITS - DEPTH), "too old");
        assert!(window.accept(10 * BITS - DEPTH + 1));
        assert!(window.accept(u64::MAX - 1) && !window.accept(u64::MAX - 1));
    }

    proptest! {
        /// The model is the set of all accepted counters.
        #[test]
        fn the_window_agrees_with_a_set(
            steps in proptest::collection::vec((0u64..40, any::<bool>(), 0u64..20_000), 1..400),
        ) {
            let (mut window, mut seen, mut highest) = (Window::default(), BTreeSet::new(), 0u64);
            for (ahead, back, by) in steps {
                let counter = if back { highest.saturating_sub(by) } else { highest + ahead * ahead };
                let too_old = !seen.is_empty() && counter + DEPTH < highest + 1;
                let expected = !too_old && !seen.contains(&counter);
                prop_assert_eq!(window.accept(counter), expected, "{}", counter);
                if expected {
                    seen.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
