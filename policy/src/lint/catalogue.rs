//! Every kind of finding.

use super::finding::Level;

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Stable name.
    pub id: &'static str,
    /// How bad it usually is.
    pub level: Level,
    /// In a few words.
    pub title: &'static str,
    /// Why it matters, and when it is right to suppress it.
    pub help: &'static str,
}

const fn lint(id: &'static str, level: Level, title: &'static str, help: &'static str) -> Lint {
    Lint {
        id,
        level,
        title,
        help,
    }
}

const LINTS: &[Lint] = &[
    lint(
        "any-any-allow",
        Level::Error,
        "A rule allows everybody everything",
        "The rule has no peers and no ports, or peers and ports that cover everything. Whatever stands after it is never asked. In egress it is a warning: it is how many start.",
    ),
    lint(
        "closed-without-rule",
        Level::Note,
        "A direction is closed and nothing opens it",
        "The policy speaks for a direction without a rule that allows or passes anything, and no guardrail, grant or other standard policy may allow its subjects anything there either. Suppress it where that is the point.",
    ),
    lint(
        "conflicting-rules",
        Level::Error,
        "Two rules mean the same and say the opposite",
        "The first decides, always; the second was meant by somebody.",
    ),
    lint(
        "deny-after-allow-any",
        Level::Error,
        "A deny stands after a rule that allows everybody",
        "The first rule that matches decides, so that the deny never does.",
    ),
    lint(
        "egress-world-any-port",
        Level::Warning,
        "Egress to the world on every TCP port",
        "Whoever takes over the workload can send data anywhere. Name the ports, and where possible the networks.",
    ),
    lint(
        "expired",
        Level::Warning,
        "An object has expired",
        "It is evaluated as if absent, which looks different from what the file says.",
    ),
    lint(
        "expires-soon",
        Level::Note,
        "An object expires soon",
        "What it allows ends at that moment, for open connections too.",
    ),
    lint(
        "half-open",
        Level::Warning,
        "Only one end allows the connection",
        "A connection passes only if the source's egress and the destination's ingress both allow it. Rules are never mirrored. It works while the other end only observes, and stops when it enforces.",
    ),
    lint(
        "impossible-selector",
        Level::Error,
        "A selector contradicts itself",
        "No labels can satisfy it, so that what it stands in means nobody.",
    ),
    lint(
        "keep-without-effect",
        Level::Note,
        "existing: keep on a rule that admits nothing",
        "It is about flows that the rule admitted; only rules that allow admit any.",
    ),
    lint(
        "long-grant",
        Level::Note,
        "A grant lasts long",
        "Just-in-time access ends by itself. What is needed for longer belongs into a policy with an owner.",
    ),
    lint(
        "missing-owner",
        Level::Note,
        "Nobody answers for an object",
        "metadata.owner tells whom to ask before it is changed or removed.",
    ),
    lint(
        "order-by-name",
        Level::Note,
        "Only the names decide which of two rules comes first",
        "Two policies of one tier have the same priority, and rules of theirs that may mean the same flow say the opposite. Renaming one changes the verdict. Say the order with priorities.",
    ),
    lint(
        "redundant-item",
        Level::Note,
        "A peer or port is covered by the others of its rule",
        "A rule matches any of its peers and any of its ports, so that the item adds nothing.",
    ),
    lint(
        "redundant-rule",
        Level::Note,
        "A rule that later rules make superfluous",
        "Without it, the rules after it decide the same for every flow.",
    ),
    lint(
        "replaced-still-there",
        Level::Warning,
        "An enforced policy names one that it replaces, and that is still there",
        "replaces is about the draft of a staged policy. Now that this one is enforced, both are.",
    ),
    lint(
        "replaces-nothing",
        Level::Warning,
        "replaces names no policy",
        "The draft is then both policies together. Perhaps the other one is in files that were not given.",
    ),
    lint(
        "rule-wider-than-traffic",
        Level::Note,
        "A rule allows much more than was seen",
        "Recorded traffic used only a small part of the peers or ports. What is rare may be missing from the records.",
    ),
    lint(
        "shadowed-rule",
        Level::Warning,
        "A rule that is never reached",
        "Rules before it decide everything that it means: it has no effect. A note where they do the same as it would.",
    ),
    lint(
        "staged-long",
        Level::Note,
        "A policy has been staged for long",
        "The annotation cofferdam.dev/staged-since tells since when. Enforce it or remove it.",
    ),
    lint(
        "suppression-unknown",
        Level::Warning,
        "A suppression names no lint",
        "Perhaps it is misspelt; it suppresses nothing.",
    ),
    lint(
        "suppression-unused",
        Level::Note,
        "A suppression suppresses nothing",
        "What it was for is gone.",
    ),
    lint(
        "suppression-without-reason",
        Level::Warning,
        "A suppression gives no reason",
        "It does not count without one.",
    ),
    lint(
        "unused-address-group",
        Level::Note,
        "Nothing uses an address group",
        "Perhaps what uses it is in files that were not given.",
    ),
    lint(
        "unused-rule",
        Level::Note,
        "No recorded flow needed a rule",
        "Recorded traffic never came to this rule. What is rare may be missing from the records.",
    ),
    lint(
        "unused-service",
        Level::Note,
        "Nothing uses a service",
        "Perhaps what uses it is in files that were not given.",
    ),
    lint(
        "world-open-admin-port",
        Level::Error,
        "A port for administration or data is open to the world",
        "Remote shells, databases, orchestration and file sharing are what scanners look for first. Allow the networks that need it, or a grant with an end.",
    ),
    lint(
        "zero-match-selector",
        Level::Warning,
        "A selector selects nobody",
        "No workload of the inventory has these labels. A subject that selects nobody protects nobody.",
    ),
];

/// Every kind of finding, by id.
#[must_use]
pub const fn lints() -> &'static [Lint] {
    LINTS
}

/// The kind of an id.
#[must_use]
pub fn lint_of(id: &str) -> Option<&'static Lint> {
    LINTS.iter().find(|lint| lint.id == id)
}
