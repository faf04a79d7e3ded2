//! Runs the fuzz targets without a fuzzer, on the checked-in corpus and on random mutations of it.
//!
//! The corpus has seeds with names, and inputs that a fuzzer has found and that together reach what all of
//! its inputs reach (`-set_cover_merge=1`).
//!
//! Crashes that a fuzzer finds are kept in the corpus as `crash-…`, with a word about the cause.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

use std::fs;
use std::path::{Path, PathBuf};

use fuzz_bodies::{TARGETS, Target};
use proptest::prelude::*;
use proptest::sample::Index;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

fn files(target: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    files(target).iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Whether a person has named the file. A fuzzer names what it finds by a hash.
fn is_named(file: &Path) -> bool {
    let name = file.file_name().unwrap().to_string_lossy();
    name.len() != 40 || name.contains('-')
}

#[test]
fn the_corpus_replays() {
    for (name, body) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 3, "the corpus of {name} has {} files", corpus.len());
        corpus.iter().for_each(|data| body(data));
        body(&[]);
    }
}

#[test]
fn every_prefix_of_the_named_corpus_replays() {
    for (name, body) in TARGETS {
        for file in files(name).iter().filter(|file| is_named(file)) {
            let data = fs::read(file).unwrap();
            (0..data.len().min(300)).for_each(|len| body(&data[..len]));
        }
    }
}

/// Changes, removes and repeats some bytes of a seed.
fn mutate(seed: &[u8], changes: &[(Index, u8, u8)]) -> Vec<u8> {
    let mut data = seed.to_vec();
    for (at, kind, value) in changes {
        if data.is_empty() {
            data.push(*value);
        }
        let at = at.index(data.len());
        match kind % 5 {
            0 => data[at] = *value,
            1 => data[at] ^= 1 << (value & 7),
            2 => drop(data.remove(at)),
            3 => data.truncate(at),
            _ => {
                let tail = data[at..].to_vec();
                data.extend(&tail[..tail.len().min(usize::from(*value))]);
            }
        }
    }
    data
}

fn run_mutated((name, body): Target, at: Index, changes: &[(Index, u8, u8)]) {
    let corpus = corpus(name);
    body(&mutate(&corpus[at.index(corpus.len())], changes));
}

proptest! {
    #[test]
    fn mutations_of_the_corpus(
        at: Index,
        changes in prop::collection::vec(any::<(Index, u8, u8)>(), 1..12),
    ) {
        for target in TARGETS {
            run_mutated(target, at, &changes);
        }
    }

    #[test]
    fn random_data(data: Vec<u8>, text: String) {
        for (_, body) in TARGETS {
            body(&data);
            body(text.as_bytes());
        }
    }
}
