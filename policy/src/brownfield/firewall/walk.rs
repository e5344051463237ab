//! Follows chains and jumps, and lists what they decide about flows, in order.
//!
//! Two sets of flows walk through the rules: those that are certainly here, and those that may be here
//! because a condition on the way has no word in policy. What may be accepted is left out and what may be
//! dropped is denied, so that the result allows less than the source; asked to be wide, the other way round.

use super::condition::{Context, Meaning};
use super::{Base, HostOptions, Phase, Ruleset, Verdict, Way};
use crate::brownfield::problem::Limit;
use crate::brownfield::region::{Cell, Region};

/// Most rules that following all jumps may meet.
const MAX_VISITS: usize = 200_000;
/// The kernel itself goes no deeper than 16.
const MAX_DEPTH: usize = 32;
/// Most rules of one direction.
pub(crate) const MAX_STEPS: usize = 10_000;

/// One decision.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) region: Region,
    pub(crate) allow: bool,
    /// Index of the rule; `None` for what a base chain does at its end.
    pub(crate) rule: Option<usize>,
}

/// What was seen of a rule while following the packets that open connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) visited: bool,
    /// Some flow certainly matches.
    pub(crate) certain: bool,
    /// Flows were allowed that perhaps should not be.
    pub(crate) wider: bool,
    /// Flows were denied that perhaps should not be.
    pub(crate) narrower: bool,
    /// Flows that may have been accepted were left to later rules.
    pub(crate) left_out: bool,
    /// Why.
    pub(crate) unknown: Vec<String>,
}

/// Flows at one point of the walk.
#[derive(Clone, Default)]
struct Here {
    sure: Region,
    maybe: Region,
    /// Conditions that made the second set uncertain.
    because: Vec<String>,
}

/// What one walk found.
#[derive(Default)]
pub(crate) struct Walk {
    pub(crate) steps: Vec<Step>,
    /// Flows whose packets get another destination or port.
    pub(crate) rewritten: Vec<Step>,
    pub(crate) seen: Vec<Seen>,
}

struct Walker<'a> {
    set: &'a Ruleset,
    context: Context<'a>,
    visits: usize,
    walk: Walk,
}

/// Follows one base chain for one kind of packet.
pub(crate) fn walk(
    set: &Ruleset,
    options: &HostOptions,
    base: &Base,
    way: Way,
    phase: Phase,
    families: &Cell,
) -> Result<Walk, Limit> {
    let mut walker = Walker {
        set,
        context: Context {
            options,
            way,
            phase,
            untracked: set.untracked || base.before_tracking,
        },
        visits: 0,
        walk: Walk {
            seen: vec![Seen::default(); set.rules.len()],
            ..Walk::default()
        },
    };
    let region = Region::of(families.clone());
    let mut here = Here::default();
    let known = |device: &String| options.interfaces.contains(device);
    if base.devices.is_empty()
        || (!options.interfaces.is_empty()
            && options
                .interfaces
                .iter()
                .all(|own| base.devices.contains(own)))
    {
        here.sure = region;
    } else if options.interfaces.is_empty() || base.devices.iter().any(known) {
        here.maybe = region;
        here.because.push(format!(
            "its chain is for {} only; say --interface",
            base.devices.join(", ")
        ));
    }
    walker.chain(base.chain, here, 0)?;
    if base.accept {
        walker.walk.steps.push(Step {
            region: Region::of(families.clone()),
            allow: true,
            rule: None,
        });
    }
    Ok(walker.walk)
}

impl Walker<'_> {
    fn chain(&mut self, chain: usize, mut here: Here, depth: usize) -> Result<(), Limit> {
        if depth > MAX_DEPTH {
            return Err(Limit::Depth(MAX_DEPTH));
        }
        let set = self.set;
        let Some(chain) = set.chains.get(chain) else {
            return Ok(());
        };
        for &index in &chain.rules {
            let Some(rule) = set.rules.get(index) else {
                continue;
            };
            self.visits += 1 + rule.clauses.len();
            if self.visits > MAX_VISITS {
                return Err(Limit::Visits(MAX_VISITS));
            }
            if let Some(seen) = self.walk.seen.get_mut(index) {
                seen.visited = true;
            }
            for clause in &rule.clauses {
                if here.sure.is_empty() && here.maybe.is_empty() {
                    break;
                }
                let meaning = self.context.clause(clause);
                self.clause(index, &clause.verdict, meaning, &mut here, depth)?;
            }
        }
        Ok(())
    }

    fn clause(
        &mut self,
        index: usize,
        verdict: &Verdict,
        meaning: Meaning,
        here: &mut Here,
        depth: usize,
    ) -> Result<(), Limit> {
        let mut sure = here.sure.within(&meaning.cell);
        let mut maybe = here.maybe.within(&meaning.cell);
        let mut because = meaning.unknown;
        let certain = because.is_empty();
        if !certain {
            maybe = maybe.union(&sure)?;
            sure = Region::default();
        }
        if !maybe.is_empty() {
            because.extend(here.because.iter().cloned());
        }
        if let Some(seen) = self.walk.seen.get_mut(index) {
            seen.certain |= !sure.is_empty();
            if !maybe.is_empty() {
                for reason in &because {
                    if !seen.unknown.contains(reason) && seen.unknown.len() < 8 {
                        seen.unknown.push(reason.clone());
                    }
                }
            }
        }
        let wide = self.context.options.allow_wider;
        match verdict {
            Verdict::Accept => {
                self.step(&sure, true, index)?;
                if wide {
                    self.step(&maybe, true, index)?;
                }
                self.note(index, &maybe, wide, false, !wide);
            }
            Verdict::Drop => {
                self.step(&sure, false, index)?;
                if !wide {
                    self.step(&maybe, false, index)?;
                }
                self.note(index, &maybe, wide, !wide, false);
            }
            Verdict::Rewrite => {
                for region in [&sure, &maybe] {
                    if !region.is_empty() {
                        self.walk.rewritten.push(Step {
                            region: region.clone(),
                            allow: wide,
                            rule: Some(index),
                        });
                        self.note(index, region, wide, !wide, false);
                    }
                }
                // The rest of this chain does not see them any more.
                self.step(&sure, true, index)?;
            }
            Verdict::Elsewhere(_) => {
                for region in [&sure, &maybe] {
                    self.step(region, wide, index)?;
                    self.note(index, region, wide, !wide, false);
                }
            }
            Verdict::Return => leave(&maybe, &meaning.cell, certain, &because, here)?,
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let inside = Here {
                    sure: sure.clone(),
                    maybe: maybe.clone(),
                    because: because.clone(),
                };
                if !(sure.is_empty() && maybe.is_empty()) {
                    self.chain(*target, inside, depth + 1)?;
                }
                if matches!(verdict, Verdict::Goto(_)) {
                    leave(&maybe, &meaning.cell, certain, &because, here)?;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, region: &Region, allow: bool, rule: usize) -> Result<(), Limit> {
        if region.is_empty() {
            return Ok(());
        }
        if self.walk.steps.len() >= MAX_STEPS {
            return Err(Limit::Rules(MAX_STEPS));
        }
        self.walk.steps.push(Step {
            region: region.clone(),
            allow,
            rule: Some(rule),
        });
        Ok(())
    }

    fn note(&mut self, rule: usize, region: &Region, wider: bool, narrower: bool, left_out: bool) {
        if region.is_empty() {
            return;
        }
        if let Some(seen) = self.walk.seen.get_mut(rule) {
            seen.wider |= wider;
            seen.narrower |= narrower;
            seen.left_out |= left_out;
        }
    }
}

/// Flows go back to where the chain was jumped to from. `certain` says that all that match do.
fn leave(
    maybe: &Region,
    cell: &Cell,
    certain: bool,
    because: &[String],
    here: &mut Here,
) -> Result<(), Limit> {
    here.sure = here.sure.without_cell(cell)?;
    if certain {
        here.maybe = here.maybe.without_cell(cell)?;
    } else {
        // Those that may leave may still be here.
        here.maybe = here.maybe.union(maybe)?;
        here.because = because.to_vec();
    }
    Ok(())
}

/// The flows that a list of decisions allows, first match first.
pub(crate) fn allowed(steps: &[Step], families: &Cell) -> Result<Region, Limit> {
    let mut left = Region::of(families.clone());
    let mut allowed = Region::default();
    for step in steps {
        if left.is_empty() {
            break;
        }
        if step.allow {
            allowed = allowed.union(&left.intersection(&step.region)?)?;
        }
        left = left.without(&step.region)?;
    }
    Ok(allowed)
}
