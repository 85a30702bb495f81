//! The header says what the library does.

use std::path::Path;

/// Modules in the order of the header.
const MODULES: [&str; 6] = ["abi", "status", "model", "session", "decoder", "text"];

#[test]
fn the_header_is_what_cbindgen_makes_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in MODULES {
        builder = builder.with_src(root.join(format!("src/{module}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    // Rust's heading says nothing in C: what follows it are the caller's duties there too.
    let made = String::from_utf8(made).unwrap();
    let lines = made.lines().filter(|l| l.trim() != "// # Safety");
    let made = lines.map(|l| format!("{l}\n")).collect::<String>();
    let path = root.join("include/lacuna.h");
    if std::env::var_os("LACUNA_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    let write = "write it anew: LACUNA_WRITE_HEADER=1 cargo test -p lacuna-c --test header";
    for (i, (kept, made)) in kept.lines().zip(made.lines()).enumerate() {
        assert_eq!(kept, made, "line {}; {write}", i + 1);
    }
    assert_eq!(kept.len(), made.len(), "{write}");
}

#[test]
fn every_function_of_the_sources_is_in_the_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = std::fs::read_to_string(root.join("include/lacuna.h")).unwrap();
    let mut functions = 0;
    for module in std::fs::read_dir(root.join("src")).unwrap() {
        let source = std::fs::read_to_string(module.unwrap().path()).unwrap();
        for part in source.split("extern \"C\" fn ").skip(1) {
            let name: String = part.chars().take_while(|c| *c != '(').collect();
            if !name.starts_with("lacuna_") {
                continue;
            }
            assert!(header.contains(&format!("{name}(")), "{name}");
            functions += 1;
        }
    }
    assert!(functions > 30, "{functions}");
}
