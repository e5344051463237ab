//! What mode a workload is in, from the inventory and every Mode object that selects it.

use crate::matching::blocks;
use crate::model::{DefaultAction, SelectiveEntry};
use crate::ports::PortBlock;
use crate::set::PolicySet;
use crate::snapshot::{FlowDirection, Mode};
use crate::world::{Workload, World};

/// Mode and default action of one workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Posture {
    /// The strictest mode that anything says of it.
    pub mode: Mode,
    /// What `selective` enforces.
    pub selective: Vec<(FlowDirection, PortBlock)>,
    /// What happens to a flow that nothing decided.
    pub default_action: DefaultAction,
}

impl Posture {
    /// Of a workload. Where several statements meet, the strictest holds (observe < selective <
    /// enforce < isolate, allow < deny), so that a forgotten object cannot weaken a workload; the
    /// lists of selective modes add up. Without any statement the world's default mode holds.
    #[must_use]
    pub fn of(world: &World, set: &PolicySet, workload: &Workload) -> Self {
        let mut mode = workload.mode;
        let mut default_action = workload.default_action;
        let mut entries: Vec<&SelectiveEntry> = workload.selective.iter().collect();
        for object in set.modes() {
            if !object.subject.matches(workload) {
                continue;
            }
            mode = mode.max(object.mode);
            default_action = default_action.max(object.default_action);
            entries.extend(&object.enforce);
        }
        let mut selective: Vec<_> = entries
            .into_iter()
            .flat_map(|entry| {
                blocks(set, std::slice::from_ref(&entry.ports), &[])
                    .into_iter()
                    .map(|block| (entry.direction, block))
            })
            .collect();
        selective.sort();
        selective.dedup();
        Self {
            mode: mode.unwrap_or(world.default_mode),
            selective,
            default_action: default_action.unwrap_or_default(),
        }
    }

    /// Whether verdicts on this protocol and port are enforced, or only recorded.
    #[must_use]
    pub fn enforces(&self, direction: FlowDirection, protocol: u8, port: u16) -> bool {
        match self.mode {
            Mode::Observe => false,
            Mode::Enforce | Mode::Isolate => true,
            Mode::Selective => self
                .selective
                .iter()
                .any(|(own, block)| *own == direction && block.contains(protocol, port)),
        }
    }
}

/// Whether a workload is isolated.
#[must_use]
pub fn is_isolated(world: &World, set: &PolicySet, workload: &Workload) -> bool {
    Posture::of(world, set, workload).mode == Mode::Isolate
}
