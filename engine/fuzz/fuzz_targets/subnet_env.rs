//! See `fuzz_bodies::subnet_env`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::subnet_env(data));
