//! See `fuzz_bodies::control_socket`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::control_socket(data));
