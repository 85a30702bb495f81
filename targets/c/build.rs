//! The shared library's name for the linker carries the version of its binary interface.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if matches!(os.as_str(), "linux" | "freebsd") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblacuna.so.1");
    }
}
