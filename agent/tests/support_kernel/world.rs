//! Random policy contents and settings: everything that a slot can say, including what no compiler would.

use std::net::IpAddr;

use datapath::abi::{
    ActiveWord, AddrValue, ClassValue, Config, EndpointValue, FailsafeKey, FailsafeValue,
    FilterValue, RuleKey, RuleValue, addr_flags, config_flags, failsafe_flags, filter_action, mode,
    panic, rule_flags,
};
use datapath::sim::Content;

use super::rng::Rng;
use super::twin::default_config;

/// This host.
pub const LOCAL: [&str; 2] = ["10.0.0.1", "fd00::1"];
/// Everybody else: bound, bound by a prefix, isolated, unbound, on the link, many at once.
pub const PEERS: [&str; 14] = [
    "10.0.0.2",
    "10.0.0.3",
    "10.0.7.4",
    "192.0.2.9",
    "172.16.3.3",
    "224.0.0.251",
    "255.255.255.255",
    "fd00::2",
    "fd00::3",
    "fd00:7::4",
    "2001:db8::9",
    "fe80::2",
    "ff02::fb",
    "fd00::1:0:0:2",
];
/// Ports of services that rules, filters and failsafes speak about.
pub const PORTS: [u16; 10] = [22, 53, 67, 80, 443, 1000, 5432, 8080, 40000, 40001];
/// Protocols.
pub const PROTOCOLS: [u8; 7] = [6, 17, 1, 58, 132, 47, 50];
const IDENTITIES: [u32; 7] = [0, 2, 3, 300, 301, 302, 303];

fn mapped(addr: &str) -> ([u8; 16], u32) {
    match addr.parse().expect("an address") {
        IpAddr::V4(addr) => (addr.to_ipv6_mapped().octets(), 96),
        IpAddr::V6(addr) => (addr.octets(), 0),
    }
}

/// How a content leans.
#[derive(Clone, Copy, Debug)]
pub struct Leaning {
    /// Cells that allow, in 100.
    pub allow: usize,
    /// Cells that the mode enforces, in 100.
    pub enforced: usize,
    /// Mode of the endpoint.
    pub mode: u32,
    /// Whether the content forgets things that it should have.
    pub holes: bool,
    /// Nanoseconds since boot.
    pub now: u64,
}

/// A random leaning; enforcing ones are the most frequent.
pub fn leaning(rng: &mut Rng, now: u64) -> Leaning {
    Leaning {
        allow: rng.pick(&[30, 60, 80, 95]),
        enforced: rng.pick(&[100, 100, 100, 90, 50, 0]),
        mode: rng.pick(&[
            mode::ENFORCE,
            mode::ENFORCE,
            mode::ENFORCE,
            mode::ENFORCE,
            mode::SELECTIVE,
            mode::SELECTIVE,
            mode::OBSERVE,
            mode::ISOLATE,
        ]),
        holes: rng.chance(30),
        now,
    }
}

/// A random content.
pub fn content(rng: &mut Rng, how: Leaning) -> Content {
    let mut content = Content::default();
    for addr in LOCAL {
        let (net, _) = mapped(addr);
        let flags = addr_flags::LOCAL;
        content.addresses.push((
            net,
            128,
            AddrValue {
                identity: 302,
                flags,
            },
        ));
    }
    for addr in PEERS {
        let (net, least) = mapped(addr);
        for _ in 0..rng.below(3) {
            let bits = if rng.chance(60) {
                128
            } else {
                least + rng.below((129 - least) as usize) as u32
            };
            let flags = if rng.chance(8) {
                addr_flags::ISOLATED
            } else {
                0
            };
            let identity = rng.pick(&IDENTITIES);
            content
                .addresses
                .push((net, bits, AddrValue { identity, flags }));
        }
    }
    for addr in ["0.0.0.0", "::"] {
        if rng.chance(70) {
            let (net, bits) = mapped(addr);
            content.addresses.push((
                net,
                bits,
                AddrValue {
                    identity: 2,
                    flags: 0,
                },
            ));
        }
    }
    if !(how.holes && rng.chance(25)) {
        content.endpoints.insert(
            1,
            EndpointValue {
                mode: how.mode,
                reserved: 0,
            },
        );
    }
    for identity in IDENTITIES {
        for direction in [0, 1] {
            if how.holes && rng.chance(20) {
                continue;
            }
            let value = ClassValue {
                class: 1 + rng.below(4) as u32,
                filter: if rng.chance(25) {
                    1 + rng.below(2) as u32
                } else {
                    0
                },
            };
            content.classes.insert((1, identity, direction), value);
        }
    }
    for class in 1..=4 {
        if !(how.holes && rng.chance(25)) {
            let prefix_len = RuleKey::ANY_PROTOCOL;
            let key = RuleKey {
                prefix_len,
                class,
                ..RuleKey::default()
            };
            content.rules.push((key, cell(rng, how)));
        }
        for _ in 0..rng.below(14) {
            content.rules.push((rule_key(rng, class), cell(rng, how)));
        }
    }
    for class in 1..=2 {
        for _ in 0..rng.below(5) {
            let action = rng.pick(&[
                filter_action::DENY | filter_action::ENFORCED,
                filter_action::DENY | filter_action::ENFORCED,
                filter_action::DENY,
                filter_action::ALLOW,
                filter_action::CONTINUE,
            ]);
            let rule = 7000 + rng.below(50) as u32;
            content
                .filters
                .push((rule_key(rng, class), FilterValue { rule, action }));
        }
    }
    content
}

/// What policy calls a port, for every protocol.
fn port(rng: &mut Rng, protocol: u8) -> u16 {
    match protocol {
        1 => rng.pick(&[8 << 8, 0, 13 << 8]),
        58 => rng.pick(&[128 << 8, 129 << 8, 150 << 8]),
        _ => rng.pick(&PORTS),
    }
}

fn rule_key(rng: &mut Rng, class: u32) -> RuleKey {
    let protocol = rng.pick(&PROTOCOLS);
    let prefix_len = if rng.chance(60) {
        RuleKey::FULL
    } else {
        RuleKey::ANY_PORT + rng.below(17) as u32
    };
    RuleKey {
        prefix_len,
        class,
        protocol,
        port: port(rng, protocol).to_be_bytes(),
        pad: 0,
    }
}

fn cell(rng: &mut Rng, how: Leaning) -> RuleValue {
    let verdict = |rng: &mut Rng| u8::from(rng.chance(how.allow));
    let mut flags = 0;
    if rng.chance(how.enforced) {
        flags |= rule_flags::ENFORCED;
    }
    for (flag, percent) in [
        (rule_flags::KEEP, 25),
        (rule_flags::AUDIT, 20),
        (rule_flags::HARD, 20),
    ] {
        if rng.chance(percent) {
            flags |= flag;
        }
    }
    let expiry = match rng.below(10) {
        0 => 1,
        1 => how.now + 3_600_000_000_000,
        2 => 999_999_999,
        _ => 0,
    };
    let reason = |rng: &mut Rng| rng.pick(&[0, 1, 1, 2, 2, 2, 6, 7, 200]);
    RuleValue {
        expiry,
        rule: 1 + rng.below(900) as u32,
        draft_rule: 1000 + rng.below(900) as u32,
        after_rule: 2000 + rng.below(900) as u32,
        enforced: verdict(rng),
        draft: verdict(rng),
        after: verdict(rng),
        flags,
        reason: reason(rng),
        draft_reason: reason(rng),
        after_reason: reason(rng),
        ..RuleValue::default()
    }
}

/// The same content after its expiries have come.
pub fn expired(content: &Content) -> Content {
    let mut content = content.clone();
    for (_, cell) in &mut content.rules {
        cell.expiry = cell.expiry.min(1);
    }
    content
}

/// Random failsafes: few, so that policy has something to say.
pub fn failsafes(rng: &mut Rng) -> Vec<(FailsafeKey, FailsafeValue)> {
    let mut out = Vec::new();
    for _ in 0..rng.below(7) {
        let (addr, least) = mapped(rng.pick(&PEERS));
        let length = if rng.chance(70) {
            128
        } else {
            least + rng.below((129 - least) as usize) as u32
        };
        let wild = rng.below(6);
        let protocol = if wild == 0 {
            0
        } else {
            rng.pick(&[6, 17, 1, 58])
        };
        let port = if wild <= 1 { 0 } else { port(rng, protocol) };
        let key = FailsafeKey {
            prefix_len: 32 + length,
            direction: rng.below(2) as u8,
            protocol,
            port: port.to_be_bytes(),
            addr,
        };
        let flags = rng.pick(&[
            failsafe_flags::ORDINARY,
            failsafe_flags::ORDINARY,
            failsafe_flags::CONTROLLER,
            failsafe_flags::FORENSIC,
            failsafe_flags::CONTROLLER | failsafe_flags::ORDINARY,
        ]);
        let rule = 0xffff_0100 + rng.below(20) as u32;
        out.push((key, FailsafeValue { flags, rule }));
    }
    out
}

/// Random settings.
pub fn config(rng: &mut Rng) -> Config {
    let mut config = default_config();
    config.panic = match rng.below(24) {
        0 => panic::OPEN,
        1 => panic::CLOSE,
        _ => panic::NONE,
    };
    if rng.chance(20) {
        config.flags |= config_flags::FULL_ALLOW;
    }
    if rng.chance(30) {
        config.flags |= config_flags::L2_DROP;
    }
    if rng.chance(50) {
        config.deny_interval = 25 * config.hz;
    }
    if rng.chance(5) {
        config.endpoint = rng.pick(&[2, 0x0001_0001]);
    }
    if rng.chance(10) {
        config.timeouts = [0; 16];
    }
    config
}

/// A random active word of a generation.
pub fn word(rng: &mut Rng, generation: u32, now: u64) -> ActiveWord {
    let slot = rng.below(2) as u32;
    let seconds = now / 1_000_000_000;
    let word = match rng.below(40) {
        0 => return ActiveWord(0),
        1..=4 => ActiveWord::pending(generation, slot, 1),
        5..=8 => ActiveWord::pending(generation, slot, seconds + 3_600),
        _ => ActiveWord::committed(generation, slot),
    };
    if rng.chance(12) {
        word.learning()
    } else {
        word
    }
}
