//! Devices that come and go under traffic: how long they are not armed, and what gets in meanwhile.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent::kernel::attach::armed_devices;
use agent::kernel::pins::PinDir;
use common::{Lab, in_namespace, patience};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

const ROUNDS: usize = 50;
const PORT: u16 = 9000;

fn batch(lines: &[String]) {
    use std::io::Write;
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("ip");
    let mut input = ip.stdin.take().expect("stdin");
    input
        .write_all(lines.join("\n").as_bytes())
        .expect("commands");
    drop(input);
    assert!(ip.wait().expect("ip").success(), "{lines:?}");
}

/// Makes a pair; `up` at once, as part of its making, or as people do it.
fn appear(lab: &Lab, at_once: bool, index: Option<u32>) {
    let (host, peer) = (&lab.host, &lab.peer);
    let index = index.map_or_else(String::new, |index| format!(" index {index}"));
    let up = if at_once { " up" } else { "" };
    batch(&[format!(
        "link add h1{index} netns {host}{up} type veth peer name p1 netns {peer}"
    )]);
    for (ns, device, last) in [(host, "h1", 1), (peer, "p1", 2)] {
        let done = Command::new("ip")
            .args(["-n", ns, "addr", "add", &format!("10.67.0.{last}/24")])
            .args(["dev", device])
            .status()
            .expect("ip");
        assert!(done.success());
    }
    for (ns, device) in [(peer, "p1"), (host, "h1")] {
        let done = Command::new("ip")
            .args(["-n", ns, "link", "set", device, "up"])
            .status()
            .expect("ip");
        assert!(done.success());
    }
}

fn vanish(lab: &Lab) {
    let done = Command::new("ip")
        .args(["-n", &lab.host, "link", "del", "h1"])
        .status()
        .expect("ip");
    assert!(done.success());
}

/// A device that came.
struct Seen {
    index: u32,
    /// From its announcement until both its hooks were held.
    took: Duration,
}

/// Watches announcements in the host's namespace, and how long each new device stays unarmed.
fn watch(pins: &PinDir, ready: &mpsc::Sender<()>, seen: &mpsc::Sender<Seen>, stop: &AtomicBool) {
    const LINK: u32 = 1;
    const RTM_NEWLINK: u16 = 16;
    const RTM_DELLINK: u16 = 17;
    let mut socket = Socket::new(NETLINK_ROUTE).expect("netlink");
    socket.bind(&SocketAddr::new(0, LINK)).expect("bind");
    socket.set_non_blocking(true).expect("non-blocking");
    ready.send(()).expect("main thread");
    let mut known = std::collections::BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((message, _)) = socket.recv_from_full() else {
            std::thread::park_timeout(Duration::from_micros(200));
            continue;
        };
        let began = Instant::now();
        // struct nlmsghdr: type at 4; struct ifinfomsg behind it: index at 4.
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let index = u32::from_ne_bytes([message[20], message[21], message[22], message[23]]);
        if kind == RTM_DELLINK {
            known.remove(&index);
        }
        if kind != RTM_NEWLINK || !known.insert(index) {
            continue;
        }
        while !armed_devices(pins).is_ok_and(|armed| armed.contains_key(&index)) {
            assert!(
                began.elapsed() < patience(),
                "device {index} is never armed"
            );
            std::thread::park_timeout(Duration::from_micros(100));
        }
        let took = began.elapsed();
        seen.send(Seen { index, took }).expect("main thread");
    }
}

#[test]
fn a_device_that_comes_and_goes_fifty_times_under_traffic_is_armed_each_time() {
    let test = "a_device_that_comes_and_goes_fifty_times_under_traffic_is_armed_each_time";
    let Some(mut lab) = Lab::new(test) else {
        return;
    };
    lab.allow(&[5432]);
    lab.start();
    let pins = PinDir::at(lab.pin());
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let server = in_namespace(&lab.host, || UdpSocket::bind(("0.0.0.0", PORT))).expect("server");
    server.set_nonblocking(true).expect("non-blocking");
    let client = in_namespace(&lab.peer, || UdpSocket::bind("0.0.0.0:0")).expect("client");
    let (seen_in, seen) = mpsc::channel();
    let (ready_in, ready) = mpsc::channel();
    let mut took = Vec::new();
    let mut got_in = 0u64;
    std::thread::scope(|scope| {
        // Ends the threads also when a round fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        scope.spawn(|| in_namespace(&lab.host, || watch(&pins, &ready_in, &seen_in, &stop)));
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Not sent while there is no way: that is what flapping is.
                if client.send_to(b"x", ("10.67.0.1", PORT)).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::park_timeout(Duration::from_micros(500));
            }
        });
        ready.recv_timeout(patience()).expect("the watch");
        let mut buffer = [0; 8];
        for round in 0..ROUNDS {
            // Every third under the index of the one before; every other one is up from its first moment.
            let index = (round % 3 != 0).then_some(4000);
            appear(&lab, round % 2 == 1, index);
            let new = seen.recv_timeout(patience()).expect("armed");
            if let Some(index) = index {
                assert_eq!(new.index, index);
            }
            took.push(new.took);
            // Counts what came in before the device was armed; what is sent from now on must not.
            while server.recv(&mut buffer).is_ok() {
                got_in += 1;
            }
            let before = sent.load(Ordering::Relaxed);
            lab.wait("traffic over the new device", |_| {
                sent.load(Ordering::Relaxed) > before + 5
            });
            assert!(
                server.recv(&mut buffer).is_err(),
                "round {round}: a datagram passed an armed device"
            );
            vanish(&lab);
        }
    });
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    println!(
        "from RTM_NEWLINK to both hooks held, {ROUNDS} times: median {:?}, 90 % {:?}, longest {:?}; {got_in} of {} datagrams were earlier",
        at(50),
        at(90),
        at(100),
        sent.load(Ordering::Relaxed)
    );
    assert!(at(50) < Duration::from_millis(500), "{took:?}");
    lab.wait("what is gone is forgotten", |lab| {
        let devices = lab.verb(&["status"])["devices"].clone();
        devices.as_array().is_some_and(|devices| devices.len() == 1)
            && PinDir::at(lab.pin())
                .links()
                .is_ok_and(|links| links.len() == 2)
    });
    assert_eq!(lab.verb(&["status"])["last_error"], "", "{}", lab.log());
}

#[test]
fn a_device_is_armed_before_it_is_up_and_stays_armed_when_it_goes_down() {
    let test = "a_device_is_armed_before_it_is_up_and_stays_armed_when_it_goes_down";
    let Some(mut lab) = Lab::new(test) else {
        return;
    };
    lab.allow(&[5432]);
    lab.start();
    batch(&[format!(
        "link add h1 netns {} type veth peer name p1 netns {}",
        lab.host, lab.peer
    )]);
    let armed = |lab: &Lab| {
        lab.verb(&["status"])["devices"]
            .as_array()
            .is_some_and(|devices| devices.iter().any(|device| device["device"] == "h1"))
    };
    lab.wait("the device that is down is armed", armed);
    let set = |state: &str| {
        let done = Command::new("ip")
            .args(["-n", &lab.host, "link", "set", "h1", state])
            .status()
            .expect("ip");
        assert!(done.success());
    };
    let links = || PinDir::at(lab.pin()).links().expect("pins");
    let before = links();
    set("up");
    set("down");
    // The announcement of another device was looked at after those.
    batch(&[format!(
        "link add z1 netns {} type veth peer name z2 netns {}",
        lab.host, lab.peer
    )]);
    lab.wait("the later device is armed", |lab| {
        lab.verb(&["status"])["devices"].to_string().contains("z1")
    });
    assert!(armed(&lab));
    let after = links();
    assert!(before.iter().all(|link| after.contains(link)), "{after:?}");
}
