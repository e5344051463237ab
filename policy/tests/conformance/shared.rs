//! The shared collection: every case right, by both judges.

use std::io::Read as _;
use std::path::Path;

use flate2::read::GzDecoder;

use super::examine;

/// What the collection holds; a collection that lost something must not pass.
const CASES: usize = 378;
const PROBES: usize = 68_225;

#[test]
fn every_shared_case_is_right_by_both_judges() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("shared/conformance/networkpolicy-cases.jsonl.gz");
    let Ok(file) = std::fs::File::open(&path) else {
        eprintln!(
            "SKIPPED {CASES} shared conformance cases: there is no {}",
            path.display()
        );
        return;
    };
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let (cases, probes, wrong) = examine(text.lines());
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
    assert_eq!((cases, probes), (CASES, PROBES));
}
