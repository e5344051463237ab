//! Random rule sets: chains that jump to later ones, returns, sets, and conditions on everything that
//! policy has a word for.

use std::fmt::Write as _;

/// Rule sets of each kind.
pub(crate) const ROUNDS: u64 = 10;

/// A small generator, so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // Constants of Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }
}

const CHAINS: usize = 4;

const NFT_PEERS: [&str; 10] = [
    "ip DIR 10.99.0.0/23",
    "ip DIR != 10.99.1.5",
    "ip DIR { 10.99.2.0/24, 10.99.0.2 }",
    "ip DIR 10.99.1.0-10.99.2.50",
    "ip6 DIR fd99::5:0/112",
    "ip6 DIR != fd99::2",
    "meta nfproto ipv4",
    "meta nfproto ipv6",
    "",
    "",
];

const NFT_PORTS: [&str; 12] = [
    "tcp dport 22",
    "tcp dport { 80, 443, 8000-9000 }",
    "tcp dport != 80",
    "tcp dport > 1024",
    "udp dport { 53, 514 }",
    "meta l4proto udp",
    "meta l4proto { tcp, udp } th dport 53-443",
    "meta l4proto != tcp",
    "icmp type echo-request",
    "icmpv6 type { echo-request, echo-reply }",
    "",
    "ct state new",
];

/// A table that filters both directions.
pub(crate) fn nftables(seed: u64) -> String {
    let mut dice = Dice(seed);
    let mut text = String::from("table inet diced {\n");
    for chain in (0..CHAINS).rev() {
        writeln!(text, "chain c{chain} {{").unwrap();
        for _ in 0..=dice.roll(4) {
            writeln!(text, "{}", nft_rule(&mut dice, chain + 1, "saddr")).unwrap();
        }
        text.push_str("}\n");
    }
    for (hook, direction) in [("input", "saddr"), ("output", "daddr")] {
        let policy = dice.one(&["accept", "drop"]);
        writeln!(
            text,
            "chain {hook} {{ type filter hook {hook} priority 0; policy {policy};"
        )
        .unwrap();
        text.push_str("ct state established,related accept\n");
        text.push_str("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n");
        for _ in 0..4 + dice.roll(5) {
            writeln!(text, "{}", nft_rule(&mut dice, 0, direction)).unwrap();
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}

fn nft_rule(dice: &mut Dice, next: usize, direction: &str) -> String {
    let peer = dice.one(&NFT_PEERS).replace("DIR", direction);
    let port = dice.one(&NFT_PORTS);
    let verdict = match dice.roll(7) {
        0 | 1 => "accept".to_owned(),
        2 => "drop".to_owned(),
        3 => "return".to_owned(),
        4 => "counter".to_owned(),
        kind if next < CHAINS => {
            let target = next + dice.roll(CHAINS - next);
            format!("{} c{target}", if kind == 5 { "jump" } else { "goto" })
        }
        _ => "reject".to_owned(),
    };
    format!("{peer} {port} {verdict}")
}

const PEERS_V4: [&str; 6] = [
    "DIR 10.99.0.0/23",
    "! DIR 10.99.1.5/32",
    "DIR 10.99.2.0/24",
    "-m iprange --RANGE-range 10.99.1.0-10.99.2.50",
    "",
    "",
];

const PEERS_V6: [&str; 4] = ["DIR fd99::5:0/112", "! DIR fd99::2/128", "", ""];

const PORTS: [&str; 9] = [
    "-p tcp -m tcp --dport 22",
    "-p tcp -m multiport --dports 80,443,8000:9000",
    "-p tcp -m tcp ! --dport 1:1024",
    "-p udp -m multiport ! --dports 53,123",
    "! -p tcp",
    "-p udp",
    "ECHO",
    "",
    "-m conntrack --ctstate NEW",
];

/// One filter table a family.
pub(crate) fn iptables(seed: u64) -> (String, String) {
    let mut dice = Dice(seed.wrapping_mul(77));
    (table(&mut dice, false), table(&mut dice, true))
}

fn table(dice: &mut Dice, v6: bool) -> String {
    let mut text = String::from("*filter\n");
    for hook in ["INPUT", "OUTPUT"] {
        writeln!(text, ":{hook} {} [0:0]", dice.one(&["ACCEPT", "DROP"])).unwrap();
    }
    for chain in 0..CHAINS {
        writeln!(text, ":c{chain} - [0:0]").unwrap();
    }
    for hook in ["INPUT", "OUTPUT"] {
        writeln!(
            text,
            "-A {hook} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        )
        .unwrap();
        if v6 {
            writeln!(
                text,
                "-A {hook} -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT"
            )
            .unwrap();
            writeln!(
                text,
                "-A {hook} -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT"
            )
            .unwrap();
        }
        for _ in 0..4 + dice.roll(5) {
            writeln!(text, "-A {hook} {}", rule(dice, v6, 0, hook == "INPUT")).unwrap();
        }
    }
    for chain in 0..CHAINS {
        for _ in 0..=dice.roll(4) {
            writeln!(text, "-A c{chain} {}", rule(dice, v6, chain + 1, true)).unwrap();
        }
    }
    text.push_str("COMMIT\n");
    text
}

fn rule(dice: &mut Dice, v6: bool, next: usize, incoming: bool) -> String {
    let (direction, range) = if incoming {
        ("-s", "src")
    } else {
        ("-d", "dst")
    };
    let peer = if v6 {
        dice.one(&PEERS_V6)
    } else {
        dice.one(&PEERS_V4)
    };
    let peer = peer.replace("DIR", direction).replace("RANGE", range);
    let echo = if v6 {
        "-p ipv6-icmp -m icmp6 --icmpv6-type 128"
    } else {
        "-p icmp -m icmp --icmp-type 8"
    };
    let port = dice.one(&PORTS).replace("ECHO", echo);
    let verdict = match dice.roll(7) {
        0 | 1 => "-j ACCEPT".to_owned(),
        2 => "-j DROP".to_owned(),
        3 => "-j RETURN".to_owned(),
        4 => String::new(),
        kind if next < CHAINS => {
            let target = next + dice.roll(CHAINS - next);
            format!("{} c{target}", if kind == 5 { "-j" } else { "-g" })
        }
        _ => "-j REJECT".to_owned(),
    };
    format!("{peer} {port} {verdict}")
}
