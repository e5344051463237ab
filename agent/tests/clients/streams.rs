//! TCP connections that live long, end by halves, come again or carry much.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use crate::common::{Lab, Session, in_namespace, patience};
use crate::far::{has, ip, permit, run_in};

/// A lab whose peer may reach 5432.
fn lab(test: &str) -> Option<Lab> {
    let lab = Lab::new(test)?;
    permit(&lab, &[("tcp", 5432)]);
    Some(lab)
}

#[test]
fn who_has_finished_still_hears() {
    const BYTES: usize = 2_000_000;
    let Some(mut lab) = lab("who_has_finished_still_hears") else {
        return;
    };
    lab.start();
    let listener = lab.listen(5432);
    for address in [lab.v4(), lab.v6()] {
        for client_first in [true, false] {
            let Session { client, server } = lab.session(&listener, address);
            let (mut quiet, mut speaker) = if client_first {
                (client, server)
            } else {
                (server, client)
            };
            for stream in [&quiet, &speaker] {
                stream.set_read_timeout(Some(patience())).expect("timeout");
            }
            quiet.shutdown(Shutdown::Write).expect("shutdown");
            let mut rest = Vec::new();
            assert_eq!(speaker.read_to_end(&mut rest).expect("it has finished"), 0);
            let heard = std::thread::scope(|scope| {
                scope.spawn(move || speaker.write_all(&vec![3; BYTES]).expect("send"));
                quiet.read_to_end(&mut rest).expect("receive")
            });
            assert_eq!(heard, BYTES, "{address}");
        }
    }
}

#[test]
fn a_port_is_used_again_at_once() {
    const TIMES: usize = 6;
    let Some(mut lab) = lab("a_port_is_used_again_at_once") else {
        return;
    };
    lab.start();
    let listener = lab.listen(5432);
    for _ in 0..TIMES {
        let mut client = from_port(&lab, 45_000);
        let (mut server, _) = listener.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(patience())).expect("timeout");
        }
        let mut session = Session {
            client: client.try_clone().expect("clone"),
            server: server.try_clone().expect("clone"),
        };
        assert!(session.works());
        drop(session);
        // The server closes first: its end waits (RFC 9293 §3.3.2), the client's port is free.
        server.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(client.read(&mut [0]).expect("it has finished"), 0);
        client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(server.read(&mut [0]).expect("it has finished"), 0);
    }
    lab.wait("each connection has its record", |lab| {
        let records = lab.records();
        let ours = records.iter().filter(|record| {
            record["initiator_port"] == 45_000
                && record["denial"] == false
                && record["closed"] == true
        });
        let uids: std::collections::BTreeSet<_> =
            ours.filter_map(|record| record["uid"].as_str()).collect();
        uids.len() == TIMES
    });
}

/// Connects from a port of the peer.
fn from_port(lab: &Lab, port: u16) -> TcpStream {
    in_namespace(&lab.peer, || {
        let fd: OwnedFd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("socket");
        setsockopt(&fd, sockopt::ReuseAddr, &true).expect("option");
        bind(fd.as_raw_fd(), &SockaddrIn::new(10, 66, 0, 2, port)).expect("bind");
        connect(fd.as_raw_fd(), &SockaddrIn::new(10, 66, 0, 1, 5432)).expect("connect");
        TcpStream::from(fd)
    })
}

#[test]
fn keepalives_keep_an_idle_connection() {
    let Some(mut lab) = lab("keepalives_keep_an_idle_connection") else {
        return;
    };
    lab.configure("timeouts", serde_json::json!({ "established": "4s" }));
    lab.start();
    let listener = lab.listen(5432);
    let mut kept = lab.session(&listener, lab.v4());
    setsockopt(&kept.client, sockopt::KeepAlive, &true).expect("option");
    setsockopt(&kept.client, sockopt::TcpKeepIdle, &1).expect("option");
    setsockopt(&kept.client, sockopt::TcpKeepInterval, &1).expect("option");
    let mut forgotten = lab.session(&listener, lab.v4());
    assert!(kept.works() && forgotten.works());
    let port = |session: &Session| session.client.local_addr().expect("address").port();
    let silent = port(&forgotten);
    lab.wait("the silent flow is over", |lab| {
        lab.records()
            .iter()
            .any(|record| record["initiator_port"] == silent && record["closed"] == true)
    });
    assert!(kept.works(), "the other one asked now and then");
    assert!(!forgotten.works(), "a segment of no flow opens none");
    let alive = port(&kept);
    let records = lab.records();
    assert!(
        !records
            .iter()
            .any(|record| record["initiator_port"] == alive && record["closed"] == true)
    );
}

#[test]
fn a_device_that_goes_down_and_up_stays_armed() {
    let Some(mut lab) = lab("a_device_that_goes_down_and_up_stays_armed") else {
        return;
    };
    lab.start();
    let (listener, shut) = (lab.listen(5432), lab.listen(22));
    shut.set_nonblocking(true).expect("nonblocking");
    let mut session = lab.session(&listener, lab.v4());
    // With the agent, without it, and with the next one.
    for agent in ["this", "no", "the next"] {
        match agent {
            "no" => lab.kill(),
            "the next" => {
                lab.start();
            }
            _ => {}
        }
        for _ in 0..5 {
            ip(&format!("-n {} link set h0 down", lab.host));
            ip(&format!("-n {} link set h0 up", lab.host));
            assert!(lab.knock(lab.v4(), 22).as_raw_fd() >= 0);
            lab.wait("the session goes on", |_| session.works());
            assert!(lab.session(&listener, lab.v4()).works(), "{agent} agent");
            assert!(
                shut.accept().is_err(),
                "{agent} agent: it was open for a moment"
            );
        }
    }
}

/// A child that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_iperf_sends_is_what_the_records_say() {
    const PORT: u16 = 5201;
    let test = "what_iperf_sends_is_what_the_records_say";
    if !has(test, "iperf3") {
        return;
    }
    let Some(mut lab) = Lab::new(test) else {
        return;
    };
    permit(&lab, &[("tcp", PORT), ("udp", PORT)]);
    lab.start();
    for (how, protocol, back) in [
        ("-n 40M", 6, false),
        ("-n 40M -R", 6, true),
        ("-n 40M -P 4", 6, false),
        ("-u -b 100M -n 10M", 17, false),
    ] {
        let server = Command::new("ip")
            .args([
                "netns", "exec", &lab.host, "iperf3", "-s", "-1", "-p", "5201",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("iperf3 starts");
        let _server = Server(server);
        lab.wait("iperf3 listens", |lab| {
            in_namespace(&lab.host, || {
                let table = std::fs::read_to_string("/proc/thread-self/net/tcp6").expect("sockets");
                // Port 5201, listening.
                table.lines().any(|line| {
                    let mut words = line.split_whitespace().skip(1);
                    words.next().is_some_and(|local| local.ends_with(":1451"))
                        && words.nth(1) == Some("0A")
                })
            })
        });
        let before = carried(&lab, protocol, back);
        let told = run_in(
            &lab.peer,
            &format!("iperf3 -c 10.66.0.1 -p {PORT} -J {how}"),
        );
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        // What was written may not all have been on the wire when the client let go.
        let sums = match protocol {
            6 => ["sum_received", "sum_sent"],
            _ => ["sum", "sum"],
        };
        let [least, most] = sums.map(|sum| told["end"][sum]["bytes"].as_u64().expect("a number"));
        assert!(least >= 9_000_000, "{how}: {least} bytes");
        // Headers come on top: at most 52 of 1,500 bytes; 28 before datagrams.
        lab.wait("the records say as much", |lab| {
            let said = carried(lab, protocol, back) - before;
            assert!(said < most + most / 10, "{how}: {said} for {most}");
            said >= least + least / 60
        });
    }
}

/// Bytes from the client's side (or back) by the records of a protocol.
fn carried(lab: &Lab, protocol: u64, back: bool) -> u64 {
    let mut most = std::collections::BTreeMap::new();
    for record in lab.records() {
        let way = if back { "bytes_in" } else { "bytes_out" };
        if record["responder_port"] == 5201 && record["protocol"] == protocol {
            let (uid, bytes) = (record["uid"].to_string(), record[way].as_u64());
            let highest: &mut u64 = most.entry(uid).or_default();
            *highest = (*highest).max(bytes.unwrap_or(0));
        }
    }
    most.values().sum()
}

#[test]
fn a_connection_to_an_address_of_its_own_is_nobodys_business() {
    let Some(mut lab) = lab("a_connection_to_an_address_of_its_own_is_nobodys_business") else {
        return;
    };
    lab.start();
    let listener = lab.listen(22);
    for address in [lab.v4(), lab.v6()] {
        let client = in_namespace(&lab.host, || {
            TcpStream::connect_timeout(&SocketAddr::new(address, 22), patience())
        });
        let (server, _) = listener.accept().expect("accept");
        let client = client.expect("over lo, which is never filtered");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(patience())).expect("timeout");
        }
        assert!(Session { client, server }.works());
    }
}
