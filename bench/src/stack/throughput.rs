//! One TCP stream of MTU-sized packets from the peer to the host: all offloads are off, so that every segment goes through
//! the firewall by itself.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use super::world::{Firewall, HOST_DEVICE, World, offloads};
use crate::frames::{LOCAL4, SERVICE};

/// One write or read.
const CHUNK: usize = 256 << 10;
/// For what must come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Rate of one stream with one firewall.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rate {
    pub(crate) firewall: Firewall,
    /// Gigabits of payload a second; the greatest of all rounds.
    pub(crate) gbps: f64,
    /// Every round, in its order.
    pub(crate) rounds: Vec<f64>,
}

/// Measures every world, once in each round.
pub(crate) fn run(worlds: &[&World], rounds: usize, burst: Duration) -> Result<Vec<Rate>> {
    let mut listeners = Vec::new();
    let mut rates = Vec::new();
    for world in worlds {
        offloads(&world.host, HOST_DEVICE, false)?;
        listeners.push(
            world
                .host
                .run(|| TcpListener::bind((LOCAL4, SERVICE)).context("listening"))?,
        );
        rates.push(Rate {
            firewall: world.firewall,
            gbps: 0.0,
            rounds: Vec::new(),
        });
    }
    for _ in 0..rounds {
        for ((world, listener), rate) in worlds.iter().zip(&listeners).zip(&mut rates) {
            let gbps = stream(world, listener, burst)
                .with_context(|| format!("a stream with {}", world.firewall.name()))?;
            rate.rounds.push(gbps);
            rate.gbps = rate.gbps.max(gbps);
        }
    }
    for world in worlds {
        offloads(&world.host, HOST_DEVICE, true)?;
    }
    Ok(rates)
}

/// Sends for a while from one CPU to another; gigabits a second from the first byte to the last, at the receiver.
fn stream(world: &World, listener: &TcpListener, burst: Duration) -> Result<f64> {
    let address = listener.local_addr()?;
    let client = world.peer.run(|| {
        TcpStream::connect_timeout(&address, PATIENCE).context("connecting from the peer")
    })?;
    let (server, _) = listener.accept()?;
    client.set_write_timeout(Some(PATIENCE))?;
    server.set_read_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(server));
        let sender = scope.spawn(|| send(client, burst));
        let sent = joined(sender.join())?;
        let (received, took) = joined(receiver.join())?;
        if sent != received || received == 0 {
            bail!("{sent} bytes were sent, {received} came");
        }
        Ok(received as f64 * 8.0 / took.as_secs_f64() / 1e9)
    })
}

fn joined<T>(outcome: std::thread::Result<Result<T>>) -> Result<T> {
    outcome.map_err(|_| anyhow!("a measuring thread panicked"))?
}

fn send(mut client: TcpStream, burst: Duration) -> Result<u64> {
    super::alone(0)?;
    let chunk = vec![0xa5; CHUNK];
    let end = Instant::now() + burst;
    let mut sent = 0;
    while Instant::now() < end {
        sent += client.write(&chunk)? as u64;
    }
    client.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(mut server: TcpStream) -> Result<(u64, Duration)> {
    super::alone(1)?;
    let mut chunk = vec![0; CHUNK];
    let mut received = server.read(&mut chunk)? as u64;
    let begin = Instant::now();
    loop {
        match server.read(&mut chunk)? {
            0 => return Ok((received, begin.elapsed())),
            bytes => received += bytes as u64,
        }
    }
}
