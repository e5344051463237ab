//! A second peer behind the first, which routes; and a policy that names ports by protocol.

use std::net::IpAddr;
use std::process::Command;

use crate::common::{Lab, in_namespace};

/// What a link behind the router carries, bytes.
pub(crate) const NARROW: u16 = 1300;

/// A namespace behind the peer: 10.66.1.2 and fd67::2, over a link that carries less than the first.
pub(crate) struct Far {
    pub(crate) ns: String,
}

/// Runs `ip`.
pub(crate) fn ip(arguments: &str) -> String {
    let done = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip runs");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {errors}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Runs a command in a namespace and gives what it printed; it must succeed.
pub(crate) fn run_in(ns: &str, command: &str) -> String {
    let done = Command::new("timeout")
        .args(["60", "ip", "netns", "exec", ns])
        .args(command.split_whitespace())
        .output()
        .expect("ip runs");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {text}{errors}");
    text
}

/// Whether a program is there; says loudly when it is not.
pub(crate) fn has(test: &str, program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        crate::common::skip(test, &format!("needs {program}"));
    }
    there
}

impl Far {
    /// Beyond the peer of a lab, which begins to route.
    pub(crate) fn of(lab: &Lab) -> Self {
        let far = Self {
            ns: lab.peer.replacen("cfp", "cff", 1),
        };
        let (host, router, ns) = (&lab.host, &lab.peer, &far.ns);
        ip(&format!("netns add {ns}"));
        ip(&format!(
            "link add r1 netns {router} type veth peer name f0 netns {ns}"
        ));
        for (ns, device, last) in [(router, "r1", 1), (ns, "f0", 2)] {
            ip(&format!("-n {ns} addr add 10.66.1.{last}/24 dev {device}"));
            ip(&format!(
                "-n {ns} addr add fd67::{last}/64 dev {device} nodad"
            ));
            ip(&format!("-n {ns} link set {device} up"));
        }
        // One end only: neither stack knows.
        ip(&format!("-n {router} link set r1 mtu {NARROW}"));
        in_namespace(router, || {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("settings");
            }
        });
        ip(&format!("-n {ns} route add default via 10.66.1.1"));
        ip(&format!("-n {ns} -6 route add default via fd67::1"));
        ip(&format!("-n {host} route add 10.66.1.0/24 via 10.66.0.2"));
        ip(&format!("-n {host} -6 route add fd67::/64 via fd66::2"));
        far
    }

    /// Its addresses.
    pub(crate) fn addresses() -> [IpAddr; 2] {
        ["10.66.1.2", "fd67::2"].map(|address| address.parse().expect("an address"))
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // The lab's own go with the lab.
        let _ = Command::new("ip").args(["netns", "del", &self.ns]).output();
    }
}

/// The peers (and 10.66.0.9, which nobody has) may reach these ports; everything else into the host is closed, out of it is open.
pub(crate) fn permit(lab: &Lab, ports: &[(&str, u16)]) {
    let ports: Vec<_> = ports
        .iter()
        .map(|(protocol, port)| serde_json::json!({ "protocol": protocol, "port": port }))
        .collect();
    let policy = serde_json::json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Policy", "metadata": { "name": "db" },
        "spec": { "state": "enforced", "subject": { "role": "db" },
                  "ingress": [{ "action": "allow", "peers": [{ "selector": { "role": "web" } }], "ports": ports }],
                  "egress": [{ "action": "allow" }] },
    });
    let peer = serde_json::json!({
        "apiVersion": "cofferdam.dev/v1", "kind": "Workload",
        "metadata": { "name": "web-1", "labels": { "role": "web" } },
        "spec": { "addresses": ["10.66.0.2", "10.66.0.9", "fd66::2", "10.66.1.2", "fd67::2"] },
    });
    lab.configure(
        "managed_networks",
        serde_json::json!(["10.66.0.0/16", "fd66::/64", "fd67::/64"]),
    );
    let dir = lab.policy_dir();
    std::fs::write(dir.join("policy.json"), policy.to_string()).expect("policy");
    std::fs::write(dir.join("peer.json"), peer.to_string()).expect("peer");
}
