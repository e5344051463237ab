//! What a host needs to live, compiled in: removable by no policy, shrunk by isolation.
//!
//! Configured failsafes (controller, resolvers, management ports, forensics) are in a map; what is here
//! needs no configuration: DHCP (RFC 2131 §4.1, RFC 8415 §7.2). Neighbour discovery passes in the parser's
//! table, ARP never reaches it, loopback is never hooked.

use crate::ids::{Direction, protocol};

/// Rule number under which DHCP is listed; configured failsafes are numbered from the next one.
pub const DHCP_RULE: u32 = 0xffff_0001;

/// First rule number of the configured failsafes.
pub const FIRST_CONFIGURED_RULE: u32 = 0xffff_0100;

/// Whether a datagram is between a DHCP client on this host and a server.
#[must_use]
#[inline(always)]
pub const fn is_dhcp(direction: Direction, protocol: u8, src_port: u16, dst_port: u16) -> bool {
    if protocol != protocol::UDP {
        return false;
    }
    match direction {
        Direction::Egress => matches!((src_port, dst_port), (68, 67) | (546, 547)),
        Direction::Ingress => matches!((src_port, dst_port), (67, 68) | (547, 546)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dhcp_is_scoped_to_its_ports_and_direction() {
        assert!(is_dhcp(Direction::Egress, protocol::UDP, 68, 67));
        assert!(is_dhcp(Direction::Ingress, protocol::UDP, 547, 546));
        assert!(!is_dhcp(Direction::Ingress, protocol::UDP, 68, 67));
        assert!(!is_dhcp(Direction::Egress, protocol::UDP, 4000, 67));
        assert!(!is_dhcp(Direction::Egress, protocol::TCP, 68, 67));
    }
}
