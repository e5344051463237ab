//! Answers of the server, with a value in every field.

use prost_types::Timestamp;
use proto::v1;

/// 2026-11-23T10:00:00Z and so many milliseconds.
pub(crate) fn at(milliseconds: i64) -> Option<Timestamp> {
    let seconds = 1_795_428_000 + milliseconds.div_euclid(1000);
    let nanos = i32::try_from(milliseconds.rem_euclid(1000)).unwrap() * 1_000_000;
    Some(Timestamp { seconds, nanos })
}

fn address(text: &str) -> v1::Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

pub(crate) fn flow(uid: &str, allowed: bool) -> v1::FlowRecord {
    v1::FlowRecord {
        uid: uid.into(),
        host: "db-host".into(),
        first_seen: at(0),
        last_seen: at(1500),
        direction: v1::Direction::Ingress.into(),
        protocol: 6,
        initiator: Some(address("10.0.0.5")),
        responder: Some(address("10.0.1.9")),
        initiator_port: 40_000,
        responder_port: 5432,
        packets_out: 12,
        bytes_out: 1536,
        packets_in: 20,
        bytes_in: 5 << 20,
        tcp_flags: 0x1b,
        state: "established".into(),
        allowed,
        evaluated_allow: allowed,
        draft_allow: false,
        reason: if allowed { "none" } else { "default-deny" }.into(),
        rule: "standard/shop-db/ingress[0]".into(),
        draft_rule: "standard/shop-db-next/ingress[0]".into(),
        peer_identity: 300,
        generation: 7,
        revision: 12,
        denial: !allowed,
        opening: !allowed,
        initiator_workload: "web-1".into(),
        responder_workload: "db-1".into(),
        endpoint: 1,
        ..v1::FlowRecord::default()
    }
}

/// A record with names that try to move the cursor and to look like another row.
pub(crate) fn hostile() -> v1::FlowRecord {
    v1::FlowRecord {
        uid: "evil".into(),
        initiator_workload: "web\u{1b}[2J".into(),
        rule: "one\ntwo".into(),
        ..v1::FlowRecord::default()
    }
}

/// What a follower that is too slow is told.
pub(crate) fn missed() -> v1::FlowRecord {
    v1::FlowRecord {
        state: "lost:17".into(),
        ..v1::FlowRecord::default()
    }
}

/// A ping from outside, dropped.
pub(crate) fn ping() -> v1::FlowRecord {
    v1::FlowRecord {
        uid: "icmp".into(),
        host: "db-host".into(),
        protocol: 1,
        initiator: Some(address("203.0.113.9")),
        responder: Some(address("10.0.1.9")),
        responder_port: 8 << 8,
        packets_out: 3,
        bytes_out: 252,
        denial: true,
        reason: "filter".into(),
        rule: "filter/no-pings/entries[0]".into(),
        last_seen: at(2000),
        ..v1::FlowRecord::default()
    }
}

pub(crate) fn edge() -> v1::Edge {
    v1::Edge {
        from: "web-1".into(),
        to: "db-1".into(),
        protocol: 6,
        port: 5432,
        first_seen: at(-86_400_000),
        last_seen: at(0),
        flows: 42,
        packets: 1234,
        bytes: 7_654_321,
        allowed: 40,
        denied: 2,
    }
}

pub(crate) fn finding() -> v1::Finding {
    v1::Finding {
        id: "f-1".into(),
        detector: "fan-out".into(),
        found_at: at(800),
        first_evidence: at(0),
        subject: "web-1".into(),
        subject_address: "10.0.0.5".into(),
        reason: "web-1 tried port 445 on 40 hosts in 10 s".into(),
        confidence: 0.875,
        technique: "T1021.002".into(),
        evidence: vec![flow("u-1", false)],
        rules: vec!["standard/shop-db/ingress".into()],
    }
}

pub(crate) fn status(verified: u64) -> v1::GetStatusResponse {
    let agent = |workload: &str| v1::AgentInfo {
        workload: workload.into(),
        hostname: format!("{workload}.example"),
        version: "0.1.0".into(),
        kernel: "6.1.0".into(),
        connected: true,
        desired_revision: 12,
        applied_revision: 12,
        verified_revision: 12,
        digest_matches: true,
        last_seen: at(0),
        mode: v1::Mode::Enforce.into(),
        ..v1::AgentInfo::default()
    };
    v1::GetStatusResponse {
        revision: 12,
        version: "0.1.0".into(),
        agents: vec![
            v1::AgentInfo {
                verified_revision: verified,
                pending: true,
                ..agent("web-1")
            },
            v1::AgentInfo {
                connected: false,
                desired_revision: 9,
                applied_revision: 9,
                verified_revision: 9,
                last_error: "map full: rules 70000 of 65536".into(),
                losses: [("ring-full".to_owned(), 3), ("spool-full".to_owned(), 4)].into(),
                ..agent("db-1")
            },
        ],
    }
}

pub(crate) fn workloads() -> Vec<v1::WorkloadInfo> {
    vec![
        v1::WorkloadInfo {
            name: "db-1".into(),
            labels: [("app", "shop"), ("tier", "db")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            provenance: "enrolment-token".into(),
            addresses: vec![address("10.0.1.9"), address("fd00::9")],
            mode: v1::Mode::Enforce.into(),
            connected: true,
            isolation_seconds_left: 0,
            enrolled: true,
            enrolled_labels: [("app", "shop"), ("tier", "db")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            isolated: false,
        },
        v1::WorkloadInfo {
            name: "web-1".into(),
            mode: v1::Mode::Isolate.into(),
            isolation_seconds_left: 90,
            ..v1::WorkloadInfo::default()
        },
    ]
}

pub(crate) fn managed_networks() -> Vec<v1::Prefix> {
    vec!["10.0.0.0/16".parse::<ipnet::IpNet>().unwrap().into()]
}

/// Objects by kind, name and text.
pub(crate) fn stored(objects: &[[String; 3]]) -> Vec<v1::StoredObject> {
    objects
        .iter()
        .map(|[kind, name, text]| v1::StoredObject {
            kind: kind.clone(),
            name: name.clone(),
            revision: 12,
            text: text.clone(),
            actor: "ann".into(),
        })
        .collect()
}

pub(crate) fn objects() -> Vec<v1::StoredObject> {
    ["shop-db", "shop-web"]
        .iter()
        .map(|name| v1::StoredObject {
            kind: "Policy".into(),
            name: (*name).into(),
            revision: 12,
            text: format!(
                "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata:\n  name: {name}\n"
            ),
            actor: "ann".into(),
        })
        .collect()
}

pub(crate) fn history() -> Vec<v1::HistoryEntry> {
    let entry = |revision, state: &str| v1::HistoryEntry {
        revision,
        at: at(0),
        actor: "ann".into(),
        action: "apply".into(),
        summary: "1 changed".into(),
        state: state.into(),
    };
    vec![
        entry(12, "pending"),
        entry(11, "rolled-back"),
        entry(10, "final"),
    ]
}

pub(crate) fn applied(dry_run: bool) -> v1::ApplyResponse {
    let change = |name: &str, change: &str, fields: &[&str]| v1::ObjectChange {
        kind: "Policy".into(),
        name: name.into(),
        change: change.into(),
        fields: fields.iter().map(|field| (*field).to_owned()).collect(),
    };
    v1::ApplyResponse {
        revision: 12,
        changes: vec![
            change("shop-db", "changed", &["spec.priority", "spec.ingress[0]"]),
            change("shop-web", "added", &[]),
            change("old", "removed", &[]),
            change("base", "unchanged", &[]),
        ],
        problems: Vec::new(),
        affected_agents: vec!["db-1".into(), "web-1".into()],
        denies_more: true,
        confirm_deadline: if dry_run { None } else { at(60_000) },
        warnings: Vec::new(),
    }
}

pub(crate) fn explained() -> v1::ExplainResponse {
    v1::ExplainResponse {
        text: "web-1 → db-1 5432/tcp: allow\n  egress: standard/shop-web/egress[0]\n".into(),
        json: r#"{"egress":{"rule":"standard/shop-web/egress[0]"},"ingress":null}"#.into(),
        enforced_allow: true,
        draft_allow: false,
        rule: "standard/shop-web/egress[0]".into(),
    }
}

pub(crate) fn isolated(complete: bool) -> v1::IsolateResponse {
    v1::IsolateResponse {
        revision: 13,
        agents_affected: 3,
        agents_verified: if complete { 3 } else { 2 },
        stored_ms: 2.25,
        sent_ms: 3.5,
        verified_ms: if complete { 41.75 } else { 0.0 },
        not_verified: if complete {
            vec![]
        } else {
            vec!["db-2".into()]
        },
    }
}
