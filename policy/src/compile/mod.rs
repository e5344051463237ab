//! Compilation: a world and its policies to the tables of one host.
//!
//! Identities are made first ([`identities`]); then, for each endpoint and direction, the policies
//! are laid out as a flat program ([`program`]), each peer identity picks the lines that match it, and
//! each distinct pick becomes a table of cells ([`cells`]) with as few port prefixes as can be
//! ([`prefixes`]). The compiled form says the same as [`crate::evaluate`]; property tests prove it.

use std::collections::{BTreeMap, HashSet};

use datapath::ids::EndpointId;
use time::OffsetDateTime;

use cells::{Cell, FilterCellValue, Table, filter_table, rule_table};
use identities::PeerIdentity;
use names::Names;
use program::{Memo, Program};

use crate::posture::Posture;
use crate::set::PolicySet;
use crate::snapshot::{ClassBinding, Endpoint, FilterCell, FlowDirection, RuleCell, Snapshot};
use crate::world::{Workload, World};

pub use identities::IdentityAllocator;

mod cells;
mod identities;
mod names;
mod prefixes;
mod program;

/// A workload of the host that is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostWorkload {
    /// Full name.
    pub name: String,
    /// Its number on the host.
    pub endpoint: EndpointId,
}

/// What a compilation reads.
#[derive(Clone, Copy, Debug)]
pub struct CompileInput<'a> {
    /// Every workload and network that is known.
    pub world: &'a World,
    /// Every policy.
    pub set: &'a PolicySet,
    /// The workloads of the host.
    pub host: &'a [HostWorkload],
    /// The moment from which the snapshot counts.
    pub at: OffsetDateTime,
    /// Goes into the snapshot.
    pub revision: u64,
    /// What the host's tables can hold.
    pub limits: Limits,
    /// Label keys that are part of identities although no policy names them.
    pub label_keys: &'a [String],
}

/// What the tables of a host can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Host addresses.
    pub addresses: usize,
    /// Prefixes.
    pub cidrs: usize,
    /// Class bindings.
    pub classes: usize,
    /// Rule cells.
    pub rules: usize,
    /// Filter cells.
    pub filters: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: 65_536,
            cidrs: 16_384,
            classes: 262_144,
            rules: 262_144,
            filters: 65_536,
        }
    }
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A table does not hold what is needed. Nothing is cut off: the whole snapshot is refused.
    #[error("the policy needs {needed} {what}, but the host's tables hold {limit}")]
    TooLarge {
        /// Which table.
        what: &'static str,
        /// Entries needed.
        needed: usize,
        /// Entries that there is room for.
        limit: usize,
    },
    /// The host names a workload that the world does not have.
    #[error("there is no workload \"{0}\"")]
    UnknownWorkload(String),
    /// Two workloads of the host have one number.
    #[error("two workloads have endpoint number {0}")]
    DuplicateEndpoint(u32),
    /// Every identity number was given out.
    #[error("there are no identity numbers left")]
    IdentitiesExhausted,
}

/// Compiles the tables of one host.
pub fn compile(
    input: &CompileInput<'_>,
    identities: &mut IdentityAllocator,
) -> Result<Snapshot, CompileError> {
    let directory = identities::directory(input, identities)?;
    let mut snapshot = Snapshot {
        revision: input.revision,
        identities: directory
            .identities
            .iter()
            .map(PeerIdentity::info)
            .collect(),
        addresses: directory.bindings,
        ..Snapshot::default()
    };
    let mut tables = Tables::default();
    let mut numbers = HashSet::new();
    for local in input.host {
        if !numbers.insert(local.endpoint) {
            return Err(CompileError::DuplicateEndpoint(local.endpoint.0));
        }
        let workload = find(input.world, &local.name)?;
        snapshot.endpoints.push(Endpoint {
            id: local.endpoint.0,
            name: workload.full_name(),
            mode: Posture::of(input.world, input.set, workload).mode,
            addresses: workload.addresses.clone(),
        });
        for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
            let program = Program::new(input, workload, direction, &mut tables.names);
            tables.bind(
                &program,
                local.endpoint,
                &directory.identities,
                input,
                &mut snapshot,
            );
        }
    }
    tables.finish(&mut snapshot);
    check(&snapshot, &input.limits)?;
    snapshot.sort();
    Ok(snapshot)
}

fn find<'a>(world: &'a World, name: &str) -> Result<&'a Workload, CompileError> {
    world
        .workload(name)
        .ok_or_else(|| CompileError::UnknownWorkload(name.to_owned()))
}

/// Tables that were made so far; equal ones are one class.
#[derive(Default)]
struct Tables {
    names: Names,
    rules: BTreeMap<Table<Cell>, u32>,
    filters: BTreeMap<Table<FilterCellValue>, u32>,
}

impl Tables {
    /// Binds every peer identity of an endpoint and direction to its class.
    fn bind(
        &mut self,
        program: &Program<'_>,
        endpoint: EndpointId,
        identities: &[PeerIdentity],
        input: &CompileInput<'_>,
        snapshot: &mut Snapshot,
    ) {
        let mut memo = Memo::new();
        for identity in identities {
            let matched = program.matched(identity);
            let (class, filter) = match memo.get(&matched) {
                Some(known) => *known,
                None => {
                    let table = rule_table(program, &matched, input.at, &mut self.names);
                    let class = number_of(&mut self.rules, table);
                    let table = filter_table(program, &matched);
                    let filter = match table.is_empty() {
                        true => 0,
                        false => number_of(&mut self.filters, table),
                    };
                    memo.insert(matched, (class, filter));
                    (class, filter)
                }
            };
            snapshot.classes.push(ClassBinding {
                endpoint: endpoint.0,
                direction: program.direction,
                identity: identity.number,
                class,
                filter,
            });
        }
    }

    /// Writes the cells and the names that they use.
    fn finish(self, snapshot: &mut Snapshot) {
        let mut used = HashSet::new();
        for (table, class) in self.rules {
            for (ports, cell) in table {
                used.extend([cell.enforced.rule, cell.draft.rule]);
                used.extend(cell.after.map(|after| after.rule));
                snapshot.rules.push(RuleCell {
                    class,
                    ports,
                    enforced: cell.enforced,
                    draft: cell.draft,
                    expires: cell.expires,
                    after: cell.after,
                    mode_enforced: cell.mode_enforced,
                    keep: cell.keep,
                    audit: cell.audit,
                    hard: cell.hard,
                });
            }
        }
        for (table, class) in self.filters {
            for (ports, cell) in table {
                used.insert(cell.rule);
                snapshot.filters.push(FilterCell {
                    class,
                    ports,
                    allow: cell.allow,
                    rule: cell.rule,
                    mode_enforced: cell.mode_enforced,
                });
            }
        }
        snapshot.rule_names = self.names.list(&used);
    }
}

fn number_of<T: Ord>(tables: &mut BTreeMap<Table<T>, u32>, table: Table<T>) -> u32 {
    let next = u32::try_from(tables.len() + 1).unwrap_or(u32::MAX);
    *tables.entry(table).or_insert(next)
}

/// Refuses a snapshot that does not fit, whole.
fn check(snapshot: &Snapshot, limits: &Limits) -> Result<(), CompileError> {
    let size = snapshot.size();
    for (what, needed, limit) in [
        ("host addresses", size.addresses, limits.addresses),
        ("prefixes", size.cidrs, limits.cidrs),
        ("class bindings", size.classes, limits.classes),
        ("rule cells", size.rules, limits.rules),
        ("filter cells", size.filters, limits.filters),
    ] {
        if needed > limit {
            return Err(CompileError::TooLarge {
                what,
                needed,
                limit,
            });
        }
    }
    Ok(())
}
