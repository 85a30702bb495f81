//! Where the tests find their files.

use std::path::PathBuf;

/// A fixture of this crate.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A large file from the folder that `LACUNA_TEST_DATA` names; without it the test says that it is
/// skipped.
#[allow(dead_code)]
pub fn test_data(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("LACUNA_TEST_DATA")
        .map(|folder| PathBuf::from(folder).join(name))
        .filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: no {name} in LACUNA_TEST_DATA");
    }
    found
}
