//! See `fuzz_bodies::wireguard`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::wireguard(data));
