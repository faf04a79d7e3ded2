//! What a daemon keeps on disk: its name and lock, what it has made and its next run should know, its private key.

pub mod atomic_file;
pub mod instance;
pub mod remembered;
pub mod state_file;
pub mod wireguard_key;
