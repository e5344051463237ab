//! How far workloads come, without and with a change.

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::report::{Radius, RadiusRow, Widening};
use crate::api::Scenario;
use crate::reach::{BlastRadius, Lens, Reach};

/// Workloads that are looked at; past them the rest is left out, and that is told.
const WORKLOADS: usize = 500;

/// How far workloads come, and pairs that are new or gone.
#[derive(Debug, Default)]
pub(crate) struct Radii {
    pub(crate) rows: Vec<RadiusRow>,
    pub(crate) widening: Widening,
}

/// Compares, for workloads of both worlds, who they can come to. `first` are looked at first; `seen`
/// are pairs with recorded traffic.
pub(crate) fn compare(
    before: &Scenario,
    after: &Scenario,
    first: &BTreeSet<String>,
    seen: &BTreeSet<(String, String)>,
    at: OffsetDateTime,
) -> Radii {
    let rest = (after.world.workloads().iter()).map(crate::world::Workload::full_name);
    let others: Vec<String> = rest.filter(|name| !first.contains(name)).collect();
    let names: Vec<&String> = first.iter().chain(&others).take(WORKLOADS).collect();
    let mut radii = Radii::default();
    radii.widening.left_out = (first.len() + others.len()).saturating_sub(names.len());
    let mut old = Reach::new(&before.world, &before.set, at);
    let mut new = Reach::new(&after.world, &after.set, at);
    for name in names {
        // A workload that is only on one side comes nowhere on the other.
        let mut both = |lens| {
            let nowhere = |name: &String| BlastRadius {
                workload: name.clone(),
                direct: Vec::new(),
                all: Vec::new(),
            };
            (
                old.blast_radius(name, lens)
                    .unwrap_or_else(|_| nowhere(name)),
                new.blast_radius(name, lens)
                    .unwrap_or_else(|_| nowhere(name)),
            )
        };
        let (enforced, draft) = (both(Lens::Enforced), both(Lens::Draft));
        let widening = &mut radii.widening;
        let (added, unseen) = gained(name, &enforced, seen);
        widening.pairs += added;
        widening.never_seen += unseen;
        let (added, unseen) = gained(name, &draft, seen);
        widening.draft_pairs += added;
        widening.draft_never_seen += unseen;
        if enforced.0 != enforced.1 || draft.0 != draft.1 {
            radii.rows.push(RadiusRow {
                workload: name.clone(),
                before: radius(&enforced.0),
                after: radius(&enforced.1),
                draft_before: radius(&draft.0),
                draft_after: radius(&draft.1),
            });
        }
    }
    // The furthest gain first; a workload that comes less far is the last.
    let growth = |before: Radius, after: Radius| {
        let number = |radius: Radius| i64::try_from(radius.all).unwrap_or(i64::MAX);
        number(after) - number(before)
    };
    radii.rows.sort_by_key(|row| {
        std::cmp::Reverse(
            growth(row.before, row.after).max(growth(row.draft_before, row.draft_after)),
        )
    });
    radii
}

fn radius(of: &BlastRadius) -> Radius {
    Radius {
        direct: of.direct.len(),
        all: of.all.len(),
    }
}

/// Workloads that can be reached now and could not before: all, and those without recorded traffic.
fn gained(
    name: &str,
    (before, after): &(BlastRadius, BlastRadius),
    seen: &BTreeSet<(String, String)>,
) -> (u64, u64) {
    let old: BTreeSet<&String> = before.direct.iter().collect();
    let new = || after.direct.iter().filter(|peer| !old.contains(peer));
    let unseen = new().filter(|peer| !seen.contains(&(name.to_owned(), (*peer).clone())));
    (new().count() as u64, unseen.count() as u64)
}
