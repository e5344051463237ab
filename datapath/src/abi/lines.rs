//! Lines of a content's arrays: what lies where is in [`crate::lines`].

use super::policy::{ClassCells, RuleValue};

/// Bytes of a line: one cache line.
pub const LINE: usize = 64;

/// How many lines the arrays of a slot's content have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Geometry {
    /// Of [`Addr4Line`].
    pub addr4: u32,
    /// Of [`Addr6Line`].
    pub addr6: u32,
    /// Of [`ClassLine`].
    pub classes: u32,
    /// Of [`CellLine`].
    pub cells: u32,
}

/// Four IPv4 addresses and what they are bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Addr4Line {
    /// As they stand in a header.
    pub addr: [u32; 4],
    /// [`super::AddrValue::identity`].
    pub identity: [u32; 4],
    /// [`super::AddrValue::flags`] and [`TAKEN`]; 0 where nothing lies.
    pub flags: [u32; 4],
    /// Zero.
    pub pad: [u32; 4],
}

/// Two IPv6 addresses and what they are bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Addr6Line {
    /// As they stand in a header.
    pub addr: [[u64; 2]; 2],
    /// [`super::AddrValue::identity`].
    pub identity: [u32; 2],
    /// [`super::AddrValue::flags`] and [`TAKEN`]; 0 where nothing lies.
    pub flags: [u32; 2],
    /// Zero.
    pub pad: [u32; 4],
}

/// Set in the flags of an address that is there.
pub const TAKEN: u32 = 1 << 31;

/// The class of a peer's identity for an endpoint and direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ClassLine {
    /// [`crate::ids::Identity`] of the peer.
    pub identity: u32,
    /// [`crate::ids::EndpointId`] × 2 + [`crate::ids::Direction`].
    pub scope: u32,
    /// The class; its number is 0 where nothing lies.
    pub cells: ClassCells,
}

/// A cell of a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct CellLine {
    /// Its class; 0 where nothing lies.
    pub class: u32,
    /// What it covers: [`crate::lines::port_of_cell`].
    pub port: u32,
    /// What it says.
    pub value: RuleValue,
    /// Zero.
    pub pad: [u64; 3],
}

const _: () = {
    assert!(size_of::<Addr4Line>() == LINE);
    assert!(size_of::<Addr6Line>() == LINE);
    assert!(size_of::<ClassLine>() == LINE);
    assert!(size_of::<CellLine>() == LINE);
    assert!(size_of::<Geometry>() == 16);
};
