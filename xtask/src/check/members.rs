//! What every member's manifest must say.

use super::Finding;

/// A member inherits the workspace's lints; without the line it silently has none.
pub(super) fn check(package: &str, manifest: &str) -> Vec<Finding> {
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[lints]" && line.replace(' ', "") == "workspace=true" {
            return Vec::new();
        }
    }
    vec![Finding::error(
        package,
        "does not inherit the lints: add `[lints] workspace = true`",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_lints_pass() {
        assert!(
            check(
                "a",
                "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"
            )
            .is_empty()
        );
    }

    #[test]
    fn missing_lints_are_found() {
        assert_eq!(check("a", "[package]\nname = \"a\"\n").len(), 1);
        assert_eq!(
            check("a", "[dependencies]\nworkspace = true\n[lints]\n").len(),
            1
        );
        assert_eq!(check("a", "# [lints]\n# workspace = true\n").len(), 1);
    }
}
