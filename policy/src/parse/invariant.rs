//! Invariants: what must, or must never, be reachable.

use super::fields::{Fields, boolean, word};
use super::node::Node;
use super::peers::peers;
use super::ports::{self, Allow};
use crate::model::{Expectation, Invariant, Metadata, Peer};
use crate::problems::{Problem, Problems};
use crate::reach::Lens;
use crate::source::Place;

pub(super) fn invariant(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<Invariant> {
    let mut fields = Fields::open(spec, "invariant", problems)?;
    let from = side(&mut fields, "from", problems);
    let to = side(&mut fields, "to", problems);
    let before = problems.0.len();
    let ports = fields
        .take("ports")
        .map(|node| ports::ports(node, Allow::NO_NAMES, problems))
        .unwrap_or_default();
    let ports_are_right = problems.0.len() == before;
    let expect = fields
        .require("expect", problems)
        .and_then(|node| word(node, "expect", Expectation::WORDS, problems));
    let lens = fields
        .word("lens", Lens::WORDS, problems)
        .unwrap_or_default();
    let transitive_node = fields.take("transitive");
    let transitive = transitive_node
        .and_then(|node| boolean(node, "transitive", problems))
        .unwrap_or_default();
    let reason = fields.text("reason", problems);
    fields.finish(problems);
    if expect == Some(Expectation::Reachable) {
        if ports.is_empty() && ports_are_right {
            problems.push(
                Problem::at(&spec.place, "what must be reachable needs \"ports\"")
                    .suggest("every port of every protocol is hardly meant: list those that are"),
            );
        }
        if let (true, Some(node)) = (transitive, transitive_node) {
            problems.push(
                Problem::at(
                    &node.place,
                    "\"transitive\" has a meaning with expect: unreachable only",
                )
                .suggest("remove it: whoever must be reachable must be so without a detour"),
            );
        }
    }
    Some(Invariant {
        metadata,
        from,
        to,
        ports,
        // Without one there was a problem, and the invariant is never checked.
        expect: expect.unwrap_or_default(),
        lens,
        transitive,
        reason,
        place,
    })
}

/// One side: peers as in rules, but somebody has to be meant.
fn side(fields: &mut Fields<'_>, key: &'static str, problems: &mut Problems) -> Vec<Peer> {
    let Some(node) = fields.require(key, problems) else {
        return Vec::new();
    };
    let before = problems.0.len();
    let given = peers(node, problems);
    if given.is_empty() && problems.0.len() == before {
        problems.push(
            Problem::at(&node.place, format!("\"{key}\" means nobody"))
                .suggest("list peers as in a rule; for everybody, entity: any"),
        );
    }
    given
}
