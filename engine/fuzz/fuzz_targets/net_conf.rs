//! See `fuzz_bodies::net_conf`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::net_conf(data));
