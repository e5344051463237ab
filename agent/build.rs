//! Finds the kernel object that the agent carries.
//!
//! The object is checked in (`agent-ebpf/prebuilt/`), so that building the agent needs no BPF toolchain.
//! While it is missing, an empty file takes its place and the agent says so when it is started.

use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = root.join("../agent-ebpf/prebuilt/cofferdam.bpf.o");
    println!("cargo:rerun-if-changed={}", object.display());
    println!("cargo:rerun-if-changed=build.rs");
    let path = if object.exists() {
        object
    } else {
        let empty = PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default()).join("empty.o");
        if std::fs::write(&empty, []).is_err() {
            println!("cargo:warning=cannot write {}", empty.display());
        }
        println!(
            "cargo:warning=agent-ebpf/prebuilt/cofferdam.bpf.o is missing: the agent will refuse to arm"
        );
        empty
    };
    println!("cargo:rustc-env=COFFERDAM_BPF_OBJECT={}", path.display());
}
