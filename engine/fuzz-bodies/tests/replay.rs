//! Runs the fuzz targets without a fuzzer, on the checked-in corpus and on random mutations of it.
//!
//! Crashes that a fuzzer finds are kept in the corpus as `crash-…`, with a word about the cause.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

use std::fs;
use std::path::PathBuf;

use fuzz_bodies::{TARGETS, Target};
use proptest::prelude::*;
use proptest::sample::Index;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
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
fn every_prefix_of_the_corpus_replays() {
    for (name, body) in TARGETS {
        for data in corpus(name) {
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
