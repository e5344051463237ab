//! Trying one connection, and answering it: a byte there and the same byte back.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, send, socket,
};

use super::Connection;

/// What is dropped takes this long.
pub(crate) const SHORT: Duration = Duration::from_millis(700);
/// For a second look.
pub(crate) const LONG: Duration = Duration::from_secs(4);

/// Whether the connection can be used in both directions.
pub(crate) fn passes(connection: Connection, patience: Duration) -> bool {
    let (from, to) = if connection.towards_host {
        (connection.peer, connection.host)
    } else {
        (connection.host, connection.peer)
    };
    match connection.protocol {
        6 => tcp(from, SocketAddr::new(to, connection.port), patience),
        17 => datagram(from, to, connection.port, None, patience),
        _ => datagram(from, to, 0, Some(connection.port.to_be_bytes()), patience),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn ready(socket: &OwnedFd, flags: PollFlags, patience: Duration) -> bool {
    let mut sockets = [PollFd::new(socket.as_fd(), flags)];
    let timeout = PollTimeout::try_from(patience).unwrap();
    poll(&mut sockets, timeout).unwrap() == 1
}

fn storage(address: SocketAddr) -> SockaddrStorage {
    address.into()
}

fn tcp(from: IpAddr, to: SocketAddr, patience: Duration) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family(from), SockType::Stream, flags, None).unwrap();
    bind(socket.as_raw_fd(), &storage((from, 0).into())).unwrap();
    match connect(socket.as_raw_fd(), &storage(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(_) => return false,
    }
    if !ready(&socket, PollFlags::POLLOUT, patience) {
        return false;
    }
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = [0];
    stream.write_all(b"?").is_ok() && stream.read_exact(&mut answer).is_ok()
}

/// UDP, or an ICMP echo.
fn datagram(
    from: IpAddr,
    to: IpAddr,
    port: u16,
    echo: Option<[u8; 2]>,
    patience: Duration,
) -> bool {
    let protocol = match (echo, from.is_ipv4()) {
        (None, _) => None,
        (Some(_), true) => Some(SockProtocol::Icmp),
        (Some(_), false) => Some(SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family(from), SockType::Datagram, flags, protocol).unwrap();
    bind(socket.as_raw_fd(), &storage((from, 0).into())).unwrap();
    if connect(socket.as_raw_fd(), &storage((to, port).into())).is_err() {
        return false;
    }
    let packet = match echo {
        None => vec![b'?'],
        Some([kind, code]) => vec![kind, code, 0, 0, 0, 0, 0, 1],
    };
    for _ in 0..2 {
        // A packet that is dropped on its way out is an error to its sender.
        if send(socket.as_raw_fd(), &packet, MsgFlags::empty()).is_err() {
            continue;
        }
        if ready(&socket, PollFlags::POLLIN, patience / 2) {
            return recv(socket.as_raw_fd(), &mut [0; 64], MsgFlags::empty()).is_ok();
        }
    }
    false
}

/// Answers every connection until told to stop.
pub(crate) fn serve_tcp(address: SocketAddr, stop: &Arc<AtomicBool>) {
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            std::thread::spawn(move || {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(LONG));
                let mut question = [0];
                if stream.read_exact(&mut question).is_ok() {
                    let _ = stream.write_all(&question);
                }
            });
        }
    });
}

/// The same for datagrams.
pub(crate) fn serve_udp(address: SocketAddr, stop: &Arc<AtomicBool>) {
    let socket = UdpSocket::bind(address).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut packet = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut packet) {
                let _ = socket.send_to(&packet[..length], from);
            }
        }
    });
}
