//! Which socket the kernel would give a packet to, asked of sock_diag for one tuple: for sockets that are older than
//! the socket hooks, and for datagrams, whose sockets are not told apart by peer.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const REQUEST: usize = 16 + 56;
/// `struct inet_diag_msg`; attributes follow.
const MESSAGE: usize = 72;
/// `INET_DIAG_CGROUP_ID` (include/uapi/linux/inet_diag.h, Linux 5.9).
const CGROUP_ID: u16 = 21;
const UDP: u8 = 17;

/// What sock_diag says of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Socket cookie.
    pub cookie: u64,
    /// User id of the one who made it.
    pub uid: u32,
    /// Cgroup (v2) in which it was made.
    pub cgroup: Option<u64>,
}

/// Asks sock_diag. One request at a time.
pub struct SocketList {
    socket: Socket,
}

impl SocketList {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// The socket of this host that takes what `remote` sends to `local`: a connection, or else who listens. `None` for
    /// protocols other than TCP and UDP, and when there is none.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn find(
        &mut self,
        protocol: u8,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<Option<Listed>> {
        if !matches!(protocol, 6 | UDP) || local.is_ipv4() != remote.is_ipv4() {
            return Ok(None);
        }
        self.socket.send(&request(protocol, local, remote), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        read(&answer)
    }
}

fn request(protocol: u8, local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    const NLM_F_REQUEST: u16 = 1;
    let mut bytes = [0u8; REQUEST];
    let mut put = |at: usize, value: &[u8]| {
        for (slot, byte) in bytes.iter_mut().skip(at).zip(value) {
            *slot = *byte;
        }
    };
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    put(0, &u32::try_from(REQUEST).unwrap_or(0).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(8, &1u32.to_ne_bytes());
    // struct inet_diag_req_v2: family, protocol, ext, pad, states, id
    put(16, &[u8::try_from(family).unwrap_or(0), protocol, 0, 0]);
    put(20, &u32::MAX.to_ne_bytes());
    // For UDP the kernel takes source and destination the other way round (`udp_dump_one`, net/ipv4/udp_diag.c).
    let (source, destination) = if protocol == UDP {
        (remote, local)
    } else {
        (local, remote)
    };
    put(24, &source.port().to_be_bytes());
    put(26, &destination.port().to_be_bytes());
    put(28, &octets(source.ip()));
    put(44, &octets(destination.ip()));
    // No cookie: whichever socket it is.
    put(64, &[0xff; 8]);
    bytes
}

fn read(answer: &[u8]) -> io::Result<Option<Listed>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let length = u32_at(answer, 0).ok_or_else(malformed)? as usize;
    let body = answer.get(16..length).ok_or_else(malformed)?;
    match u16_at(answer, 4) {
        Some(NLMSG_ERROR) => match u32_at(body, 0).unwrap_or(0).cast_signed() {
            // Nobody there.
            code if code == -libc::ENOENT => Ok(None),
            0 => Ok(None),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        Some(SOCK_DIAG_BY_FAMILY) => {
            let word = |at| u32_at(body, at).ok_or_else(malformed);
            Ok(Some(Listed {
                cookie: u64::from(word(44)?) | (u64::from(word(48)?) << 32),
                uid: word(64)?,
                cgroup: cgroup(body.get(MESSAGE..).unwrap_or_default()),
            }))
        }
        _ => Err(malformed()),
    }
}

/// The cgroup among a message's attributes (`struct nlattr`: length, type, value, padded to 4).
fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        if kind == CGROUP_ID {
            let value: [u8; 8] = attributes.get(4..length)?.try_into().ok()?;
            return Some(u64::from_ne_bytes(value));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
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
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    fn cookie_of(socket: &impl AsRawFd) -> u64 {
        let mut cookie = 0u64;
        let mut length = 8;
        // SAFETY: a live socket, and a buffer of the length that is passed.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn the_kernel_names_the_connection_and_else_who_listens() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("listen");
            let local = listener.local_addr().expect("address");
            let client = TcpStream::connect(local).expect("connect");
            let (server, remote) = listener.accept().expect("accept");
            let mut list = SocketList::open().expect("netlink");
            let found = list.find(6, local, remote).expect("answer").expect("found");
            assert_eq!(found.cookie, cookie_of(&server), "{address}");
            assert_eq!(found.uid, nix::unistd::getuid().as_raw());
            let found = list.find(6, remote, local).expect("answer").expect("found");
            assert_eq!(found.cookie, cookie_of(&client));
            let stranger = SocketAddr::new(local.ip(), 1);
            let found = list
                .find(6, local, stranger)
                .expect("answer")
                .expect("found");
            assert_eq!(found.cookie, cookie_of(&listener));
            drop(listener);
            assert_eq!(list.find(6, local, stranger).expect("answer"), None);
        }
    }

    #[test]
    fn a_datagram_finds_its_socket_whatever_the_family() {
        let four = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let both = UdpSocket::bind("[::]:0").expect("bind");
        let peer: SocketAddr = "127.0.0.1:9".parse().expect("address");
        let mut list = SocketList::open().expect("netlink");
        let local = four.local_addr().expect("address");
        let found = list.find(17, local, peer).expect("answer").expect("found");
        assert_eq!(found.cookie, cookie_of(&four));
        let port = both.local_addr().expect("address").port();
        let local = SocketAddr::new("127.0.0.1".parse().expect("address"), port);
        let found = list.find(17, local, peer).expect("answer").expect("found");
        assert_eq!(found.cookie, cookie_of(&both));
        assert_eq!(list.find(1, local, peer).expect("no question"), None);
    }

    #[test]
    fn what_ends_early_is_refused() {
        assert!(read(&[]).is_err());
        assert!(read(&[200, 0, 0, 0, 20, 0, 0, 0]).is_err());
        assert_eq!(cgroup(&[12, 0, 21]), None);
        assert_eq!(cgroup(&[0; 8]), None);
        assert_eq!(
            cgroup(&[5, 0, 8, 0, 1, 0, 0, 0, 12, 0, 21, 0, 7, 0, 0, 0, 0, 0, 0, 0]),
            Some(7)
        );
    }
}
