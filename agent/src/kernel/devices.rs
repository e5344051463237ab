//! Which network devices there are, which are to be armed, and what addresses they have.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use super::rtnetlink::{Answer, Message, attributes, half, text, word};

/// A network device of this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// What kind of virtual device it is (`veth`, `vlan`, `bridge`, …); empty for hardware.
    pub kind: String,
    /// The device that it stands on; for a veth, its other end.
    pub link: Option<u32>,
    /// The network namespace of `link`, by this namespace's number for it, where it is another one.
    pub elsewhere: Option<i32>,
    /// The bridge, bond or the like whose port it is.
    pub master: Option<u32>,
    /// Hardware address.
    pub hardware: Vec<u8>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its IPv4 broadcast addresses.
    pub broadcasts: Vec<Ipv4Addr>,
}

impl Device {
    /// Whether every frame of it passes another device of this namespace, headers and all: below it (VLAN, macvlan), or as
    /// one of its ports (bridge, bond). Tunnels are none of these: what they carry is on no other device.
    fn is_stacked(&self) -> bool {
        match self.kind.as_str() {
            "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" => {
                self.link.is_some() && self.elsewhere.is_none()
            }
            "bridge" | "bond" | "team" | "vrf" | "openvswitch" | "ifb" => true,
            // Both ends here: what goes in comes out again.
            "veth" => self.link.is_some() && self.elsewhere.is_none(),
            _ => false,
        }
    }

    /// Whether this device is needed to see every packet of the host once: the lowest ones are, and what `left_out` leaves
    /// without one below it.
    fn is_lowest(&self, list: &[Self], left_out: &impl Fn(&Self) -> bool) -> bool {
        if !self.is_stacked() {
            return true;
        }
        if self.kind == "veth" || matches!(self.kind.as_str(), "ifb") {
            return false;
        }
        let Some(below) = self
            .link
            .and_then(|link| list.iter().find(|other| other.index == link))
        else {
            return false; // its ports
        };
        // A frame with two tags is no IP packet to the device at the bottom: it is judged where one of them is off.
        let two_tags = self.kind == "vlan" && below.kind == "vlan";
        two_tags || (left_out(below) && below.is_lowest(list, left_out))
    }
}

/// The devices on which each packet of this host is seen exactly once, but for those that `left_out` names.
pub fn lowest<'a>(
    list: &'a [Device],
    left_out: &impl Fn(&Device) -> bool,
) -> impl Iterator<Item = &'a Device> {
    list.iter().filter(move |device| {
        device.ethernet && !device.loopback && !left_out(device) && device.is_lowest(list, left_out)
    })
}

// include/uapi/linux/if_link.h, if_addr.h
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

/// Every device, by name.
///
/// # Errors
/// When the kernel does not list them.
pub fn list() -> io::Result<Vec<Device>> {
    let mut found: BTreeMap<u32, Device> =
        Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; IFINFOMSG])
            .ask()?
            .iter()
            .filter(|answer| answer.kind == libc::RTM_NEWLINK)
            .filter_map(device)
            .map(|device| (device.index, device))
            .collect();
    let addresses = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; IFADDRMSG]).ask()?;
    for address in addresses.iter().filter_map(address) {
        let Some(device) = found.get_mut(&address.index) else {
            continue; // gone or new meanwhile
        };
        if !device.addresses.contains(&address.local) {
            device.addresses.push(address.local);
        }
        device.broadcasts.extend(address.broadcast);
    }
    let mut list: Vec<Device> = found.into_values().collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

fn device(answer: &Answer) -> Option<Device> {
    let flags = word(&answer.body, 8)?;
    let has = |flag: libc::c_int| flags & flag.cast_unsigned() != 0;
    let mut device = Device {
        index: word(&answer.body, 4)?,
        up: has(libc::IFF_UP),
        loopback: has(libc::IFF_LOOPBACK),
        ethernet: half(&answer.body, 2)? == libc::ARPHRD_ETHER,
        ..Device::default()
    };
    for (kind, value) in attributes(answer.body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => device.name = text(value),
            IFLA_ADDRESS => device.hardware = value.to_vec(),
            // Hardware may say 0 or itself.
            IFLA_LINK => device.link = word(value, 0).filter(|link| *link != 0),
            IFLA_LINK_NETNSID => device.elsewhere = word(value, 0).map(u32::cast_signed),
            IFLA_MASTER => device.master = word(value, 0).filter(|master| *master != 0),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    if kind == IFLA_INFO_KIND {
                        device.kind = text(value);
                    }
                }
            }
            _ => {}
        }
    }
    if device.elsewhere.is_none() && device.link == Some(device.index) {
        device.link = None;
    }
    (!device.name.is_empty()).then_some(device)
}

/// An address of a device.
struct Address {
    index: u32,
    local: IpAddr,
    broadcast: Option<Ipv4Addr>,
}

fn address(answer: &Answer) -> Option<Address> {
    if answer.kind != libc::RTM_NEWADDR {
        return None;
    }
    let (mut local, mut prefix, mut broadcast) = (None, None, None);
    for (kind, value) in attributes(answer.body.get(IFADDRMSG..)?) {
        match kind {
            IFA_LOCAL => local = ip(value),
            // On a point-to-point device this is the other end, and the one above is there as well.
            IFA_ADDRESS => prefix = ip(value),
            IFA_BROADCAST => broadcast = ip(value),
            _ => {}
        }
    }
    Some(Address {
        index: word(&answer.body, 4)?,
        local: local.or(prefix)?,
        broadcast: match broadcast {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        },
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
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
    use super::{Device, lowest, matches};

    #[test]
    fn the_lowest_devices_are_chosen_and_what_stands_on_one_that_is_left_out() {
        let device = |index, name: &str, kind: &str, link, elsewhere| Device {
            index,
            name: name.into(),
            kind: kind.into(),
            link,
            elsewhere,
            ethernet: true,
            ..Device::default()
        };
        let mut list = vec![
            Device {
                loopback: true,
                ethernet: false,
                ..device(1, "lo", "", None, None)
            },
            device(2, "eth0", "", None, None),
            device(3, "eth0.5", "vlan", Some(2), None),
            device(4, "eth0.5.7", "vlan", Some(3), None),
            device(5, "mac0", "macvlan", Some(3), None),
            device(6, "br0", "bridge", None, None),
            device(7, "veth1", "veth", Some(2), Some(0)),
            device(8, "a", "veth", Some(9), None),
            device(9, "b", "veth", Some(8), None),
            device(10, "bond0", "bond", None, None),
            device(11, "bond0.9", "vlan", Some(10), None),
            device(12, "vx0", "vxlan", Some(2), None),
            device(13, "moved", "macvlan", Some(2), Some(3)),
            Device {
                ethernet: false,
                ..device(14, "wg0", "wireguard", None, None)
            },
        ];
        let names = |list: &[Device], out: &[&str]| -> Vec<String> {
            lowest(list, &|device: &Device| out.contains(&device.name.as_str()))
                .map(|device| device.name.clone())
                .collect()
        };
        assert_eq!(
            names(&list, &[]),
            ["eth0", "eth0.5.7", "veth1", "vx0", "moved"]
        );
        assert_eq!(
            names(&list, &["eth0"]),
            ["eth0.5", "eth0.5.7", "veth1", "vx0", "moved"]
        );
        list.retain(|device| device.name != "lo");
        assert_eq!(
            names(&list, &["eth0", "eth0.5"]),
            ["eth0.5.7", "mac0", "veth1", "vx0", "moved"]
        );
    }

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
