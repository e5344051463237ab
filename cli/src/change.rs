//! A change on top of what is in force: both sides of it as scenarios.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use policy::api::Scenario;
use policy::enrolled::{Enrolled, join};
use policy::model::Object;
use policy::problems::{Problem, Problems, did_you_mean};
use policy::set::PolicySet;
use policy::snapshot::Mode;
use policy::source::Source;
use policy::world::{Workload, World};

use crate::error::Failure;

/// What is known of the network besides the Workload objects of a set.
pub(crate) enum Inventory {
    /// A file.
    File(World),
    /// What the controller has.
    Controller {
        managed_networks: Vec<IpNet>,
        default_mode: Mode,
        enrolled: Vec<Enrolled>,
        isolated: BTreeSet<String>,
    },
}

impl Inventory {
    /// Reads an inventory file; without one nothing is inside and Workload objects are all there is.
    pub(crate) fn file(source: Option<&Source>) -> Result<Self, Problems> {
        Ok(Self::File(
            source.map(World::parse).transpose()?.unwrap_or_default(),
        ))
    }

    /// The world in which a set holds.
    fn world(&self, set: &PolicySet) -> Result<World, Problems> {
        match self {
            Self::File(world) => {
                let (mut world, mut problems) = (world.clone(), Problems::default());
                for object in set.workloads() {
                    if let Err(error) = world.add(Workload::from(object)) {
                        problems.push(Problem::at(&object.place, error.to_string()));
                    }
                }
                problems.into_result(world)
            }
            Self::Controller {
                managed_networks,
                default_mode,
                enrolled,
                isolated,
            } => Ok(join(
                managed_networks.clone(),
                *default_mode,
                enrolled,
                isolated,
                set,
            )),
        }
    }

    /// A set in this world.
    pub(crate) fn scenario(&self, set: PolicySet) -> Result<Scenario, Problems> {
        let world = self.world(&set)?;
        Ok(Scenario { world, set })
    }
}

/// What is to be different.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// New or changed objects.
    pub(crate) objects: Vec<Object>,
    /// `Kind/name` of objects that go.
    pub(crate) deleted: Vec<String>,
    /// Everything that is not among `objects` goes.
    pub(crate) prune: bool,
}

impl Change {
    /// Both sides of the change: what is in force, and what would be.
    ///
    /// The outer error is the user's: an object to delete that is not there.
    pub(crate) fn sides(
        self,
        inventory: &Inventory,
        base: PolicySet,
    ) -> Result<Result<(Scenario, Scenario), Problems>, Failure> {
        let mut objects: BTreeMap<String, Object> = BTreeMap::new();
        if !self.prune {
            let kept = base.objects().into_iter();
            objects.extend(kept.map(|object| (object.id(), object)));
        }
        for id in &self.deleted {
            let known = base.objects().iter().any(|object| object.id() == *id);
            if !known {
                let ids: Vec<String> = base.objects().iter().map(Object::id).collect();
                let close = did_you_mean(id, ids.iter().map(String::as_str));
                return Err(Failure::new(
                    format!("there is no {id} to delete"),
                    close.unwrap_or_else(|| "write it as KIND/NAME, like Policy/shop-db".into()),
                ));
            }
            objects.remove(id);
        }
        // Two objects of one name in the files are the files' mistake, and told with both places.
        if let Err(problems) = unique(&self.objects) {
            return Ok(Err(problems));
        }
        objects.extend(self.objects.into_iter().map(|object| (object.id(), object)));
        Ok(both(inventory, base, objects.into_values().collect()))
    }
}

fn both(
    inventory: &Inventory,
    base: PolicySet,
    objects: Vec<Object>,
) -> Result<(Scenario, Scenario), Problems> {
    let after = PolicySet::build(objects)?;
    Ok((inventory.scenario(base)?, inventory.scenario(after)?))
}

fn unique(objects: &[Object]) -> Result<(), Problems> {
    let mut seen: BTreeMap<String, &Object> = BTreeMap::new();
    let mut problems = Problems::default();
    for object in objects {
        if let Some(first) = seen.insert(object.id(), object) {
            let message = format!(
                "there are two objects {}; the other one is at {}",
                object.id(),
                first.place()
            );
            problems.push(Problem::at(object.place(), message).suggest("rename or remove one"));
        }
    }
    problems.into_result(())
}
