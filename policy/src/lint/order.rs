//! Every rule of a set in the order of evaluation, and what of a rule is ever reached.

use std::collections::HashSet;

use time::OffsetDateTime;

use super::region::{self, Region, class};
use crate::model::{Action, Policy, State, Tier};
use crate::set::{PolicySet, is_live};
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::walk::{Lens, direction_name, policy_name};

/// Where a rule is asked; the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Filter,
    Guardrail,
    Grants,
    Standard,
    Baseline,
}

impl From<Tier> for Stage {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Guardrail => Self::Guardrail,
            Tier::Standard => Self::Standard,
            Tier::Baseline => Self::Baseline,
        }
    }
}

/// Which lenses something counts in for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) enforced: bool,
    pub(super) draft: bool,
}

impl Counts {
    pub(super) const fn through(self, lens: Lens) -> bool {
        match lens {
            Lens::Enforced => self.enforced,
            Lens::Draft => self.draft,
        }
    }
}

/// One rule, grant or filter entry.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// As in records: `standard/shop-db/ingress[0]`.
    pub(super) name: String,
    /// `Policy/shop-db`.
    pub(super) object: String,
    /// Where the object begins.
    pub(super) object_place: &'a Place,
    pub(super) place: &'a Place,
    pub(super) stage: Stage,
    /// A filter entry that allows goes on with the next tier.
    pub(super) action: Action,
    pub(super) keep: bool,
    pub(super) audit: bool,
    pub(super) regions: Vec<Region>,
    pub(super) expires: Option<OffsetDateTime>,
    pub(super) counts: Counts,
    /// Whether it is a rule of a staged policy.
    pub(super) staged: bool,
    pub(super) policy: Option<&'a Policy>,
    /// Position in its policy's list.
    pub(super) index: usize,
}

impl Entry<'_> {
    /// The lenses in which its own fate matters.
    pub(super) fn lenses(&self) -> &'static [Lens] {
        if self.staged {
            &[Lens::Draft]
        } else {
            &[Lens::Enforced, Lens::Draft]
        }
    }

    /// Whether it is there whenever `other` is.
    fn outlives(&self, other: Option<OffsetDateTime>) -> bool {
        match (self.expires, other) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => own >= other,
        }
    }
}

/// A standard policy that closes a direction for its subjects.
#[derive(Debug)]
pub(super) struct Closer {
    pub(super) name: String,
    regions: Vec<Region>,
    expires: Option<OffsetDateTime>,
    counts: Counts,
}

/// One direction's rules.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) direction: FlowDirection,
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) closers: Vec<Closer>,
}

impl<'a> Order<'a> {
    /// Everything that has not expired.
    pub(super) fn new(set: &'a PolicySet, direction: FlowDirection, at: OffsetDateTime) -> Self {
        let replaced: HashSet<&str> = (set.policies().iter())
            .filter(|policy| policy.state == State::Staged)
            .filter_map(|policy| policy.replaces.as_deref())
            .collect();
        let mut order = Self {
            direction,
            entries: Vec::new(),
            closers: Vec::new(),
        };
        order.filters(set);
        order.grants(set, at);
        for policy in set.policies() {
            if is_live(policy.expires, at) && policy.rules(direction).is_some() {
                let counts = Counts {
                    enforced: policy.state == State::Enforced,
                    draft: !replaced.contains(policy.metadata.name.as_str()),
                };
                order.policy(set, policy, counts);
            }
        }
        // The set is sorted within each of these.
        order.entries.sort_by_key(|entry| entry.stage);
        order
    }

    fn filters(&mut self, set: &'a PolicySet) {
        let way = direction_name(self.direction);
        for filter in set.filters() {
            for (index, entry) in filter.entries.iter().enumerate() {
                if entry.direction != self.direction {
                    continue;
                }
                let peer = entry.cidr.map(|cidr| crate::model::Peer::Cidr {
                    cidr,
                    except: Vec::new(),
                });
                let denies = !entry.allow;
                let (peers, ports) = (peer.as_slice(), entry.ports.as_slice());
                self.entries.push(Entry {
                    name: format!("filter/{}/{way}[{index}]", filter.metadata.name),
                    object: format!("Filter/{}", filter.metadata.name),
                    object_place: &filter.place,
                    place: &entry.place,
                    stage: Stage::Filter,
                    action: if entry.allow {
                        Action::Allow
                    } else {
                        Action::Deny
                    },
                    keep: false,
                    audit: false,
                    regions: region::rule_regions(set, &filter.subject, peers, ports, denies),
                    expires: None,
                    counts: Counts {
                        enforced: true,
                        draft: true,
                    },
                    staged: false,
                    policy: None,
                    index,
                });
            }
        }
    }

    fn grants(&mut self, set: &'a PolicySet, at: OffsetDateTime) {
        let way = direction_name(self.direction);
        for grant in set.grants() {
            if !is_live(Some(grant.expires), at) || !grant.speaks(self.direction) {
                continue;
            }
            self.entries.push(Entry {
                name: format!("grants/{}/{way}[0]", grant.metadata.name),
                object: format!("Grant/{}", grant.metadata.name),
                object_place: &grant.place,
                place: &grant.place,
                stage: Stage::Grants,
                action: Action::Allow,
                keep: false,
                audit: false,
                regions: region::rule_regions(
                    set,
                    &grant.subject,
                    &grant.peers,
                    &grant.ports,
                    false,
                ),
                expires: Some(grant.expires),
                counts: Counts {
                    enforced: true,
                    draft: true,
                },
                staged: false,
                policy: None,
                index: 0,
            });
        }
    }

    fn policy(&mut self, set: &'a PolicySet, policy: &'a Policy, counts: Counts) {
        let name = format!("{}/{}", policy_name(policy), direction_name(self.direction));
        let object = crate::model::Object::Policy(Policy {
            metadata: policy.metadata.clone(),
            kind: policy.kind,
            ..Policy::default()
        })
        .id();
        for (index, rule) in policy
            .rules(self.direction)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            let denies = rule.action == Action::Deny;
            self.entries.push(Entry {
                name: format!("{name}[{index}]"),
                object: object.clone(),
                object_place: &policy.place,
                place: &rule.place,
                stage: policy.tier.into(),
                action: rule.action,
                keep: rule.keep,
                audit: rule.audit,
                regions: region::rule_regions(
                    set,
                    &policy.subject,
                    &rule.peers,
                    &rule.ports,
                    denies,
                ),
                expires: policy.expires,
                counts,
                staged: policy.state == State::Staged,
                policy: Some(policy),
                index,
            });
        }
        if policy.tier == Tier::Standard
            && let Some(subject) = region::label_box(&policy.subject)
        {
            self.closers.push(Closer {
                name,
                regions: vec![Region::of_subject(subject, class::KNOWN | class::UNKNOWN)],
                expires: policy.expires,
                counts,
            });
        }
    }

    /// What of an entry may be reached, seen through a lens, with some entries left out; `None` when
    /// that takes too many pieces.
    pub(super) fn arrivals(
        &self,
        index: usize,
        lens: Lens,
        without: &HashSet<usize>,
    ) -> Option<Vec<Region>> {
        let entry = self.entries.get(index)?;
        let mut pieces = entry.regions.clone();
        for stage in [
            Stage::Filter,
            Stage::Guardrail,
            Stage::Grants,
            Stage::Standard,
        ] {
            if stage < entry.stage && !pieces.is_empty() {
                pieces = self.through(stage, pieces, entry.expires, lens, without)?;
            }
        }
        for (other_index, other) in self.entries.iter().enumerate().take(index) {
            if other.stage == entry.stage
                && !without.contains(&other_index)
                && other.counts.through(lens)
                && other.outlives(entry.expires)
            {
                pieces = region::minus(pieces, &other.regions)?;
            }
        }
        Some(pieces)
    }

    /// What of some flows may leave a stage undecided.
    fn through(
        &self,
        stage: Stage,
        pieces: Vec<Region>,
        expires: Option<OffsetDateTime>,
        lens: Lens,
        without: &HashSet<usize>,
    ) -> Option<Vec<Region>> {
        let mut passed = Vec::new();
        let mut rest = pieces;
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.stage != stage || without.contains(&index) {
                continue;
            }
            let goes_on = match stage {
                Stage::Filter => entry.action == Action::Allow,
                _ => entry.action == Action::Pass,
            };
            if goes_on {
                // Also where it is not certain to be there: if it is, these get past what follows.
                passed.extend(region::and(&rest, &entry.regions));
            }
            if entry.counts.through(lens) && entry.outlives(expires) {
                rest = region::minus(rest, &entry.regions)?;
            }
        }
        if stage == Stage::Standard {
            for closer in &self.closers {
                let lives = match (closer.expires, expires) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(own), Some(other)) => own >= other,
                };
                if closer.counts.through(lens) && lives {
                    rest = region::minus(rest, &closer.regions)?;
                }
            }
        }
        rest.extend(passed);
        Some(rest)
    }

    /// Whether the standard tier certainly closes the direction for all of a subject.
    pub(super) fn closes(&self, pieces: Vec<Region>, lens: Lens) -> bool {
        let certain = self
            .closers
            .iter()
            .filter(|closer| closer.counts.through(lens) && closer.expires.is_none());
        let taken: Vec<Region> = certain
            .flat_map(|closer| closer.regions.iter().cloned())
            .collect();
        region::minus(pieces, &taken).is_some_and(|left| left.is_empty())
    }

    /// The entries that keep another from being reached: one alone if one is enough, else as few as are
    /// easily found.
    pub(super) fn culprits(&self, index: usize, lens: Lens) -> Vec<usize> {
        let Some(entry) = self.entries.get(index) else {
            return Vec::new();
        };
        let candidates: Vec<usize> = (0..index)
            .filter(|other| {
                self.entries.get(*other).is_some_and(|other| {
                    other.counts.through(lens)
                        && other.outlives(entry.expires)
                        && region::meet(&other.regions, &entry.regions)
                })
            })
            .collect();
        let suffices = |kept: &[usize]| {
            let without: HashSet<usize> = candidates
                .iter()
                .copied()
                .filter(|own| !kept.contains(own))
                .collect();
            self.arrivals(index, lens, &without)
                .is_some_and(|left| left.is_empty())
        };
        if candidates.len() > 64 {
            return candidates;
        }
        if let Some(one) = candidates.iter().find(|one| suffices(&[**one])) {
            return vec![*one];
        }
        let mut kept = candidates.clone();
        for candidate in candidates.iter().rev() {
            let fewer: Vec<usize> = kept
                .iter()
                .copied()
                .filter(|own| own != candidate)
                .collect();
            if suffices(&fewer) {
                kept = fewer;
            }
        }
        kept
    }

    /// The entries that would decide what this one decides, if it were not there, through every lens;
    /// `None` when something would change. `without` are entries that are to go too.
    pub(super) fn is_redundant(
        &self,
        index: usize,
        without: &HashSet<usize>,
    ) -> Option<Vec<usize>> {
        let entry = self.entries.get(index)?;
        if entry.stage == Stage::Grants {
            return None;
        }
        let mut helpers = Vec::new();
        for lens in entry.lenses() {
            let mut rest = self.arrivals(index, *lens, without)?;
            for (other_index, other) in self.entries.iter().enumerate().skip(index + 1) {
                if other.stage != entry.stage || rest.is_empty() {
                    continue;
                }
                let alike = (other.action, other.keep, other.audit)
                    == (entry.action, entry.keep, entry.audit);
                if !region::meet(&rest, &other.regions) {
                    continue;
                }
                if !alike {
                    return None;
                }
                // What is to go itself is no help, but what it hides now would come to light.
                let helps = !without.contains(&other_index);
                if helps && other.counts.through(*lens) && other.outlives(entry.expires) {
                    rest = region::minus(rest, &other.regions)?;
                    helpers.push(other_index);
                }
            }
            // What an allowing filter entry lets through goes on as if nothing had matched.
            let goes_on = entry.stage == Stage::Filter && entry.action == Action::Allow;
            if !rest.is_empty() && !goes_on {
                return None;
            }
        }
        helpers.sort_unstable();
        helpers.dedup();
        Some(helpers)
    }
}
