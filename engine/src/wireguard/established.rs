//! The sessions that records are sealed with, for judging what an ICMP message quotes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use path::PeerId;
use path::wireguard::{Session, SessionIndex};

/// The sessions of a tunnel. The keeper changes them, the path MTU thread looks them up.
#[derive(Clone, Default)]
pub(crate) struct Established(Arc<Mutex<Sessions>>);

#[derive(Default)]
struct Sessions {
    /// Peers by their own index of the session, which records carry. Two peers can have the same one, so
    /// this node's index tells them apart.
    peers: BTreeMap<(SessionIndex, SessionIndex), PeerId>,
    /// The peers' indices by this node's.
    remote: HashMap<SessionIndex, SessionIndex>,
}

impl Established {
    pub(crate) fn add(&self, session: &Session) {
        let mut all = self.lock();
        all.peers.insert((session.remote, session.local), session.peer);
        all.remote.insert(session.local, session.remote);
    }

    pub(crate) fn remove(&self, local: SessionIndex) {
        let mut all = self.lock();
        if let Some(remote) = all.remote.remove(&local) {
            all.peers.remove(&(remote, local));
        }
    }

    /// Returns the peer that has a session under this index.
    pub(crate) fn peer(&self, remote: SessionIndex) -> Option<PeerId> {
        let all = self.lock();
        let range = (remote, SessionIndex(0))..=(remote, SessionIndex(u32::MAX));
        all.peers.range(range).next().map(|(_, peer)| *peer)
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use path::wireguard::session::Keys;

    use super::*;

    #[test]
    fn peers_are_found_by_their_own_index_until_the_session_is_removed() {
        let established = Established::default();
        let session = |peer, local, remote| {
            let keys = Keys { send: [1; 32], receive: [2; 32] };
            Session::new(PeerId(peer), (SessionIndex(local), SessionIndex(remote)), &keys, true, 1)
        };
        for (peer, local, remote) in [(1, 10, 77), (2, 11, 77), (2, 12, 78)] {
            established.add(&session(peer, local, remote));
        }
        let peer = |remote| established.peer(SessionIndex(remote));
        assert_eq!((peer(77), peer(78), peer(10)), (Some(PeerId(1)), Some(PeerId(2)), None));
        established.remove(SessionIndex(10));
        established.remove(SessionIndex(10));
        assert_eq!((peer(77), peer(78)), (Some(PeerId(2)), Some(PeerId(2))));
        established.remove(SessionIndex(11));
        assert_eq!(peer(77), None);
    }
}
