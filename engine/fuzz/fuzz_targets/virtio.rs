//! See `fuzz_bodies::virtio`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::virtio(data));
