//! Who owns a socket: what the socket hooks leave for user space. Learnt once a socket, never per packet.
//!
//! The rules of [`crate::abi`] hold here too: `repr(C)`, no implicit padding, sizes asserted.

use core::mem::size_of;

/// Names of the maps.
pub mod maps {
    /// LRU hash of socket cookie → [`super::Owner`].
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU hash of [`super::AcceptKey`] → [`super::Accepted`].
    pub const ACCEPTED: &str = "ACCEPTED";
    /// Socket storage, inherited by accepted connections → [`super::Bound`].
    pub const BOUND: &str = "BOUND";
}

/// Capacity of [`maps::SOCKETS`].
pub const SOCKETS: usize = 65_536;
/// Capacity of [`maps::ACCEPTED`].
pub const ACCEPTED: usize = 16_384;

/// At which moment an owner was learnt: values of [`Owner::how`].
pub mod how {
    /// The socket was made.
    pub const CREATE: u32 = 1;
    /// It was connected.
    pub const CONNECT: u32 = 2;
    /// It was bound to an address.
    pub const BIND: u32 = 3;
}

/// A process, as it was when it made, bound or connected a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Owner {
    /// Id of the process's cgroup (v2), which is the inode number of its directory.
    pub cgroup: u64,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub learnt_ns: u64,
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Name of the thread, NUL-padded.
    pub comm: [u8; 16],
    /// One of [`how`].
    pub how: u32,
    /// Zero.
    pub pad: u32,
}

/// What a stream socket carries from its `bind` on. The kernel copies it to every connection that is accepted from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Bound {
    /// Who bound it.
    pub owner: Owner,
    /// Cookie of its network namespace.
    pub netns: u64,
}

/// An accepted connection, seen from this host. Addresses are v4-mapped for IPv4 (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct AcceptKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// This end.
    pub local: [u8; 16],
    /// The other end, who began.
    pub remote: [u8; 16],
    /// Port of this end, host byte order.
    pub local_port: u16,
    /// Port of the other end, host byte order.
    pub remote_port: u16,
    /// Zero.
    pub pad: u32,
}

/// The socket of an accepted connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Accepted {
    /// Who bound the listening socket.
    pub owner: Owner,
    /// Cookie of the connection's own socket.
    pub cookie: u64,
}

const _: () = {
    assert!(size_of::<Owner>() == 48);
    assert!(size_of::<Bound>() == 56);
    assert!(size_of::<AcceptKey>() == 48);
    assert!(size_of::<Accepted>() == 56);
};

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: `repr(C)` integers and byte arrays only; the assertions above rule out implicit padding.
    unsafe impl aya::Pod for super::Owner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Bound {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AcceptKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Accepted {}
}
