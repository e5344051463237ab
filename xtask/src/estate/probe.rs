//! Can this host reach that port? Asked with real connections, many at once.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

use super::Host;

/// What became of a connection attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reach {
    /// Connected.
    Open,
    /// The host answered that nothing listens: the packet arrived.
    Closed,
    /// Silence: dropped on the way.
    Blocked,
}

/// Tries one connection from the current namespace.
pub(crate) fn connect(address: IpAddr, port: u16, limit: Duration) -> Reach {
    match TcpStream::connect_timeout(&SocketAddr::new(address, port), limit) {
        Ok(_) => Reach::Open,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reach::Closed,
        Err(_) => Reach::Blocked,
    }
}

/// Tries every target from one host, all at the same time.
pub(crate) fn from_host(
    host: &Host,
    targets: &[(IpAddr, u16)],
    limit: Duration,
) -> Result<Vec<Reach>> {
    host.netns.enter(|| {
        // Threads inherit the namespace of the thread that starts them.
        std::thread::scope(|scope| {
            let attempts: Vec<_> = targets
                .iter()
                .map(|(address, port)| scope.spawn(move || connect(*address, *port, limit)))
                .collect();
            attempts
                .into_iter()
                .map(|attempt| attempt.join().unwrap_or(Reach::Blocked))
                .collect()
        })
    })
}
