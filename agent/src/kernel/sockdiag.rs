//! The host's own TCP connections, as sock_diag lists them: what is adopted when the host is armed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const REQUEST_LENGTH: usize = 16 + 56;
const RESPONSE_LENGTH: usize = 72;
const ESTABLISHED: u32 = 1 << 1;
const CLOSE_WAIT: u32 = 1 << 8;
const FIN_WAIT1: u32 = 1 << 4;
const FIN_WAIT2: u32 = 1 << 5;
const LISTEN: u32 = 1 << 10;

/// A live connection of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The other end began: somebody listens on the local port.
    pub accepted: bool,
    /// Socket cookie.
    pub cookie: u64,
}

/// Every live TCP connection, v4-mapped ones as the IPv4 that is on the wire; loopback left out.
///
/// # Errors
/// When the kernel does not answer.
pub fn connections() -> io::Result<Vec<Connection>> {
    let mut listening = BTreeSet::new();
    let mut live = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or(0);
        for entry in dump(family, LISTEN)? {
            listening.insert((entry.local.ip(), entry.local.port()));
        }
        live.extend(dump(
            family,
            ESTABLISHED | CLOSE_WAIT | FIN_WAIT1 | FIN_WAIT2,
        )?);
    }
    for connection in &mut live {
        let port = connection.local.port();
        let any = [
            connection.local.ip(),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        connection.accepted = any.iter().any(|ip| listening.contains(&(*ip, port)));
    }
    live.retain(|connection| !connection.local.ip().is_loopback());
    Ok(live)
}

fn dump(family: u8, states: u32) -> io::Result<Vec<Connection>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    socket.send(&request(family, states), 0)?;
    let mut found = Vec::new();
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        if read_messages(&buffer, &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: u8, states: u32) -> [u8; REQUEST_LENGTH] {
    const NLM_F_REQUEST: u16 = 1;
    const NLM_F_DUMP: u16 = 0x300;
    let mut bytes = [0u8; REQUEST_LENGTH];
    let mut put = |at: usize, value: &[u8]| {
        for (slot, byte) in bytes.iter_mut().skip(at).zip(value) {
            *slot = *byte;
        }
    };
    put(0, &u32::try_from(REQUEST_LENGTH).unwrap_or(0).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    put(8, &1u32.to_ne_bytes());
    // struct inet_diag_req_v2: family, protocol, ext, pad, states, id
    put(16, &[family, 6, 0, 0]);
    put(20, &states.to_ne_bytes());
    bytes
}

/// Reads the messages of one datagram; `true` when the dump is over.
fn read_messages(mut buffer: &[u8], found: &mut Vec<Connection>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(buffer, 0), u16_at(buffer, 4)) {
        let length = length as usize;
        let Some(body) = buffer.get(16..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).unwrap_or(0).cast_signed();
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
            }
            SOCK_DIAG_BY_FAMILY => found.extend(read_socket(body)),
            _ => {}
        }
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct inet_diag_msg`: four bytes, then ports, addresses, interface and cookie.
fn read_socket(body: &[u8]) -> Option<Connection> {
    if body.len() < RESPONSE_LENGTH {
        return None;
    }
    let family = i32::from(*body.first()?);
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        if family == libc::AF_INET {
            let octets: [u8; 4] = body.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(octets))
        } else {
            let octets: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).to_canonical())
        }
    };
    Some(Connection {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        accepted: false,
        cookie: u64::from(u32_at(body, 44)?) | (u64::from(u32_at(body, 48)?) << 32),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_ends_early_is_refused() {
        let mut bytes = vec![0u8; 20];
        bytes[0] = 200;
        bytes[4] = 20;
        assert!(read_messages(&bytes, &mut Vec::new()).is_err());
        assert!(!read_messages(&[], &mut Vec::new()).expect("empty"));
    }

    #[test]
    fn the_kernel_answers_a_dump() {
        // Any Linux process may list sockets; the test only asks that the dump ends and parses.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let listening = dump(2, LISTEN).expect("dump");
        assert!(listening.iter().any(|entry| entry.local.port() == port));
    }
}
