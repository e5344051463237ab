//! Whom a recorded end means today.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::record::RecordedEnd;
use crate::probe::Flow;
use crate::world::{Who, Workload, World};

/// What is to be known about an end besides its name and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndNote {
    /// The workload has other addresses today; those are asked about.
    Moved,
    /// When it was recorded, the address was nobody's; today it is a workload's.
    NowManaged,
    /// Two workloads claim the address today.
    ClaimedTwice,
    /// Inside a managed network, without a workload.
    Unmanaged,
    /// Outside.
    World,
}

/// Why an end means nobody today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoneReason {
    /// There is no workload of this name any more.
    WorkloadGone,
    /// There is none any more, and its address is another one's.
    AddressReused,
    /// The workload has no address that the other end could reach.
    NoAddress,
}

/// Whom a recorded end means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// It can be asked about.
    Here {
        /// Full name, if it is a workload.
        workload: Option<Arc<str>>,
        addresses: Vec<IpAddr>,
        note: Option<EndNote>,
    },
    /// It cannot.
    Gone(GoneReason),
}

impl Resolved {
    /// Full name, if it is a workload.
    pub(crate) fn workload(&self) -> Option<&Arc<str>> {
        match self {
            Self::Here { workload, .. } => workload.as_ref(),
            Self::Gone(_) => None,
        }
    }
}

/// The two worlds of a change.
pub(crate) struct Ends<'a> {
    pub(crate) before: &'a World,
    pub(crate) after: &'a World,
    known: HashMap<RecordedEnd<Arc<str>>, Resolved>,
}

impl<'a> Ends<'a> {
    pub(crate) fn new(before: &'a World, after: &'a World) -> Self {
        Self {
            before,
            after,
            known: HashMap::new(),
        }
    }

    /// Whom an end means: in the world before the change, or else in that after it.
    pub(crate) fn resolve(&mut self, end: &RecordedEnd<Arc<str>>) -> Resolved {
        if let Some(known) = self.known.get(end) {
            return known.clone();
        }
        let resolved = match &end.workload {
            Some(name) => self.by_name(name, end.address),
            None => end
                .address
                .map_or(Resolved::Gone(GoneReason::NoAddress), |address| {
                    self.by_address(address)
                }),
        };
        self.known.insert(end.clone(), resolved.clone());
        resolved
    }

    fn by_name(&self, name: &Arc<str>, address: Option<IpAddr>) -> Resolved {
        let Some(workload) = find(self.before, name).or_else(|| find(self.after, name)) else {
            let reused = address.is_some_and(|address| {
                matches!(self.before.who(address), Who::Workload(_) | Who::Unknown)
            });
            return Resolved::Gone(if reused {
                GoneReason::AddressReused
            } else {
                GoneReason::WorkloadGone
            });
        };
        let here = |addresses: Vec<IpAddr>, note| Resolved::Here {
            workload: Some(Arc::clone(name)),
            addresses,
            note,
        };
        match address {
            Some(address) if workload.addresses.contains(&address) => here(vec![address], None),
            Some(address) => {
                let same = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4();
                let family: Vec<_> = workload.addresses.iter().filter(same).copied().collect();
                if family.is_empty() {
                    Resolved::Gone(GoneReason::NoAddress)
                } else {
                    here(family, Some(EndNote::Moved))
                }
            }
            None if workload.addresses.is_empty() => Resolved::Gone(GoneReason::NoAddress),
            None => here(workload.addresses.clone(), None),
        }
    }

    fn by_address(&self, address: IpAddr) -> Resolved {
        let (workload, note) = match self.before.who(address) {
            Who::Workload(workload) => {
                (Some(workload.full_name().into()), Some(EndNote::NowManaged))
            }
            Who::Unknown => (None, Some(EndNote::ClaimedTwice)),
            Who::Unmanaged => (None, Some(EndNote::Unmanaged)),
            Who::World => (None, Some(EndNote::World)),
        };
        Resolved::Here {
            workload,
            addresses: vec![address],
            note,
        }
    }
}

/// A workload by its full name only: a plain name that happens to fit means somebody else.
pub(crate) fn find<'a>(world: &'a World, full_name: &str) -> Option<&'a Workload> {
    let found = world.workload(full_name)?;
    (found.full_name() == full_name).then_some(found)
}

/// A flow between two resolved ends in one of the worlds.
pub(crate) fn flow<'a>(
    world: &'a World,
    source: (&Option<Arc<str>>, IpAddr),
    destination: (&Option<Arc<str>>, IpAddr),
    protocol: u8,
    port: u16,
) -> Flow<'a> {
    let owner = |(name, address): (&Option<Arc<str>>, IpAddr)| {
        // A workload keeps its own policies even where its address is claimed twice.
        name.as_deref()
            .and_then(|name| find(world, name))
            .filter(|workload| workload.addresses.contains(&address))
            .or_else(|| world.who(address).workload())
    };
    Flow {
        from: owner(source),
        to: owner(destination),
        source: source.1,
        destination: destination.1,
        protocol,
        port,
    }
}
