//! What is remembered of a packet that comes in fragments.

use core::mem::size_of;

/// Which original packet a fragment belongs to, at one hook of one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct FragmentKey {
    /// Sender; v4-mapped for IPv4.
    pub src: [u8; 16],
    /// Receiver; v4-mapped for IPv4.
    pub dst: [u8; 16],
    /// Identification.
    pub id: u32,
    /// The endpoint's, as in a flow's key.
    pub scope: u16,
    /// [`crate::packet::Fragment::protocol`].
    pub protocol: u8,
    /// [`crate::ids::Direction`] of the fragment, as a number.
    pub direction: u8,
}

/// What its first fragment said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FragmentValue {
    /// Jiffies when it was remembered.
    pub born: u32,
    /// Up to where fragments have passed without a gap; bytes.
    pub next: u32,
    /// Where the transport header ends; bytes.
    pub headers: u16,
    /// [`crate::packet::Packet::src_port`] of the first fragment.
    pub src_port: u16,
    /// [`crate::packet::Packet::dst_port`].
    pub dst_port: u16,
    /// [`crate::packet::Packet::policy_port`].
    pub policy_port: u16,
    /// The last header's protocol number.
    pub protocol: u8,
    /// [`crate::packet::Packet::reply_only`].
    pub reply_only: u8,
    /// 1: every further fragment of this identification is dropped.
    pub poisoned: u8,
    /// Zero.
    pub pad: u8,
}

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentValue>() == 20);
};

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: `repr(C)` integers and byte arrays only; the assertions above rule out implicit padding.
    unsafe impl aya::Pod for super::FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentValue {}
}
