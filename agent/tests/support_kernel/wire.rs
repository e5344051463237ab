//! A real device in a network namespace of the thread's own: frames that no test run of the kernel allows.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use agent::kernel::attach::{Hooks, attach};
use agent::kernel::devices;
use datapath::ids::Direction;
use nix::sched::{CloneFlags, unshare};

use super::rig::{Merged, Rig};
use super::skip;

const ARMED: &str = "w0";
const OTHER: &str = "w1";

/// A veth pair; both hooks of one end are taken.
pub struct Wire {
    armed: Socket,
    other: Socket,
    /// Index of the armed end.
    pub ifindex: u32,
}

/// A raw packet socket on one end.
struct Socket {
    fd: OwnedFd,
    ifindex: u32,
}

fn ip(arguments: &str) {
    let done = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip runs");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {errors}");
}

impl Wire {
    /// Makes the pair and takes the hooks; `None`, loudly, where that cannot be done.
    pub fn open(rig: &Rig) -> Option<Self> {
        if Command::new("ip").arg("-V").output().is_err() {
            skip("a device of its own needs iproute2");
            return None;
        }
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            skip(&format!("no network namespace of its own: {error}"));
            return None;
        }
        // Nobody else speaks on this wire.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            std::fs::write(path, "1").expect("settings of the namespace");
        }
        ip(&format!(
            "link add {ARMED} mtu 9000 type veth peer name {OTHER} mtu 9000"
        ));
        ip(&format!("link set {ARMED} up arp off"));
        ip(&format!("link set {OTHER} up arp off"));
        let list = devices::list().expect("devices");
        let device = |name: &str| {
            let found = list.iter().find(|device| device.name == name);
            found.expect("the device is there").clone()
        };
        let (armed, other) = (device(ARMED), device(OTHER));
        rig.kernel
            .with_programs(|programs| attach(rig.kernel.dir(), programs, &armed, Hooks::Auto))
            .expect("the hooks are taken");
        Some(Self {
            armed: Socket::open(armed.index).expect("a packet socket"),
            other: Socket::open(other.index).expect("a packet socket"),
            ifindex: armed.index,
        })
    }

    /// Sends a frame to or from the armed end. Only the first `linear` bytes of a frame beyond a page are in the
    /// head of the socket buffer; a merged packet has its segment size and no number, as virtio drivers do it.
    pub fn send(
        &self,
        frame: &[u8],
        direction: Direction,
        linear: u16,
        merged: Option<Merged>,
    ) -> io::Result<()> {
        let socket = match direction {
            Direction::Ingress => &self.other,
            Direction::Egress => &self.armed,
        };
        socket.send(frame, linear, merged)
    }
}

impl Socket {
    fn open(ifindex: u32) -> io::Result<Self> {
        // SAFETY: creates a descriptor; protocol 0 receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: libc::c_int = 1;
        // SAFETY: a live integer of the given size.
        let done = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, ifindex })
    }

    fn send(&self, frame: &[u8], linear: u16, merged: Option<Merged>) -> io::Result<()> {
        const NEEDS_CHECKSUM: u8 = 1;
        const TCP4: u8 = 1;
        // struct virtio_net_hdr (include/uapi/linux/virtio_net.h): flags, GSO type, header length, GSO size,
        // start and offset of the checksum.
        let mut header = [0u8; 10];
        header[2..4].copy_from_slice(&linear.to_ne_bytes());
        if let Some(merged) = merged {
            (header[0], header[1]) = (NEEDS_CHECKSUM, TCP4);
            header[4..6].copy_from_slice(&(merged.size as u16).to_ne_bytes());
            header[6..8].copy_from_slice(&34u16.to_ne_bytes());
            header[8..10].copy_from_slice(&16u16.to_ne_bytes());
        }
        let bytes = [&header, frame].concat();
        // SAFETY: all zeros is a valid address for the fields below to be written to.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        to.sll_ifindex = self.ifindex.cast_signed();
        // SAFETY: a live buffer and a live address, with their sizes.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
