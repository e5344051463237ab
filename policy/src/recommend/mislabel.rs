//! Workloads whose traffic is another group's.
//!
//! A workload is described by its *habits*: the services that it provides and consumes, once alone and once with
//! the group at the other end. A habit weighs the more the fewer workloads have it (`log2` of all workloads over
//! those that have it). The likeness of a workload and a group is the weight of what they share over the weight of
//! what either has (weighted Jaccard), where the group counts with the share of its members that have the habit, the
//! workload itself left out. A workload is reported when another group is much liker to it than its own.
//!
//! One wrong label spoils the picture of its group, and so that of innocent members. Therefore the clearest case is
//! taken first, moved in thought to where it seems to belong, and the others are looked at again. A small group counts
//! with the liker half of its members instead of their mean, for the same reason.
//! Nothing is ever changed by this: it is evidence for people.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::atoms::Side;
use super::groups::Groups;

/// Habits that a report names, at most.
const SHOWN: usize = 5;

/// Another group must be at least this like, in thousandths.
const LEAST: i64 = 300;

/// A workload that has no label at all for a key is told about from this likeness on.
const LEAST_MISSING: i64 = 300;

/// Fewer habits tell nothing.
const LEAST_HABITS: usize = 2;

/// Groups that are looked at member by member, for each workload.
const CLOSER: usize = 8;

/// Groups with more members are only looked at as a whole.
const SMALL: usize = 8;

/// Cases that are looked at again after each other, at most.
const MOST: usize = 200;

/// What a workload does: provides or consumes a service, perhaps to or from a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Habit {
    pub(crate) provides: bool,
    /// Number of the service.
    pub(crate) service: u32,
    /// The other end's group: `None` = whoever; past the groups: strangers.
    pub(crate) peer: Option<u32>,
}

/// One habit as evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HabitEvidence {
    /// `provides tcp/5432 to app=web`.
    pub habit: String,
    /// Members of the suggested group that have it, in percent.
    pub suggested_percent: u32,
    /// Other members of its own group that have it, in percent.
    pub own_percent: u32,
}

/// A workload whose labels and traffic disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mislabel {
    /// Full name.
    pub workload: String,
    /// The group that its labels say.
    pub labelled: String,
    /// The group that its traffic says.
    pub suggested: String,
    /// Keys whose values differ: key, value now (`null` = missing), value suggested (`null` = none).
    pub changes: Vec<LabelChange>,
    /// A label is missing rather than wrong.
    pub missing: bool,
    /// Likeness to its own group, in thousandths.
    pub own_likeness: i64,
    /// Likeness to the suggested group, in thousandths.
    pub suggested_likeness: i64,
    /// What speaks for it, heaviest first.
    pub evidence: Vec<HabitEvidence>,
}

/// A label that seems wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabelChange {
    /// The key.
    pub key: String,
    /// Its value now.
    pub now: Option<String>,
    /// The value of the suggested group.
    pub suggested: Option<String>,
}

/// The habits of all workloads and the groups' shares of them.
struct Picture<'a> {
    groups: &'a Groups,
    /// By workload, in order.
    habits: Vec<Vec<u32>>,
    weights: Vec<f64>,
    names: Vec<Habit>,
    /// By habit: groups and how many of their members have it.
    holders: Vec<BTreeMap<u32, u32>>,
    /// By group: weight of all habits of all members.
    weight_of: Vec<f64>,
    sizes: Vec<u32>,
    /// Workloads by the group they are taken for.
    members: Vec<BTreeSet<u32>>,
    /// By workload: the group it is taken for.
    taken: Vec<u32>,
}

/// Likeness to one group, in thousandths.
type Likeness = (i64, u32);

impl<'a> Picture<'a> {
    fn new(groups: &'a Groups, seen: &BTreeSet<(u32, Habit)>) -> Self {
        let mut numbers: HashMap<Habit, u32> = HashMap::new();
        let mut names: Vec<Habit> = seen.iter().map(|(_, habit)| *habit).collect();
        names.sort_unstable();
        names.dedup();
        for (number, habit) in (0u32..).zip(&names) {
            numbers.insert(*habit, number);
        }
        let mut habits: Vec<Vec<u32>> = vec![Vec::new(); groups.of.len()];
        let mut holders: Vec<BTreeMap<u32, u32>> = vec![BTreeMap::new(); names.len()];
        let mut having = vec![0u32; names.len()];
        for (workload, habit) in seen {
            let Some(number) = numbers.get(habit) else {
                continue;
            };
            let group = groups.of.get(*workload as usize).copied().unwrap_or(0);
            if let (Some(list), Some(of), Some(count)) = (
                habits.get_mut(*workload as usize),
                holders.get_mut(*number as usize),
                having.get_mut(*number as usize),
            ) {
                list.push(*number);
                *of.entry(group).or_default() += 1;
                *count += 1;
            }
        }
        let all = groups.of.len().max(1) as f64;
        let weights: Vec<f64> = having
            .iter()
            .map(|count| (all / f64::from((*count).max(1))).log2())
            .collect();
        let mut picture = Self {
            groups,
            habits,
            weights,
            names,
            holders,
            weight_of: Vec::new(),
            sizes: groups
                .members
                .iter()
                .map(|m| u32::try_from(m.len()).unwrap_or(u32::MAX))
                .collect(),
            members: groups
                .members
                .iter()
                .map(|members| members.iter().copied().collect())
                .collect(),
            taken: groups.of.clone(),
        };
        picture.weight_of = vec![0.0; groups.len()];
        for workload in 0..picture.habits.len() {
            let weight = picture.weight(workload);
            let group = picture.taken.get(workload).copied().unwrap_or(0);
            if let Some(sum) = picture.weight_of.get_mut(group as usize) {
                *sum += weight;
            }
        }
        picture
    }

    fn habits_of(&self, workload: usize) -> &[u32] {
        self.habits.get(workload).map_or(&[], Vec::as_slice)
    }

    fn weight_of_habit(&self, habit: u32) -> f64 {
        self.weights.get(habit as usize).copied().unwrap_or(0.0)
    }

    fn weight(&self, workload: usize) -> f64 {
        self.habits_of(workload)
            .iter()
            .map(|habit| self.weight_of_habit(*habit))
            .sum()
    }

    /// Likeness to the group it is taken for (`None`: it is alone there) and to all others that share anything.
    fn likenesses(&self, workload: usize) -> (Option<i64>, Vec<Likeness>) {
        let own = self.taken.get(workload).copied().unwrap_or(0);
        let mut common: BTreeMap<u32, f64> = BTreeMap::new();
        for habit in self.habits_of(workload) {
            let weight = self.weight_of_habit(*habit);
            for (group, count) in self.holders.get(*habit as usize).into_iter().flatten() {
                let count = f64::from(*count) - if *group == own { 1.0 } else { 0.0 };
                *common.entry(*group).or_default() += weight * count;
            }
        }
        let mine = self.weight(workload);
        let like = |group: u32, common: f64| -> Option<i64> {
            let is_own = group == own;
            let members = self
                .sizes
                .get(group as usize)?
                .checked_sub(u32::from(is_own))?;
            if members == 0 {
                return None;
            }
            let members = f64::from(members);
            let theirs = self.weight_of.get(group as usize)? - if is_own { mine } else { 0.0 };
            let (theirs, common) = (theirs / members, common / members);
            let either = mine + theirs - common;
            Some(if either > 1e-9 {
                (common * 1000.0 / either).round() as i64
            } else {
                0
            })
        };
        let own_like = like(own, common.get(&own).copied().unwrap_or(0.0));
        let mut others: Vec<Likeness> = common
            .iter()
            .filter(|(group, _)| **group != own)
            .filter_map(|(group, common)| Some((like(*group, *common)?, *group)))
            .collect();
        let clearest_first = |a: &Likeness, b: &Likeness| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
        others.sort_by(clearest_first);
        others.truncate(CLOSER);
        for (like, group) in &mut others {
            *like = self.like_members(workload, *group).unwrap_or(*like);
        }
        others.sort_by(clearest_first);
        (
            own_like.map(|like| self.like_members(workload, own).unwrap_or(like)),
            others,
        )
    }

    /// Likeness to the liker half of the members of a small group. A stranger among few members spoils their mean,
    /// but not this.
    fn like_members(&self, workload: usize, group: u32) -> Option<i64> {
        let members = self.members.get(group as usize)?;
        let others = members
            .iter()
            .filter(|member| **member as usize != workload);
        if members.len() > SMALL {
            return None;
        }
        let mut each: Vec<i64> = others
            .map(|other| self.like_one(workload, *other as usize))
            .collect();
        each.sort_unstable_by(|a, b| b.cmp(a));
        each.truncate(each.len().div_ceil(2));
        let count = i64::try_from(each.len()).ok().filter(|count| *count > 0)?;
        Some(each.iter().sum::<i64>() / count)
    }

    /// Likeness of two workloads.
    fn like_one(&self, one: usize, two: usize) -> i64 {
        let theirs = self.habits_of(two);
        let common: f64 = self
            .habits_of(one)
            .iter()
            .filter(|habit| theirs.binary_search(habit).is_ok())
            .map(|habit| self.weight_of_habit(*habit))
            .sum();
        let either = self.weight(one) + self.weight(two) - common;
        if either > 1e-9 {
            (common * 1000.0 / either).round() as i64
        } else {
            0
        }
    }

    /// Whether a group has every key.
    fn is_complete(&self, group: u32) -> bool {
        let pattern = self.groups.pattern(group);
        pattern.iter().all(|slot| *slot != super::groups::MISSING)
    }

    /// A better group, with both likenesses.
    fn suggestion(&self, workload: usize) -> Option<(i64, i64, u32)> {
        let own = self.taken.get(workload).copied()?;
        if self.habits_of(workload).len() < LEAST_HABITS {
            return None;
        }
        let (own_like, others) = self.likenesses(workload);
        if !self.is_complete(own) {
            // Only the missing values are open; what is there stands.
            let fits = |group: u32| {
                let theirs = self.groups.pattern(group);
                let mine = self.groups.pattern(own);
                self.is_complete(group)
                    && mine
                        .iter()
                        .zip(&theirs)
                        .all(|(a, b)| a == b || *a == super::groups::MISSING)
            };
            let best = others.iter().find(|(_, group)| fits(*group))?;
            return (best.0 >= LEAST_MISSING).then_some((own_like.unwrap_or(0), best.0, best.1));
        }
        // Who is alone in a group cannot be unlike it.
        let own_like = own_like?;
        let best = others.iter().find(|(_, group)| self.is_complete(*group))?;
        (best.0 >= LEAST && best.0 * 2 >= own_like * 3).then_some((own_like, best.0, best.1))
    }

    fn take_for(&mut self, workload: usize, group: u32) {
        let Some(old) = self.taken.get(workload).copied() else {
            return;
        };
        let weight = self.weight(workload);
        for habit in self.habits.get(workload).into_iter().flatten() {
            if let Some(holders) = self.holders.get_mut(*habit as usize) {
                if let Some(count) = holders.get_mut(&old) {
                    *count -= 1;
                }
                *holders.entry(group).or_default() += 1;
            }
        }
        for (group, sign) in [(old, -1.0), (group, 1.0)] {
            if let Some(sum) = self.weight_of.get_mut(group as usize) {
                *sum += sign * weight;
            }
            if let Some(size) = self.sizes.get_mut(group as usize) {
                *size = if sign < 0.0 {
                    size.saturating_sub(1)
                } else {
                    *size + 1
                };
            }
        }
        let node = u32::try_from(workload).unwrap_or(u32::MAX);
        if let Some(members) = self.members.get_mut(old as usize) {
            members.remove(&node);
        }
        if let Some(members) = self.members.get_mut(group as usize) {
            members.insert(node);
        }
        if let Some(slot) = self.taken.get_mut(workload) {
            *slot = group;
        }
    }

    fn percent(&self, habit: u32, group: u32, without: bool) -> u32 {
        let holders = self
            .holders
            .get(habit as usize)
            .and_then(|holders| holders.get(&group));
        let size = self.sizes.get(group as usize).copied().unwrap_or(0);
        let less = u32::from(without);
        let having = holders.copied().unwrap_or(0).saturating_sub(less);
        (having * 100)
            .checked_div(size.saturating_sub(less))
            .unwrap_or(0)
    }

    fn evidence(
        &self,
        workload: usize,
        suggested: u32,
        name: &impl Fn(&Habit) -> String,
    ) -> Vec<HabitEvidence> {
        let own = self.taken.get(workload).copied().unwrap_or(0);
        let mut shared: Vec<(i64, u32, u32, u32)> = self
            .habits_of(workload)
            .iter()
            .map(|habit| {
                let (theirs, mine) = (
                    self.percent(*habit, suggested, false),
                    self.percent(*habit, own, true),
                );
                let weight = self.weight_of_habit(*habit) * (f64::from(theirs) - f64::from(mine));
                ((weight * 10.0).round() as i64, *habit, theirs, mine)
            })
            .filter(|(weight, ..)| *weight > 0)
            .collect();
        shared.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        shared
            .into_iter()
            .take(SHOWN)
            .filter_map(|(_, habit, theirs, mine)| {
                Some(HabitEvidence {
                    habit: name(self.names.get(habit as usize)?),
                    suggested_percent: theirs,
                    own_percent: mine,
                })
            })
            .collect()
    }
}

/// Finds them. `seen` has every workload's habits.
pub(crate) fn find(
    groups: &Groups,
    seen: &BTreeSet<(u32, Habit)>,
    workload_name: impl Fn(u32) -> String,
    habit_name: impl Fn(&Habit) -> String,
) -> Vec<Mislabel> {
    if groups.len() < 2 {
        return Vec::new();
    }
    let mut picture = Picture::new(groups, seen);
    let mut open: Vec<usize> = (0..groups.of.len())
        .filter(|workload| picture.suggestion(*workload).is_some())
        .collect();
    let mut found = Vec::new();
    while found.len() < MOST {
        // The clearest first: the greatest gain in likeness, then the first workload.
        let best = open
            .iter()
            .filter_map(|workload| Some((picture.suggestion(*workload)?, *workload)))
            .max_by(|a, b| {
                let gain = |case: &((i64, i64, u32), usize)| case.0.1 - case.0.0;
                gain(a).cmp(&gain(b)).then(b.1.cmp(&a.1))
            });
        let Some(((own, like, group), workload)) = best else {
            break;
        };
        open.retain(|other| *other != workload);
        let node = u32::try_from(workload).unwrap_or(u32::MAX);
        let labelled = picture.taken.get(workload).copied().unwrap_or(0);
        found.push(Mislabel {
            workload: workload_name(node),
            labelled: groups.name(labelled),
            suggested: groups.name(group),
            changes: changes(groups, labelled, group),
            missing: !picture.is_complete(labelled),
            own_likeness: own,
            suggested_likeness: like,
            evidence: picture.evidence(workload, group, &habit_name),
        });
        picture.take_for(workload, group);
    }
    found
}

fn changes(groups: &Groups, from: u32, to: u32) -> Vec<LabelChange> {
    let (from, to) = (groups.pattern(from), groups.pattern(to));
    let value = |key: usize, slot: u32| groups.value(key, slot).map(str::to_owned);
    groups
        .keys
        .iter()
        .enumerate()
        .filter_map(|(index, key)| {
            let (now, then) = (*from.get(index)?, *to.get(index)?);
            (now != then).then(|| LabelChange {
                key: key.clone(),
                now: value(index, now),
                suggested: value(index, then),
            })
        })
        .collect()
}

/// The two habits that an edge gives each of its ends.
pub(crate) fn habits(
    source: Side,
    destination: Side,
    service: u32,
    groups: u32,
) -> [(bool, Habit); 4] {
    let number = |side: Side| match side {
        Side::Group(group) => group,
        Side::External(_, super::observe::NodeKind::World) => groups,
        Side::External(..) => groups + 1,
    };
    let habit = |provides, peer| Habit {
        provides,
        service,
        peer,
    };
    [
        (true, habit(false, None)),
        (true, habit(false, Some(number(destination)))),
        (false, habit(true, None)),
        (false, habit(true, Some(number(source)))),
    ]
}
