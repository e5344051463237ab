//! A policy from what the chains decide.

use super::condition::without_answers;
use super::walk::{Seen, Step, Walk, allowed, walk};
use super::{Base, HostOptions, Phase, Ruleset, SourceRule, Verdict, Way};
use crate::brownfield::intervals::Addresses;
use crate::brownfield::problem::Limit;
use crate::brownfield::region::{Cell, Region, all_services};
use crate::brownfield::report::{Item, Outcome, Report, shown};
use crate::brownfield::{Imported, SOURCE_ANNOTATION, emit};
use crate::model::{Action, Metadata, Object, Policy, Rule, State};
use crate::snapshot::FlowDirection;
use crate::walk::direction_name;

/// Most rules of the finished policy.
const MAX_RULES: usize = 20_000;

/// Makes one staged policy of a rule set.
pub(crate) fn build(set: &Ruleset, options: &HostOptions, source: &str) -> Result<Imported, Limit> {
    let mut builder = Builder {
        set,
        options,
        seen: vec![Seen::default(); set.rules.len()],
        carried: vec![Vec::new(); set.rules.len()],
        report: Report::default(),
        rules: 0,
    };
    let ingress = builder.direction(FlowDirection::Ingress)?;
    let egress = builder.direction(FlowDirection::Egress)?;
    builder.report.items = builder.items();
    let policy = Policy {
        metadata: Metadata {
            name: options.name.clone(),
            owner: options.owner.clone(),
            annotations: [(SOURCE_ANNOTATION.to_owned(), source.to_owned())].into(),
            description: Some("imported; the names of the rules say what they were made of".into()),
            ..Metadata::default()
        },
        priority: 1000,
        subject: options.subject.clone(),
        state: State::Staged,
        ingress: Some(ingress),
        egress: Some(egress),
        ..Policy::default()
    };
    Ok(Imported {
        objects: vec![Object::Policy(policy)],
        report: builder.report,
    })
}

struct Builder<'a> {
    set: &'a Ruleset,
    options: &'a HostOptions,
    seen: Vec<Seen>,
    carried: Vec<Vec<String>>,
    report: Report,
    rules: usize,
}

impl Builder<'_> {
    fn direction(&mut self, direction: FlowDirection) -> Result<Vec<Rule>, Limit> {
        let v4 = self.group(direction, Addresses::all_v4());
        let v6 = self.group(direction, Addresses::all_v6());
        // Families that meet the same chains share their rules.
        let groups = if v4 == v6 {
            vec![(Addresses::all(), v4)]
        } else {
            vec![(Addresses::all_v4(), v4), (Addresses::all_v6(), v6)]
        };
        let mut rules = Vec::new();
        for (families, bases) in groups {
            let families = Cell {
                peers: families,
                services: all_services(),
            };
            for step in self.family(direction, &families, &bases)? {
                self.emit(direction, &step, &mut rules)?;
            }
        }
        Ok(rules)
    }

    /// Base chains on the way of packets that open connections, in order.
    fn group(&self, direction: FlowDirection, family: Addresses) -> Vec<usize> {
        self.bases(way_of(direction), &family, false)
    }

    fn bases(&self, way: Way, family: &Addresses, later: bool) -> Vec<usize> {
        let fits = |base: &Base| {
            base.way == way
                && !base.families.intersection(family).is_empty()
                && !(later && base.opening_only)
        };
        let all = self.set.bases.iter().enumerate();
        let mut found: Vec<usize> = all
            .filter(|(_, base)| fits(base))
            .map(|(index, _)| index)
            .collect();
        found.sort_by_key(|index| self.set.bases.get(*index).map(|base| base.order));
        found
    }

    /// The decisions of one direction about one family (or both).
    fn family(
        &mut self,
        direction: FlowDirection,
        families: &Cell,
        bases: &[usize],
    ) -> Result<Vec<Step>, Limit> {
        if bases.is_empty() && self.set.complete.intersection(&families.peers).is_empty() {
            self.report.remark(format!(
                "no rules for {} were given: the policy denies all of it",
                if families.peers.v4.is_empty() {
                    "IPv6"
                } else {
                    "IPv4"
                },
            ));
            return Ok(Vec::new());
        }
        let mut rewritten = Vec::new();
        let mut steps = Vec::new();
        let mut last: Vec<Step> = vec![Step {
            region: Region::of(families.clone()),
            allow: true,
            rule: None,
        }];
        for base in bases {
            let found = self.opening(*base, families)?;
            rewritten.extend(found.rewritten);
            // Every base chain has to accept: of all but the last one only the denials count.
            if has_denials(&last) {
                steps.extend(denials(&last, families)?);
            }
            last = found.steps;
            if !self.set.bases.get(*base).is_some_and(|base| base.accept) {
                last.push(Step {
                    region: Region::of(families.clone()),
                    allow: false,
                    rule: None,
                });
            }
        }
        let mut list = rewritten;
        list.extend(self.answers(direction, families)?);
        list.extend(steps);
        list.extend(last);
        let mut steps = list;
        // The policy's own default deny ends the list.
        while steps
            .last()
            .is_some_and(|step| !step.allow && step.rule.is_none())
        {
            steps.pop();
        }
        Ok(steps)
    }

    fn opening(&mut self, base: usize, families: &Cell) -> Result<Walk, Limit> {
        let Some(base) = self.set.bases.get(base) else {
            return Ok(Walk::default());
        };
        let found = walk(
            self.set,
            self.options,
            base,
            base.way,
            Phase::Opening,
            families,
        )?;
        for (own, new) in self.seen.iter_mut().zip(&found.seen) {
            own.visited |= new.visited;
            own.certain |= new.certain;
            own.wider |= new.wider;
            own.narrower |= new.narrower;
            own.left_out |= new.left_out;
            for reason in &new.unknown {
                if !own.unknown.contains(reason) {
                    own.unknown.push(reason.clone());
                }
            }
        }
        Ok(found)
    }

    /// Denials of connections whose later packets or replies would not pass.
    fn answers(
        &mut self,
        direction: FlowDirection,
        families: &Cell,
    ) -> Result<Option<Step>, Limit> {
        let forward = way_of(direction);
        let back = match forward {
            Way::In => Way::Out,
            Way::Out => Way::In,
        };
        let mut passing = Region::of(families.clone());
        for (way, phase) in [(forward, Phase::Later), (back, Phase::Reply)] {
            for base in self.bases(way, &families.peers, true) {
                let Some(base) = self.set.bases.get(base) else {
                    continue;
                };
                // A chain says nothing about packets of a family that it does not see.
                let own = Cell {
                    peers: families.peers.intersection(&base.families),
                    services: all_services(),
                };
                let found = walk(self.set, self.options, base, way, phase, &own)?;
                for (own, new) in self.seen.iter_mut().zip(&found.seen) {
                    own.visited |= new.visited;
                }
                let cut = Region::of(own.clone()).without(&allowed(&found.steps, &own)?)?;
                passing = passing.without(&cut)?;
            }
        }
        let needs_none = Cell {
            peers: Addresses::all(),
            services: without_answers(),
        };
        let cut = Region::of(families.clone())
            .without(&passing)?
            .without_cell(&needs_none)?;
        if cut.is_empty() {
            return Ok(None);
        }
        self.report.remark(format!(
            "{}: some connections are denied because the rules let their first packet pass, but not \
             their later packets or replies (clients are taken to use ports from 1024 up)",
            direction_name(direction)
        ));
        Ok(Some(Step {
            region: cut,
            allow: false,
            rule: None,
        }))
    }

    fn emit(
        &mut self,
        direction: FlowDirection,
        step: &Step,
        rules: &mut Vec<Rule>,
    ) -> Result<(), Limit> {
        let action = if step.allow {
            Action::Allow
        } else {
            Action::Deny
        };
        let name = match step.rule.and_then(|rule| self.set.rules.get(rule)) {
            Some(rule) => rule_name(rule),
            None if step.allow => "what no rule decides is accepted".into(),
            None => "dropped at the end of a chain, or without a way back".into(),
        };
        let new = emit::rules(&step.region, action, &name);
        self.rules += new.len();
        if self.rules > MAX_RULES {
            return Err(Limit::Rules(MAX_RULES));
        }
        for rule in new {
            if let Some(carried) = step.rule.and_then(|rule| self.carried.get_mut(rule)) {
                carried.push(format!(
                    "standard/{}/{}[{}]",
                    self.options.name,
                    direction_name(direction),
                    rules.len()
                ));
            }
            rules.push(rule);
        }
        Ok(())
    }

    fn items(&self) -> Vec<Item> {
        let mut chain_of = vec![None; self.set.rules.len()];
        for chain in &self.set.chains {
            for rule in &chain.rules {
                if let Some(slot) = chain_of.get_mut(*rule) {
                    *slot = Some(chain);
                }
            }
        }
        let rules = self.set.rules.iter().zip(&self.seen).zip(&self.carried);
        rules
            .zip(chain_of)
            .map(|(((rule, seen), carried), chain)| {
                let elsewhere = chain.and_then(|chain| chain.elsewhere.as_deref());
                let (outcome, reason) = judge(rule, seen, elsewhere, self.options.allow_wider);
                Item {
                    file: rule.file.clone(),
                    place: rule.place.clone(),
                    rule: shown(&rule.text),
                    outcome,
                    reason,
                    carried_as: carried.clone(),
                }
            })
            .collect()
    }
}

const fn way_of(direction: FlowDirection) -> Way {
    match direction {
        FlowDirection::Ingress => Way::In,
        FlowDirection::Egress => Way::Out,
    }
}

fn has_denials(steps: &[Step]) -> bool {
    steps.iter().any(|step| !step.allow)
}

/// The denials of a list, each without what an earlier decision of the list allowed.
fn denials(steps: &[Step], families: &Cell) -> Result<Vec<Step>, Limit> {
    let mut left = Region::of(families.clone());
    let mut denials = Vec::new();
    for step in steps {
        if !step.allow {
            let region = left.intersection(&step.region)?;
            if !region.is_empty() {
                denials.push(Step {
                    region,
                    ..step.clone()
                });
            }
        }
        left = left.without(&step.region)?;
    }
    Ok(denials)
}

/// `INPUT line 12: let the monitor in`.
fn rule_name(rule: &SourceRule) -> String {
    match &rule.comment {
        Some(comment) => format!("{}: {comment}", rule.label),
        None => rule.label.clone(),
    }
}

/// Outcome and reason of one rule.
fn judge(
    rule: &SourceRule,
    seen: &Seen,
    elsewhere: Option<&str>,
    wide: bool,
) -> (Outcome, Option<String>) {
    let unknown = (!seen.unknown.is_empty()).then(|| seen.unknown.join("; "));
    if rule.clauses.is_empty() {
        let reason = rule.aside.as_deref().unwrap_or("it decides nothing");
        return (Outcome::NotCarriedOver, Some(reason.to_owned()));
    }
    if !seen.visited {
        let reason =
            elsewhere.unwrap_or("no packet between the network and the host reaches its chain");
        return (Outcome::NotCarriedOver, Some(reason.to_owned()));
    }
    let verdicts = || rule.clauses.iter().map(|clause| &clause.verdict);
    let rewrites = verdicts().any(|verdict| *verdict == Verdict::Rewrite);
    let reason = rule
        .clauses
        .iter()
        .find_map(|clause| match &clause.verdict {
            Verdict::Elsewhere(who) => Some(who.clone()),
            Verdict::Rewrite => Some(
                "it rewrites addresses or ports: rules after it do not see what is on the wire, as policy does"
                    .to_owned(),
            ),
            _ => None,
        })
        .or(unknown);
    let outcome = match (seen.wider, seen.narrower, seen.left_out) {
        (true, _, _) => Outcome::Wider,
        (_, true, _) => Outcome::Narrower,
        (_, _, true) if seen.certain => Outcome::Narrower,
        (_, _, true) => Outcome::NotCarriedOver,
        // A jump or return whose condition is not known: what hangs on it says how it came out.
        _ if !seen.unknown.is_empty() && wide => Outcome::Wider,
        _ if !seen.unknown.is_empty() => Outcome::Narrower,
        _ if rewrites => Outcome::NotCarriedOver,
        _ => Outcome::Exact,
    };
    if outcome == Outcome::Exact {
        let note = rule.aside.clone().or_else(|| {
            (!seen.certain).then(|| "no new connection through the network matches it".to_owned())
        });
        return (outcome, note);
    }
    (outcome, reason)
}
