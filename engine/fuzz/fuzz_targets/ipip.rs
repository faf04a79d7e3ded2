//! See `fuzz_bodies::ipip`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::ipip(data));
