//! Two ends that open a connection at once (RFC 9293 §3.5, figure 8): the host's own stack, and a peer whose segments are
//! made by hand, because two stacks on a wire without delay do not meet.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Instant;

use datapath::packet::tcp::{ACK, SYN};
use datapath::sim::packets::{end, tcp};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::common::{Lab, in_namespace, patience};
use crate::far::{ip, permit};

const PEER: &str = "10.66.0.9";
const HOST: &str = "10.66.0.1";
const L4: usize = 34;

/// Frames on the peer's device.
struct Wire(OwnedFd);

impl Wire {
    fn open(ns: &str) -> Self {
        in_namespace(ns, || {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let protocol = libc::c_int::from((libc::ETH_P_IP as u16).to_be());
            // SAFETY: makes a descriptor.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            // SAFETY: new and nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: integers; all zeroes are a value.
            let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_protocol = (libc::ETH_P_IP as u16).to_be();
            to.sll_ifindex = if_nametoindex("p0").expect("the device").cast_signed();
            let length = size_of_val(&to) as libc::socklen_t;
            // SAFETY: a live address and its length.
            let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const to).cast(), length) };
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).expect("timeout");
            Self(fd)
        })
    }

    /// The next segment of the host with these flags: its sequence number.
    fn hear(&self, flags: u8) -> u32 {
        let until = Instant::now() + patience();
        let mut frame = [0u8; 2048];
        while Instant::now() < until {
            match nix::unistd::read(&self.0, &mut frame) {
                Ok(length) if length >= L4 + 20 => {
                    let ours = frame[26..30] == [10, 66, 0, 1] && frame[30..34] == [10, 66, 0, 9];
                    if ours && frame[23] == 6 && frame[L4 + 13] & 0x1f == flags {
                        let number = &frame[L4 + 4..L4 + 8];
                        return u32::from_be_bytes(number.try_into().expect("four bytes"));
                    }
                }
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
        panic!("no segment with flags {flags:02x} in time");
    }

    /// Sends a segment of the peer.
    fn say(&self, mac: [u8; 6], flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        let mut frame = tcp(end(PEER, 7001), end(HOST, 7000), flags, payload.len());
        frame[..6].copy_from_slice(&mac);
        frame[L4 + 4..L4 + 8].copy_from_slice(&seq.to_be_bytes());
        frame[L4 + 8..L4 + 12].copy_from_slice(&ack.to_be_bytes());
        frame[L4 + 20..].copy_from_slice(payload);
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..L4], 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[L4 + 16..L4 + 18].fill(0);
        // The pseudo-header (RFC 9293 §3.1): addresses, protocol, length.
        let pseudo: u32 = frame[26..34]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let sum = checksum(&frame[L4..], pseudo + 6 + (frame.len() - L4) as u32);
        frame[L4 + 16..L4 + 18].copy_from_slice(&sum.to_be_bytes());
        nix::unistd::write(&self.0, &frame).expect("a frame");
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8], begin: u32) -> u16 {
    let mut sum = begin;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The peer's segment crosses the host's. Where policy does not let the peer open, its SYN is denied, and the connection
/// comes about all the same, by the answers that both give.
fn meet(test: &str, may_open: bool) {
    let Some(mut lab) = Lab::new(test) else {
        return;
    };
    permit(&lab, &[("tcp", if may_open { 7000 } else { 5432 })]);
    lab.start();
    let device = |ns: &str, device: &str| -> String {
        let text = ip(&format!("-n {ns} -o link show {device}"));
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "link/ether");
        words.nth(1).expect("an address").to_owned()
    };
    // Nobody's address: no stack of the peer's answers for it.
    let peer = device(&lab.peer, "p0");
    ip(&format!(
        "-n {} neigh replace {PEER} lladdr {peer} dev h0",
        lab.host
    ));
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(device(&lab.host, "h0").split(':')) {
        *byte = u8::from_str_radix(text, 16).expect("hexadecimal");
    }
    let wire = Wire::open(&lab.peer);
    let fd = in_namespace(&lab.host, || {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK,
            None,
        );
        let fd = fd.expect("socket");
        bind(fd.as_raw_fd(), &SockaddrIn::new(10, 66, 0, 1, 7000)).expect("bind");
        let connecting = connect(fd.as_raw_fd(), &SockaddrIn::new(10, 66, 0, 9, 7001));
        assert_eq!(connecting, Err(Errno::EINPROGRESS));
        fd
    });
    let theirs = wire.hear(SYN).wrapping_add(1);
    wire.say(mac, SYN, 1_000, 0, &[]);
    if may_open {
        wire.hear(SYN | ACK);
    } else {
        lab.wait("the crossing SYN is denied", |lab| {
            lab.records()
                .iter()
                .any(|record| record["denial"] == true && record["responder_port"] == 7000)
        });
    }
    wire.say(mac, SYN | ACK, 1_000, theirs, &[]);
    wire.say(mac, ACK, 1_001, theirs, b"hello");
    let mut stream = TcpStream::from(fd);
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(patience())).expect("timeout");
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).expect("it came in");
    assert_eq!(&heard, b"hello");
    stream.write_all(b"hello").expect("established");
    // The peer acknowledges it: the flow is proven.
    wire.say(mac, ACK, 1_006, theirs.wrapping_add(5), &[]);
    lab.wait("one flow, of the host's", |lab| {
        let records = lab.records();
        let flows = records.iter().filter(|record| record["denial"] == false);
        let mut ours = flows.filter(|record| record["protocol"] == 6);
        ours.clone().all(|record| record["initiator"] == HOST)
            && ours.any(|record| record["state"] == "established")
    });
}

#[test]
fn both_ends_may_open_at_once() {
    meet("both_ends_may_open_at_once", true);
}

#[test]
fn a_crossing_syn_that_is_denied_spoils_nothing() {
    meet("a_crossing_syn_that_is_denied_spoils_nothing", false);
}
