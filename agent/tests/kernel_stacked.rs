//! Devices that stand on others: each packet of the host is judged and counted once, and the record says what was on the wire.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use common::{Lab, Session, brief, in_namespace, skip};
use serde_json::{Value, json};

const PORT: u16 = 5432;

fn ip(ns: &str, arguments: &str) -> Result<(), String> {
    let done = Command::new("ip")
        .args(["-n", ns])
        .args(arguments.split_whitespace())
        .output()
        .expect("ip runs");
    if done.status.success() {
        Ok(())
    } else {
        Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        ))
    }
}

/// A lab in which these commands were run, `H` and `P` standing for host and peer; `None` (said loudly) when this kernel has
/// no such devices.
fn lab(test: &str, commands: &[&str]) -> Option<Lab> {
    let lab = Lab::new(test)?;
    for command in commands {
        let (ns, rest) = match command.split_once(' ') {
            Some(("H", rest)) => (&lab.host, rest),
            Some(("P", rest)) => (&lab.peer, rest),
            _ => panic!("{command}"),
        };
        match ip(ns, rest) {
            Ok(()) => {}
            Err(error) if error.contains("Unknown device type") => {
                skip(test, &format!("this kernel has no such device: {error}"));
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let policy = json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": "db" },
        "spec": { "state": "enforced", "subject": { "role": "db" },
                  "ingress": [{ "action": "allow", "peers": [{ "selector": { "role": "web" } }], "ports": [{ "port": PORT }] }],
                  "egress": [{ "action": "allow" }] },
    });
    let peer = json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Workload",
        "metadata": { "name": "web-1", "labels": { "role": "web" } },
        "spec": { "addresses": ["10.66.0.2", "10.67.0.2"] },
    });
    std::fs::write(lab.policy_dir().join("policy.json"), policy.to_string()).expect("policy");
    std::fs::write(lab.policy_dir().join("peer.json"), peer.to_string()).expect("peer");
    Some(lab)
}

/// Listens on a device, as a sniffer does.
struct Wire(OwnedFd);

impl Wire {
    fn of(ns: &str, device: &str) -> Self {
        in_namespace(ns, || {
            let every = u16::try_from(libc::ETH_P_ALL).expect("protocol").to_be();
            // SAFETY: a call without pointers.
            let fd = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_NONBLOCK,
                    i32::from(every),
                )
            };
            assert!(fd >= 0, "packet socket");
            // SAFETY: a descriptor that nobody else has.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: plain integers.
            let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            to.sll_family = u16::try_from(libc::AF_PACKET).expect("family");
            to.sll_protocol = every;
            to.sll_ifindex = nix::net::if_::if_nametoindex(device)
                .expect("index")
                .cast_signed();
            // SAFETY: an address of the length that is passed.
            let done = unsafe {
                libc::bind(
                    fd.as_raw_fd(),
                    (&raw const to).cast(),
                    u32::try_from(size_of::<libc::sockaddr_ll>()).expect("length"),
                )
            };
            assert_eq!(done, 0, "bind");
            Self(fd)
        })
    }

    /// TCP packets to or from the port since the last look, and their IPv4 bytes.
    fn seen(&self) -> (u64, u64) {
        let (mut packets, mut bytes) = (0, 0);
        let mut frame = [0u8; 65_536];
        while let Ok(length) = nix::unistd::read(&self.0, &mut frame) {
            let mut rest = &frame[12..length];
            // The outermost tag is not among the bytes when the kernel has taken it off.
            while matches!(rest, [0x81, 0, ..] | [0x88, 0xa8, ..]) {
                rest = &rest[4..];
            }
            let [8, 0, packet @ ..] = rest else { continue };
            let header = usize::from(packet[0] & 15) * 4;
            let port =
                |at: usize| u16::from_be_bytes([packet[header + at], packet[header + at + 1]]);
            if packet[9] == 6 && (port(0) == PORT || port(2) == PORT) {
                packets += 1;
                bytes += u64::from(u16::from_be_bytes([packet[2], packet[3]]));
            }
        }
        (packets, bytes)
    }
}

fn devices(lab: &Lab) -> Vec<String> {
    lab.verb(&["status"])["devices"]
        .as_array()
        .expect("devices")
        .iter()
        .map(|device| device["device"].as_str().expect("name").to_owned())
        .collect()
}

/// Connects to the host's address, speaks, hangs up; then there is one record, and it says what was on the wire.
fn once(lab: &mut Lab, armed: &[&str], address: &str) {
    lab.start();
    lab.wait("the lowest devices are armed", |lab| devices(lab) == armed);
    let wire = Wire::of(&lab.peer, "p0");
    let listener = lab.listen(PORT);
    let address: IpAddr = address.parse().expect("address");
    {
        let client = lab.connect(address, PORT).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(brief())).expect("timeout");
        }
        let mut session = Session { client, server };
        for _ in 0..5 {
            assert!(session.works());
        }
    }
    let mut on_wire = (0, 0);
    lab.wait("the record says what was on the wire", |lab| {
        let (packets, bytes) = wire.seen();
        on_wire = (on_wire.0 + packets, on_wire.1 + bytes);
        let records: Vec<Value> = lab
            .records()
            .into_iter()
            .filter(|record| record["responder_port"] == PORT)
            .collect();
        let Some(last) = records.last() else {
            return false;
        };
        let sum =
            |a: &str, b: &str| last[a].as_u64().expect("count") + last[b].as_u64().expect("count");
        let told = (
            sum("packets_out", "packets_in"),
            sum("bytes_out", "bytes_in"),
        );
        assert!(
            told.0 <= on_wire.0 || wire.seen().0 > 0,
            "counted more than once: {told:?} of {on_wire:?}"
        );
        last["closed"] == true && told == on_wire && told.0 > 10
    });
    // And what is not allowed does not pass, over whichever device it comes.
    let refused = in_namespace(&lab.peer, || {
        TcpStream::connect_timeout(&SocketAddr::new(address, PORT + 1), brief())
    });
    assert_eq!(
        refused.expect_err("denied").kind(),
        std::io::ErrorKind::TimedOut
    );
    assert_eq!(lab.verb(&["status"])["last_error"], "", "{}", lab.log());
}

#[test]
fn a_vlan_is_judged_below_it() {
    let Some(mut lab) = lab(
        "a_vlan_is_judged_below_it",
        &[
            "H link add link h0 name h0.5 type vlan id 5",
            "P link add link p0 name p0.5 type vlan id 5",
            "H addr add 10.67.0.1/24 dev h0.5",
            "P addr add 10.67.0.2/24 dev p0.5",
            "H link set h0.5 up",
            "P link set p0.5 up",
        ],
    ) else {
        return;
    };
    once(&mut lab, &["h0"], "10.67.0.1");
}

#[test]
fn of_two_tags_the_inner_one_is_judged_where_the_outer_one_is_off() {
    let test = "of_two_tags_the_inner_one_is_judged_where_the_outer_one_is_off";
    for protocol in ["802.1q", "802.1ad"] {
        let outer = |ns: &str, device: &str| {
            format!(
                "{ns} link add link {device} name {device}.5 type vlan protocol {protocol} id 5"
            )
        };
        let commands = [
            outer("H", "h0"),
            outer("P", "p0"),
            "H link add link h0.5 name h0.5.7 type vlan id 7".into(),
            "P link add link p0.5 name p0.5.7 type vlan id 7".into(),
            "H addr add 10.67.0.1/24 dev h0.5.7".into(),
            "P addr add 10.67.0.2/24 dev p0.5.7".into(),
            "H link set h0.5 up".into(),
            "P link set p0.5 up".into(),
            "H link set h0.5.7 up".into(),
            "P link set p0.5.7 up".into(),
        ];
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let Some(mut lab) = lab(test, &commands) else {
            return;
        };
        once(&mut lab, &["h0", "h0.5.7"], "10.67.0.1");
        // Below, the same frames were counted as what they are there.
        let frames = &lab.verb(&["status"])["reasons"]["non-ip"];
        assert!(
            frames[0].as_u64().is_some_and(|frames| frames > 10),
            "{frames}"
        );
    }
}

#[test]
fn the_ports_of_a_bridge_are_judged() {
    let Some(mut lab) = lab(
        "the_ports_of_a_bridge_are_judged",
        &[
            "H link add br0 type bridge",
            "H link add h1 type veth peer name q0",
            "H addr flush dev h0",
            "H link set h0 master br0",
            "H link set h1 master br0",
            "H addr add 10.66.0.1/24 dev br0",
            "H link set br0 up",
            "H link set h1 up",
        ],
    ) else {
        return;
    };
    // The other end of the second port lives elsewhere.
    let host = lab.host.clone();
    ip(&host, &format!("link set q0 netns {}", lab.peer)).expect("move");
    ip(&lab.peer, "link set q0 up").expect("up");
    once(&mut lab, &["h0", "h1"], "10.66.0.1");
}

#[test]
fn ports_of_a_bond_are_judged() {
    let Some(mut lab) = lab(
        "ports_of_a_bond_are_judged",
        &[
            "H link add bond0 type bond mode active-backup miimon 100",
            "H addr flush dev h0",
            "H link set h0 down",
            "H link set h0 master bond0",
            "H addr add 10.66.0.1/24 dev bond0",
            "H link set bond0 up",
        ],
    ) else {
        return;
    };
    once(&mut lab, &["h0"], "10.66.0.1");
}

#[test]
fn a_macvlan_is_judged_below_it() {
    let Some(mut lab) = lab(
        "a_macvlan_is_judged_below_it",
        &[
            "H link add link h0 name mac0 type macvlan mode bridge",
            "H addr add 10.67.0.1/24 dev mac0",
            "P addr add 10.67.0.2/24 dev p0",
            "H link set mac0 up",
        ],
    ) else {
        return;
    };
    once(&mut lab, &["h0"], "10.67.0.1");
}

#[test]
fn what_is_named_is_armed_whatever_it_stands_on() {
    let Some(mut lab) = lab(
        "what_is_named_is_armed_whatever_it_stands_on",
        &["H link add br0 type bridge", "H link set br0 up"],
    ) else {
        return;
    };
    lab.configure("devices", json!({ "include": ["auto", "br*"] }));
    lab.start();
    lab.wait("both are armed", |lab| devices(lab) == ["br0", "h0"]);
}
