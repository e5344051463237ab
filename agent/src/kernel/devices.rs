//! Which network devices there are, which are to be armed, and what addresses they have.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use tokio::io::unix::AsyncFd;

/// A network device of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Loopback.
    pub loopback: bool,
    /// Its frames have Ethernet headers.
    pub ethernet: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Every device, by name.
///
/// # Errors
/// When the kernel does not list them.
pub fn list() -> io::Result<Vec<Device>> {
    let mut found: BTreeMap<String, Device> = BTreeMap::new();
    for entry in getifaddrs()? {
        // An alias label (`eth0:1`) is an address of `eth0`.
        let name = entry
            .interface_name
            .split(':')
            .next()
            .unwrap_or_default()
            .to_owned();
        let Ok(index) = if_nametoindex(name.as_str()) else {
            continue; // gone meanwhile
        };
        let device = found.entry(name.clone()).or_insert_with(|| Device {
            index,
            name,
            up: entry.flags.contains(InterfaceFlags::IFF_UP),
            loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            ethernet: false,
            addresses: Vec::new(),
        });
        device.ethernet |= entry
            .address
            .as_ref()
            .and_then(|address| address.as_link_addr())
            .is_some_and(|link| link.hatype() == libc::ARPHRD_ETHER);
        let address = entry.address.and_then(|address| {
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        if let Some(address) = address
            && !device.addresses.contains(&address)
        {
            device.addresses.push(address);
        }
    }
    Ok(found.into_values().collect())
}

/// The addresses of this host that others can reach: no loopback.
#[must_use]
pub fn own_addresses(devices: &[Device]) -> BTreeSet<IpAddr> {
    devices
        .iter()
        .filter(|device| !device.loopback)
        .flat_map(|device| device.addresses.iter().copied())
        .filter(|address| !address.is_loopback())
        .collect()
}

/// Whether a name matches a pattern with `*` and `?`.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    fn go(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                go(rest, name)
                    || name
                        .split_first()
                        .is_some_and(|(_, tail)| go(pattern, tail))
            }
            (Some((b'?', rest)), Some((_, tail))) => go(rest, tail),
            (Some((want, rest)), Some((is, tail))) => want == is && go(rest, tail),
            _ => false,
        }
    }
    go(pattern.as_bytes(), name.as_bytes())
}

/// Most announcements that are taken for one.
const BURST: usize = 1024;

/// Announcements of the kernel that devices, addresses or filters changed.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<Socket>,
}

impl Changes {
    /// Subscribes.
    ///
    /// # Errors
    /// When the netlink socket cannot be opened.
    pub fn subscribe() -> io::Result<Self> {
        const LINK: u32 = 0x1;
        // Anybody with the right to may take a filter away; a link nobody but its owner.
        const TRAFFIC_CONTROL: u32 = 0x8;
        const IPV4_ADDRESS: u32 = 0x10;
        const IPV6_ADDRESS: u32 = 0x100;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(
            0,
            LINK | TRAFFIC_CONTROL | IPV4_ADDRESS | IPV6_ADDRESS,
        ))?;
        socket.set_non_blocking(true)?;
        Ok(Self {
            // SAFETY: the socket owns its descriptor, always names the same one, and lives in the `AsyncFd`.
            socket: unsafe { AsyncFd::register(socket) }?,
        })
    }

    /// Waits for the next change, and takes all that were announced by then for one. What changed is found by
    /// looking again: messages may be lost.
    ///
    /// # Errors
    /// When the socket fails; an overrun is a change.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().recv_from_full()) {
                Ok(Ok(_)) => break,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        // The rest of a burst. Bounded: whoever never stops announcing must not keep devices from being armed.
        for _ in 0..BURST {
            match self.socket.get_ref().recv_from_full() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("eth*", "eth0", true),
            ("eth*", "ens3", false),
            ("*", "anything", true),
            ("veth?", "veth1", true),
            ("veth?", "veth12", false),
            ("e*0", "eth10", true),
            ("", "x", false),
            ("eth0", "eth0", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
