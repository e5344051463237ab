//! Datagrams longer than a frame, and SCTP where the kernel speaks it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::socket::{
    Backlog, MsgFlags, SockaddrIn, accept, bind, connect, listen, recv, send, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

use crate::common::{Lab, in_namespace, patience, skip};
use crate::far::permit;

fn bound(ns: &str, port: u16) -> UdpSocket {
    let socket = in_namespace(ns, || UdpSocket::bind(("::", port))).expect("bind");
    socket.set_read_timeout(Some(patience())).expect("timeout");
    socket
}

fn to(address: IpAddr, port: u16) -> SocketAddr {
    // The sockets are of both families.
    match address {
        IpAddr::V4(address) => SocketAddr::new(address.to_ipv6_mapped().into(), port),
        IpAddr::V6(_) => SocketAddr::new(address, port),
    }
}

#[test]
fn datagrams_in_fragments_arrive_where_they_may() {
    let Some(mut lab) = Lab::new("datagrams_in_fragments_arrive_where_they_may") else {
        return;
    };
    permit(&lab, &[("udp", 5300)]);
    lab.start();
    let (open, shut) = (bound(&lab.host, 5300), bound(&lab.host, 5301));
    let client = bound(&lab.peer, 0);
    let mut buffer = vec![0; 65_535];
    for address in [lab.v4(), lab.v6()] {
        for size in [100usize, 1_400, 2_000, 9_000, 60_000] {
            let question: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            client.send_to(&question, to(address, 5301)).expect("send");
            client.send_to(&question, to(address, 5300)).expect("send");
            let (length, from) = open.recv_from(&mut buffer).expect("it arrives");
            assert_eq!(&buffer[..length], &question[..], "{address}, {size} bytes");
            // And back, in as many pieces.
            open.send_to(&buffer[..length], from).expect("send");
            let (length, from) = client.recv_from(&mut buffer).expect("the answer arrives");
            assert_eq!((length, from.port()), (size, 5300), "{address}");
            assert_eq!(&buffer[..length], &question[..]);
        }
    }
    // What was sent first would be here by now.
    shut.set_nonblocking(true).expect("nonblocking");
    assert!(
        shut.recv_from(&mut buffer).is_err(),
        "no piece of it came in"
    );
    lab.wait("the records say every piece", |lab| {
        lab.records().iter().any(|record| {
            // 60,000 bytes are 41 fragments of at most 1,480 bytes.
            record["responder_port"] == 5300
                && record["packets_out"].as_u64() >= Some(41 + 7 + 2 + 2)
        })
    });
    lab.wait("the denial is recorded", |lab| {
        let denied = |record: &serde_json::Value| {
            record["responder_port"] == 5301 && record["denial"] == true
        };
        lab.records().iter().any(denied)
    });
}

/// One-to-one style sockets (RFC 6458 §4).
#[test]
fn sctp_associations_are_judged_by_their_port() {
    let test = "sctp_associations_are_judged_by_their_port";
    let Some(mut lab) = Lab::new(test) else {
        return;
    };
    let open = |ns: &str| {
        in_namespace(ns, || {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
            // nix has no number for SCTP.
            // SAFETY: makes a descriptor.
            let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_SCTP) };
            // SAFETY: new and nobody else's.
            (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
        })
    };
    let Some(client) = open(&lab.peer) else {
        skip(test, "this kernel speaks no SCTP");
        return;
    };
    permit(&lab, &[("sctp", 3868)]);
    lab.start();
    let serve = |port| {
        let server = open(&lab.host).expect("as before");
        bind(server.as_raw_fd(), &host(port)).expect("bind");
        listen(&server, Backlog::new(8).expect("a number")).expect("listen");
        server
    };
    let (allowed, _denied) = (serve(3868), serve(3869));
    let refused = open(&lab.peer).expect("as before");
    setsockopt(&refused, sockopt::SendTimeout, &TimeVal::new(1, 0)).expect("timeout");
    assert!(connect(refused.as_raw_fd(), &host(3869)).is_err());
    connect(client.as_raw_fd(), &host(3868)).expect("connect");
    // SAFETY: new and nobody else's.
    let server = unsafe { OwnedFd::from_raw_fd(accept(allowed.as_raw_fd()).expect("accept")) };
    let mut buffer = [0; 16];
    for (from, to) in [(&client, &server), (&server, &client)] {
        send(from.as_raw_fd(), b"hello", MsgFlags::empty()).expect("send");
        assert_eq!(recv(to.as_raw_fd(), &mut buffer, MsgFlags::empty()), Ok(5));
    }
}

fn host(port: u16) -> SockaddrIn {
    SockaddrIn::new(10, 66, 0, 1, port)
}
