//! What we have wished to publish in this run: the store may show any of it.
//!
//! An answer may get lost after the store has done what it was asked, and events may be late. So a lease that
//! shows one of these wishes is ours, and a lost lease is looked for by each of them. The last event is
//! right: events come in the order of what they show.

use model::lease::LeaseAttrs;
use store::lease::Owned;

/// The wishes of a run, each once.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The latest last.
    asked: Vec<LeaseAttrs>,
    /// Those by which a lost lease was looked for.
    tried: Vec<LeaseAttrs>,
}

impl Wishes {
    /// The store, which has `own`, is asked to publish `wish`.
    pub(super) fn ask(&mut self, wish: &LeaseAttrs, own: &Owned) {
        for wish in [&own.wished, wish] {
            self.asked.retain(|asked| asked != wish);
            self.asked.push(wish.clone());
        }
    }

    /// Returns the wish by which a stored lease is ours, if it is. `is_ours` judges by one wish.
    pub(super) fn find(&self, own: &Owned, is_ours: impl Fn(&LeaseAttrs) -> bool) -> Option<LeaseAttrs> {
        self.candidates(own).find(|wish| is_ours(wish)).cloned()
    }

    /// Returns the wish to look for a lost lease by.
    pub(super) fn search(&mut self, own: &Owned) -> LeaseAttrs {
        let wish = self.untried(own).unwrap_or(&own.wished).clone();
        self.tried.push(wish.clone());
        wish
    }

    /// Tells whether there is one more wish to look for the lease by.
    pub(super) fn can_search_on(&self, own: &Owned) -> bool {
        self.untried(own).is_some()
    }

    /// The lease is found.
    pub(super) fn end_search(&mut self) {
        self.tried.clear();
    }

    fn untried<'a>(&'a self, own: &'a Owned) -> Option<&'a LeaseAttrs> {
        self.candidates(own).find(|wish| !self.tried.contains(wish))
    }

    fn candidates<'a>(&'a self, own: &'a Owned) -> impl Iterator<Item = &'a LeaseAttrs> {
        let others = self.asked.iter().rev().filter(|wish| **wish != own.wished);
        std::iter::once(&own.wished).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DAY, owned, wish};
    use super::*;

    #[test]
    fn a_lost_lease_is_looked_for_by_each_wish_once() {
        let own = owned(1, None, DAY);
        let mut wishes = Wishes::default();
        assert_eq!((wishes.search(&own), wishes.can_search_on(&own)), (wish(1), false));
        wishes.end_search();
        for host in [1, 8, 7, 8] {
            wishes.ask(&wish(host), &own);
        }
        for host in [1, 8, 7] {
            assert_eq!(wishes.search(&own), wish(host));
            assert_eq!(wishes.can_search_on(&own), host != 7);
        }
        wishes.end_search();
        assert_eq!(wishes.search(&own), wish(1));
    }

    #[test]
    fn a_stored_lease_is_ours_by_any_wish_of_the_run_first_by_that_of_now() {
        let own = owned(1, None, DAY);
        let mut wishes = Wishes::default();
        wishes.ask(&wish(7), &own);
        wishes.ask(&wish(8), &owned(7, None, DAY));
        for host in [1, 7, 8] {
            assert_eq!(wishes.find(&own, |wished| *wished == wish(host)), Some(wish(host)));
        }
        assert_eq!(wishes.find(&own, |_| true), Some(wish(1)));
        assert_eq!(wishes.find(&own, |wished| *wished == wish(9)), None);
    }
}
