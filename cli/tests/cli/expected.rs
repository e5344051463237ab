//! Outputs that must not change by accident. `COFFERDAM_EXPECTED=write` rewrites them.

use std::fs;
use std::path::PathBuf;

/// Compares with `tests/expected/NAME`.
#[track_caller]
pub(crate) fn check(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/expected")
        .join(name);
    if std::env::var_os("COFFERDAM_EXPECTED").is_some_and(|value| value == "write") {
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs; if that is meant, run with COFFERDAM_EXPECTED=write\n--- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}
