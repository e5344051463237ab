//! Flow records against tcpdump, to the packet and the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::report::Outcome;
use super::super::world::World;
use crate::estate::capture::{Capture, Count, Counts};
use crate::estate::process::Process;
use crate::estate::wait_for;

/// Port of the application server.
const PORT: u16 = 8080;

/// One request of HTTP/1.0: connect, ask, read to the end. Returns the client's own address.
pub(super) fn request(server: SocketAddr) -> Result<SocketAddr> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(10))
        .with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mine = stream.local_addr()?;
    let mut answer = Vec::new();
    stream
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .and_then(|()| stream.read_to_end(&mut answer))
        .with_context(|| format!("asking {server} from {mine}, {} bytes came", answer.len()))?;
    if !answer.ends_with(b"app\n") {
        bail!("a strange answer of {} bytes for {mine}", answer.len());
    }
    Ok(mine)
}

/// Moves a large file and makes many short connections, and compares every flow with the wire.
pub(in super::super) fn accounting(
    world: &mut World,
    transfer: u64,
    connections: u32,
) -> Result<Outcome<()>> {
    let (web, app) = (world.host("web")?, world.host("app")?);
    let before: BTreeSet<_> = records(world, &["web", "app"])?.into_keys().collect();
    let dir = world.estate.dir("capture")?;
    let filter = format!("tcp port {PORT}");
    let captures = [
        ("web", Capture::start(web, &filter, &dir)?),
        ("app", Capture::start(app, &filter, &dir)?),
    ];
    let start = Instant::now();
    let mut curl = web.netns.command("curl");
    // Held back a little, so that tcpdump loses nothing on a small machine.
    curl.args(["-sf", "-o", "/dev/null", "--limit-rate", "100M"])
        .arg(format!("http://{}:{PORT}/large", app.v4()));
    let mut curl = Process::start("curl", &mut curl, &dir.join("curl.log"))?;
    let servers = app
        .addresses()
        .map(|address| SocketAddr::new(address, PORT));
    let made = web.netns.enter(|| -> Result<u32> {
        let mut made = 0;
        for number in 0..connections {
            request(servers[number as usize % 2])?;
            made += 1;
        }
        Ok(made)
    })??;
    if !curl.finish(Duration::from_secs(300))? {
        bail!("the large transfer failed: {}", curl.tail());
    }
    let seconds = start.elapsed().as_secs_f64();
    let wanted = (made as usize + 1) * 2;
    let mut captures = Some(captures);
    let mut counts = BTreeMap::new();
    let mut why = String::new();
    let compared = wait_for(
        "flow records that agree with the wire",
        Duration::from_secs(90),
        || {
            let mut records = match records(world, &["web", "app"]) {
                Ok(records) => records,
                Err(error) => {
                    why = format!("{error:#}");
                    return None;
                }
            };
            records.retain(|key, _| !before.contains(key));
            let closed = records.values().filter(|record| record.closed).count();
            if (records.len(), closed) != (wanted, wanted) {
                why = format!(
                    "{} records of both ends, {closed} closed, for {wanted}",
                    records.len()
                );
                return None;
            }
            // Only now: the last segments of the last connections are on the wire.
            for (host, capture) in captures.take().into_iter().flatten() {
                match capture.finish() {
                    Ok(found) => counts.insert(host, found),
                    Err(error) => return Some(Err(error)),
                };
            }
            match compare(&records, &counts) {
                Ok(compared) => Some(Ok(compared)),
                Err(error) => {
                    why = format!("{error:#}");
                    None
                }
            }
        },
    )
    .with_context(|| why.clone())??;
    if compared.bytes < transfer {
        bail!(
            "only {} bytes were counted for a transfer of {transfer}",
            compared.bytes
        );
    }
    let text = format!(
        "   {} bytes and {made} short connections (IPv4 and IPv6) in {seconds:.1} s: {} flows, {} packets, {} bytes;\n   both \
         ends' records equal tcpdump's count on their own devices to the packet and byte",
        transfer, compared.flows, compared.packets, compared.bytes
    );
    let data = json!({"flows": compared.flows, "packets": compared.packets, "bytes": compared.bytes, "seconds": seconds,
        "connections": made, "transfer": transfer});
    Ok(Outcome::new((), text, data))
}

/// One end's record of a flow.
#[derive(Clone, Copy)]
pub(super) struct Record {
    out: Count,
    back: Count,
    /// The flow is over.
    pub(super) closed: bool,
}

/// (host that recorded it, initiator, responder, its unique id) → record, for flows to the application server.
pub(super) type Records = BTreeMap<(String, SocketAddr, SocketAddr, String), Record>;

/// The records of several hosts; an id that occurs twice is an error.
pub(super) fn records(world: &World, hosts: &[&str]) -> Result<Records> {
    let answer = world.controller.ask(&[
        "flows",
        "--workload",
        "web",
        "--port",
        &PORT.to_string(),
        "--limit",
        "100000",
    ])?;
    let mut records = Records::new();
    for flow in answer["flows"]
        .as_array()
        .context("no flows in the answer")?
    {
        let host = flow["host"].as_str().unwrap_or_default();
        if !hosts.contains(&host)
            || flow["denial"] == json!(true)
            || flow["initiator"]["workload"] != json!("web")
        {
            continue;
        }
        let number = |name: &str| flow[name].as_u64().unwrap_or(0);
        let record = Record {
            out: Count {
                packets: number("packets_out"),
                bytes: number("bytes_out"),
                last_us: 0,
            },
            back: Count {
                packets: number("packets_in"),
                bytes: number("bytes_in"),
                last_us: 0,
            },
            closed: flow["closed"] == json!(true),
        };
        let uid = flow["uid"]
            .as_str()
            .context("a flow without an id")?
            .to_owned();
        let key = (
            host.to_owned(),
            end(&flow["initiator"])?,
            end(&flow["responder"])?,
            uid,
        );
        if records.insert(key.clone(), record).is_some() {
            bail!("two records of one flow: {key:?}");
        }
    }
    Ok(records)
}

fn end(value: &Value) -> Result<SocketAddr> {
    let address: IpAddr = value["address"].as_str().context("no address")?.parse()?;
    let port = u16::try_from(value["port"].as_u64().context("no port")?)?;
    Ok(SocketAddr::new(address, port))
}

struct Compared {
    flows: usize,
    packets: u64,
    bytes: u64,
}

/// Both ends' records of every tuple must add up to what the wire carried (a port may be used again); the caller
/// leaves out what began before the capture.
fn compare(records: &Records, counts: &BTreeMap<&str, Counts>) -> Result<Compared> {
    let mut sums: BTreeMap<(&str, SocketAddr, SocketAddr), (Count, Count)> = BTreeMap::new();
    for ((host, from, to, _), record) in records {
        let (out, back) = sums.entry((host, *from, *to)).or_default();
        out.add(record.out);
        back.add(record.back);
    }
    let mut compared = Compared {
        flows: 0,
        packets: 0,
        bytes: 0,
    };
    for ((host, from, to), recorded) in &sums {
        let wire = |from, to| {
            let count = counts.get(*host).and_then(|counts| counts.get(&(from, to)));
            Count {
                last_us: 0,
                ..count.copied().unwrap_or_default()
            }
        };
        let carried = (wire(*from, *to), wire(*to, *from));
        if *recorded != carried {
            bail!("{host} recorded {recorded:?} for {from} → {to}, the wire carried {carried:?}");
        }
        if *host == "web" {
            compared.packets += carried.0.packets + carried.1.packets;
            compared.bytes += carried.0.bytes + carried.1.bytes;
        }
    }
    compared.flows = records.keys().filter(|(host, ..)| host == "web").count();
    Ok(compared)
}
