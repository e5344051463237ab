//! `replay`: captures of real traffic through the loaded programs, compared with tshark's own statistics.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

mod common;
mod replay_support;

use std::collections::BTreeMap;

use replay_support::{
    Replayed, Traffic, capture_of, damaged_frames, field, numbers, on_link, pcap_file, records_of,
    replay, tcp, tools, tshark, udp, write_policy,
};
use serde_json::Value;

/// Bytes of an Ethernet header: tshark counts it, records begin behind it. veth pads nothing.
const ETHERNET: u64 = 14;

/// Frames and bytes of the link layer, there and back.
type Counts = [u64; 4];

/// Records as conversations: ends → counts seen from the first end.
fn conversations(records: &[Value], protocol: u64) -> Vec<(String, Counts)> {
    let mut found: Vec<(String, Counts)> = records
        .iter()
        .filter(|record| record["protocol"] == protocol && record["denial"] == false)
        .map(|record| {
            let ends = [
                on_link(
                    field(record, "initiator"),
                    record["initiator_port"].as_u64(),
                ),
                on_link(
                    field(record, "responder"),
                    record["responder_port"].as_u64(),
                ),
            ];
            let [out, back] = [
                numbers(record, "packets_out"),
                numbers(record, "packets_in"),
            ];
            let counts = [
                out,
                numbers(record, "bytes_out") + ETHERNET * out,
                back,
                numbers(record, "bytes_in") + ETHERNET * back,
            ];
            ordered(ends, counts)
        })
        .collect();
    found.sort();
    found
}

/// Ends in the order of their text, with the counts of each.
fn ordered([a, b]: [String; 2], [out, out_bytes, back, back_bytes]: Counts) -> (String, Counts) {
    if a <= b {
        (format!("{a} {b}"), [out, out_bytes, back, back_bytes])
    } else {
        (format!("{b} {a}"), [back, back_bytes, out, out_bytes])
    }
}

/// tshark's frames and bytes by stream, which are exact; its tables round bytes.
fn streams(pcap: &std::path::Path, protocol: &str) -> Vec<(String, Counts)> {
    let stream = format!("{protocol}.stream");
    let (from, to) = (format!("{protocol}.srcport"), format!("{protocol}.dstport"));
    let mut found: BTreeMap<String, (String, Counts)> = BTreeMap::new();
    for row in tshark(
        pcap,
        protocol,
        &[
            &stream,
            "ip.src",
            "ipv6.src",
            &from,
            "ip.dst",
            "ipv6.dst",
            &to,
            "frame.len",
        ],
    ) {
        let [stream, a4, a6, from, b4, b6, to, length] = row.as_slice() else {
            panic!("tshark: {row:?}");
        };
        let end =
            |four: &str, six: &str, port: &str| on_link(&format!("{four}{six}"), port.parse().ok());
        let length = length.parse().expect("length");
        let (ends, counts) = ordered([end(a4, a6, from), end(b4, b6, to)], [1, length, 0, 0]);
        let (_, sum) = found.entry(stream.clone()).or_insert((ends, [0; 4]));
        sum.iter_mut()
            .zip(counts)
            .for_each(|(sum, count)| *sum += count);
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort();
    found
}

/// The rows of `tshark -q -z conv,KIND`: ends → frames there and back, and the bytes as they are shown.
fn table(pcap: &std::path::Path, kind: &str) -> Vec<(String, Counts)> {
    let text = replay_support::tshark_table(pcap, kind);
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((a, rest)) = line.split_once(" <-> ") else {
            continue;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let [b, back, back_bytes, back_unit, out, out_bytes, out_unit, ..] = words.as_slice()
        else {
            panic!("tshark: {line}");
        };
        let bytes = |number: &str, unit: &str| {
            let number: u64 = number.parse().expect("bytes");
            match unit {
                "bytes" => number,
                "kB" => number * 1000,
                "MB" => number * 1_000_000,
                other => panic!("tshark counts in {other}"),
            }
        };
        let count = |text: &str| text.parse().expect("frames");
        found.push(ordered(
            [end_of(a.trim()), end_of(b)],
            [
                count(out),
                bytes(out_bytes, out_unit),
                count(back),
                bytes(back_bytes, back_unit),
            ],
        ));
    }
    found.sort();
    found
}

/// `10.0.0.1:80` or `fd00::1:80` as the other side writes it.
fn end_of(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((address, port)) if address.parse::<std::net::IpAddr>().is_ok() => {
            on_link(address, port.parse().ok())
        }
        _ => text.to_owned(),
    }
}

/// Every row of tshark's table is one of ours: pairs and frames exactly, bytes as exactly as it shows them.
fn agree(ours: &[(String, Counts)], theirs: &[(String, Counts)], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: {ours:#?} {theirs:#?}");
    for ((ends, mine), (their_ends, shown)) in ours.iter().zip(theirs) {
        assert_eq!(ends, their_ends, "{what}");
        assert_eq!(
            [mine[0], mine[2]],
            [shown[0], shown[2]],
            "{what} {ends}: frames"
        );
        for (mine, shown) in [(mine[1], shown[1]), (mine[3], shown[3])] {
            let unit = if shown >= 1_000_000 {
                1_000_000
            } else if shown >= 10_000 {
                1000
            } else {
                1
            };
            assert!(
                mine.abs_diff(shown) < unit,
                "{what} {ends}: {mine} bytes, shown {shown}"
            );
        }
    }
}

#[test]
fn records_agree_with_tsharks_conversations() {
    const NAME: &str = "records_agree_with_tsharks_conversations";
    if !tools(
        NAME,
        &[
            "tshark", "tcpdump", "curl", "nginx", "nc", "ping", "ethtool",
        ],
    ) {
        return;
    }
    let Some(traffic) = Traffic::new(NAME) else {
        return;
    };
    write_policy(&traffic.lab.policy_dir(), &[]);
    let pcap = traffic.record(|traffic| {
        traffic.web(&[
            "http://10.66.0.1:8080/blob",
            "http://[fd66::1]:8080/blob",
            "http://10.66.0.1:8080/missing",
        ]);
        traffic.lossy_download();
        traffic.datagrams();
        traffic.echo();
    });
    let lost = tshark(&pcap, "tcp.analysis.retransmission", &["frame.number"]).len();
    assert!(lost > 0, "tshark sees what was repeated");

    let done = replay(
        &pcap,
        &traffic.lab.policy_dir(),
        &["10.66.0.1", "fd66::1"],
        &[],
    );
    assert_eq!(done.code, Some(0), "{}", done.error);
    let records = records_of(&done);
    for (protocol, number) in [("tcp", 6), ("udp", 17)] {
        let ours = conversations(&records, number);
        assert!(!ours.is_empty(), "{protocol}");
        assert_eq!(ours, streams(&pcap, protocol), "{protocol}: exact");
        agree(&ours, &table(&pcap, protocol), protocol);
    }
    for (kind, family) in [
        ("ip,ip", '.'),
        // Neighbour discovery and multicast listener discovery are no flows.
        ("ipv6,ipv6 and not (icmpv6.type >= 130)", ':'),
    ] {
        agree(&pairs(&records, family), &table(&pcap, kind), kind);
    }
    let frames = tshark(&pcap, "frame", &["frame.number"]).len() as u64;
    assert_eq!(done.totals["frames"], frames);
    assert_eq!(
        done.totals["passed"]
            .as_u64()
            .zip(done.totals["unjudged"].as_u64())
            .map(|(a, b)| a + b),
        Some(frames)
    );
    assert_eq!(done.totals["losses"], serde_json::json!({}));
    assert!(
        records.iter().any(|record| record["protocol"] == 1)
            && records.iter().any(|record| record["protocol"] == 58)
    );

    the_same_in_other_formats(&traffic, &pcap, &records);
    cut_and_damaged(&traffic, &pcap, frames);
}

/// Address pairs over all protocols of a family.
fn pairs(records: &[Value], family: char) -> Vec<(String, Counts)> {
    let mut sums: BTreeMap<String, Counts> = BTreeMap::new();
    for record in records {
        let [a, b] = [field(record, "initiator"), field(record, "responder")];
        if !a.contains(family) || record["denial"] == true {
            continue;
        }
        let [out, back] = [
            numbers(record, "packets_out"),
            numbers(record, "packets_in"),
        ];
        let counts = [
            out,
            numbers(record, "bytes_out") + ETHERNET * out,
            back,
            numbers(record, "bytes_in") + ETHERNET * back,
        ];
        let (ends, counts) = ordered([a.to_owned(), b.to_owned()], counts);
        sums.entry(ends)
            .or_default()
            .iter_mut()
            .zip(counts)
            .for_each(|(sum, count)| *sum += count);
    }
    sums.into_iter().collect()
}

/// pcapng, nanoseconds, and frames of which only the headers were captured: the same records.
fn the_same_in_other_formats(traffic: &Traffic, pcap: &std::path::Path, records: &[Value]) {
    let keep = |records: &[Value]| {
        let mut kept: Vec<String> = records
            .iter()
            .map(|record| {
                let mut record = record.clone();
                // Of a resolution of its own.
                for key in ["uid", "first_ns", "last_ns"] {
                    record[key] = Value::Null;
                }
                record.to_string()
            })
            .collect();
        kept.sort();
        kept
    };
    for options in [
        &["-F", "pcapng"][..],
        &["-F", "nsecpcap"],
        &["-F", "pcap", "-s", "96"],
    ] {
        let other = traffic.lab.dir.path().join("other");
        let done = std::process::Command::new("editcap")
            .args(options)
            .arg(pcap)
            .arg(&other)
            .output()
            .expect("editcap");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let done = replay(
            &other,
            &traffic.lab.policy_dir(),
            &["10.66.0.1/32", "fd66::1/128"],
            &[],
        );
        assert_eq!(done.code, Some(0), "{options:?}: {}", done.error);
        assert_eq!(keep(&records_of(&done)), keep(records), "{options:?}");
    }
}

/// A file without its end gives everything before it, and says where it ends; damage does no harm.
fn cut_and_damaged(traffic: &Traffic, pcap: &std::path::Path, frames: u64) {
    let bytes = std::fs::read(pcap).expect("capture");
    let other = traffic.lab.dir.path().join("damaged");
    let local = ["10.66.0.1", "fd66::1"];
    std::fs::write(&other, &bytes[..bytes.len() - 3]).expect("written");
    let done = replay(&other, &traffic.lab.policy_dir(), &local, &[]);
    assert_eq!(done.code, Some(1));
    assert_eq!(done.totals["frames"], frames - 1);
    assert!(
        done.error.contains("cut off") && done.error.contains("byte"),
        "{}",
        done.error
    );
    let flipped = bytes.len() / 7;
    for at in [0, 20, 24, 33, 36, 40, flipped, flipped * 3, flipped * 5] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&other, &bytes).expect("written");
        let done = replay(&other, &traffic.lab.policy_dir(), &local, &[]);
        assert!(
            matches!(done.code, Some(0 | 1)),
            "byte {at}: {:?} {}",
            done.code,
            done.error
        );
        assert_eq!(
            done.code == Some(0),
            done.error.is_empty(),
            "byte {at}: {}",
            done.error
        );
    }
    // Every frame of a sound file damaged: the kernel has to look at all of it.
    let (damaged, count) = damaged_frames(&bytes);
    std::fs::write(&other, damaged).expect("written");
    let done = replay(&other, &traffic.lab.policy_dir(), &local, &[]);
    assert_eq!(done.code, Some(0), "{}", done.error);
    assert_eq!(done.totals["frames"], count);
    assert!(
        done.totals["dropped"].as_u64() > Some(50),
        "{}",
        done.totals
    );
}

fn synthetic(test: &str) -> Option<(tempfile::TempDir, std::path::PathBuf)> {
    if !nix::unistd::geteuid().is_root() {
        common::skip(test, "needs root");
        return None;
    }
    let dir = tempfile::tempdir().expect("directory");
    let policy = dir.path().join("policy");
    std::fs::create_dir(&policy).expect("directory");
    Some((dir, policy))
}

const SECOND: u64 = 1_000_000_000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const WEB: [u8; 4] = [10, 66, 0, 2];
const DB: [u8; 4] = [10, 66, 0, 1];

fn lines(done: &Replayed) -> Vec<(String, String, String, String)> {
    done.frames
        .iter()
        .map(|line| {
            let word = |key: &str| field(line, key).to_owned();
            (
                word("host"),
                word("direction"),
                word("verdict"),
                word("reason"),
            )
        })
        .collect()
}

fn expected(rows: &[[&str; 4]]) -> Vec<(String, String, String, String)> {
    rows.iter()
        .map(|[a, b, c, d]| ((*a).into(), (*b).into(), (*c).into(), (*d).into()))
        .collect()
}

#[test]
fn every_line_says_verdict_reason_and_rule_at_each_local_end() {
    let Some((dir, policy)) =
        synthetic("every_line_says_verdict_reason_and_rule_at_each_local_end")
    else {
        return;
    };
    write_policy(&policy, &[443]);
    let frames = capture_of(&[
        (0, tcp(WEB, DB, 4000, 443, SYN)),
        (1, tcp(DB, WEB, 443, 4000, SYN | ACK)),
        (2, tcp(WEB, DB, 4001, 22, SYN)),
        (3, tcp(DB, WEB, 22, 4001, ACK)),
        (4, tcp([10, 9, 9, 9], [10, 9, 9, 8], 1, 2, SYN)),
        (5, vec![0; 13]),
        (6, tcp(WEB, DB, 4002, 443, SYN)[..30].to_vec()),
    ]);
    let file = dir.path().join("c.pcap");
    std::fs::write(&file, frames).expect("written");
    let done = replay(&file, &policy, &["10.66.0.1"], &[]);
    assert_eq!(done.code, Some(0), "{}", done.error);
    let neither = ["", "none", "none", ""];
    assert_eq!(
        lines(&done)[..6],
        expected(&[
            ["db-1", "ingress", "pass", "none"],
            ["db-1", "egress", "pass", "none"],
            ["db-1", "ingress", "drop", "default-deny"],
            ["db-1", "egress", "drop", "mid-stream"],
            neither,
            neither,
        ])
    );
    let rules: Vec<&str> = done.frames.iter().map(|line| field(line, "rule")).collect();
    assert_eq!(
        rules[..2],
        ["standard/db/ingress[0]"; 2],
        "an answer has its flow's rule"
    );
    assert!(rules[2].starts_with("standard/db/ingress"), "{rules:?}");
    assert!(field(&done.frames[4], "note").contains("neither end is local"));
    assert!(field(&done.frames[5], "note").contains("shorter than an Ethernet header"));
    assert_eq!(done.frames[0]["destination_port"], 443);
    assert_eq!(done.frames[0]["frame"], 1);

    // Both ends local: two hosts, two lines a frame, the sender's first.
    let done = replay(&file, &policy, &["10.66.0.0/24"], &[]);
    assert_eq!(
        lines(&done)[..3],
        expected(&[
            ["web-1", "egress", "drop", "default-deny"],
            ["db-1", "ingress", "pass", "none"],
            ["db-1", "egress", "pass", "none"],
        ])
    );
    assert_eq!(done.frames[0]["frame"], done.frames[1]["frame"]);

    // Observed: nothing is dropped, and the line says what would be.
    let done = replay(&file, &policy, &["10.66.0.1"], &["--mode", "observe"]);
    assert_eq!(
        lines(&done)[2],
        (
            "db-1".into(),
            "ingress".into(),
            "pass".into(),
            "mode-observe".into()
        )
    );
}

#[test]
fn flows_end_and_ports_are_used_again_on_the_captures_clock() {
    let Some((dir, policy)) = synthetic("flows_end_and_ports_are_used_again_on_the_captures_clock")
    else {
        return;
    };
    write_policy(&policy, &[]);
    let question = || udp(WEB, DB, 5000, 53, 20);
    let file = dir.path().join("c.pcap");
    // An hour apart, years in the past: two flows. A second apart: one.
    std::fs::write(
        &file,
        pcap_file(&[
            (SECOND, question()),
            (2 * SECOND, question()),
            (3600 * SECOND, question()),
            (3601 * SECOND, udp(WEB, DB, 5001, 53, 4000)),
        ]),
    )
    .expect("written");
    let done = replay(&file, &policy, &["10.66.0.1"], &[]);
    assert_eq!(done.code, Some(0), "{}", done.error);
    let records = records_of(&done);
    let mut found: Vec<(u64, u64, u64, u64, bool)> = records
        .iter()
        .map(|record| {
            (
                numbers(record, "first_ns"),
                numbers(record, "last_ns"),
                numbers(record, "packets_out"),
                numbers(record, "bytes_out"),
                record["closed"] == true,
            )
        })
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (SECOND, 2 * SECOND, 2, 96, true),
            (3600 * SECOND, 3600 * SECOND, 1, 48, false),
            // Longer than the kernel takes in one piece, and counted whole.
            (3601 * SECOND, 3601 * SECOND, 1, 4028, false),
        ]
    );
    assert_eq!(done.totals["shortened"], 1);
}
