//! Passes the target's name on to `loden version`; the compiler gives a program only its parts.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=LODEN_TARGET={}", std::env::var("TARGET").expect("cargo sets TARGET"));
}
