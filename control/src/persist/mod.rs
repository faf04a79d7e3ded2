//! What a daemon keeps on disk: its lock, its state file and its private key, and how it gets there.

pub mod atomic_file;
pub mod disk;
pub mod instance;
pub mod remembered;
pub mod state_file;
pub mod wireguard_key;
