//! Compiles the program of the image `gantry/hello` (hello/hello.rs): static, without libc.

#![allow(clippy::print_stdout)] // cargo listens there

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=hello");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("hello");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let mut command = Command::new(rustc);
    command
        .args(["hello/hello.rs", "--edition", "2024", "--crate-type", "bin", "--target", &target])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols"])
        .args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-Wl,-z,norelro,--build-id=none,-N"])
        .arg("-o")
        .arg(&out);
    let status = command.status().expect("rustc can be run");
    assert!(status.success(), "hello/hello.rs does not compile: {command:?}");
}
