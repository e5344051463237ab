//! What this host would do with a new flow, judged by the code that the kernel runs.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use datapath::ids::{Direction, EndpointId, Identity};
use datapath::verdict::Query;
use policy::snapshot::Snapshot;
use serde::Serialize;

use crate::daemon::Host;

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// Neither an address nor a known name.
    #[error("\"{0}\" is neither an address nor a workload that the active policy knows")]
    UnknownEnd(String),
    /// Not a protocol.
    #[error("unknown protocol \"{0}\"")]
    UnknownProtocol(String),
    /// Neither end is this host.
    #[error(
        "neither {from} nor {to} is an address of this host; ask the controller, or the host that owns one of them"
    )]
    NotHere {
        /// From.
        from: IpAddr,
        /// To.
        to: IpAddr,
    },
    /// Own addresses cannot be listed.
    #[error(transparent)]
    Host(#[from] Box<crate::daemon::HostError>),
}

/// One end, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// The packet passes.
    pub allow: bool,
    /// The enforced policies allow it.
    pub enforced: &'static str,
    /// The draft's verdict.
    pub draft: &'static str,
    /// Why not.
    pub reason: &'static str,
    /// Rule that decided.
    pub rule: String,
    /// Rule that decided the draft.
    pub draft_rule: String,
    /// The peer's identity.
    pub peer: String,
    /// Seconds since boot at which the verdict is asked for again; 0 = never.
    pub expiry: u32,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// From.
    pub from: IpAddr,
    /// To.
    pub to: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
    /// Revision that was asked.
    pub revision: u64,
    /// The panic switch: `off`, `open` or `close`. Policy decides only when it is off.
    pub panic: &'static str,
    /// The ends that are this host's.
    pub ends: Vec<End>,
    /// For a person.
    pub text: String,
}

/// Judges both ends as far as they are this host's.
///
/// # Errors
/// When an end or the protocol is not understood, or neither end is here.
pub fn explain(
    host: &Host,
    from: &str,
    to: &str,
    protocol: Option<&str>,
    port: u16,
) -> Result<Explanation, ExplainError> {
    let own = host.own_addresses().map_err(Box::new)?;
    let snapshot = host
        .engine()
        .active()
        .and_then(|active| active.snapshot.clone())
        .unwrap_or_default();
    let name = host.config.workload.name();
    let from_ip = resolve(from, &name, &own, &snapshot, None)?;
    let to_ip = resolve(to, &name, &own, &snapshot, Some(from_ip))?;
    let from_ip = resolve(from, &name, &own, &snapshot, Some(to_ip))?;
    let protocol = match protocol {
        None => datapath::ids::protocol::TCP,
        Some(text) => policy::api::protocol_number(text)
            .ok_or_else(|| ExplainError::UnknownProtocol(text.to_owned()))?,
    };
    let lookup = host.lookup();
    let names = host.names();
    let generation = host.kernel.word().generation();
    let mut ends = Vec::new();
    for (direction, here, peer) in [
        (Direction::Egress, from_ip, to_ip),
        (Direction::Ingress, to_ip, from_ip),
    ] {
        if !own.contains(&here) {
            continue;
        }
        let binding = lookup.binding(peer);
        let peer_addr = match peer {
            IpAddr::V4(peer) => peer.to_ipv6_mapped().octets(),
            IpAddr::V6(peer) => peer.octets(),
        };
        let decision = lookup.decide(&Query {
            endpoint: EndpointId::HOST.0,
            direction,
            peer: binding,
            peer_addr,
            protocol,
            src_port: 40_000,
            port,
        });
        let word = |allow| if allow { "allow" } else { "deny" };
        ends.push(End {
            direction: direction.name(),
            allow: decision.allow,
            enforced: word(decision.evaluated),
            draft: word(decision.draft),
            reason: decision.evaluated_reason.name(),
            rule: names.rule(generation, decision.rule),
            draft_rule: names.rule(generation, decision.draft_rule),
            peer: identity(&snapshot, binding.identity),
            expiry: decision.expiry,
        });
    }
    if ends.is_empty() {
        return Err(ExplainError::NotHere {
            from: from_ip,
            to: to_ip,
        });
    }
    let mut explanation = Explanation {
        from: from_ip,
        to: to_ip,
        protocol,
        port,
        revision: snapshot.revision,
        panic: host
            .kernel
            .panic()
            .map_err(|error| Box::new(error.into()))?
            .name(),
        ends,
        text: String::new(),
    };
    explanation.text = text(&explanation);
    Ok(explanation)
}

fn resolve(
    text: &str,
    own_name: &str,
    own: &BTreeSet<IpAddr>,
    snapshot: &Arc<Snapshot>,
    like: Option<IpAddr>,
) -> Result<IpAddr, ExplainError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let fits = |address: &IpAddr| like.is_none_or(|like| like.is_ipv4() == address.is_ipv4());
    let pick = |addresses: Vec<IpAddr>| {
        addresses
            .iter()
            .find(|address| fits(address))
            .or(addresses.first())
            .copied()
    };
    let found = if text == own_name || text == "self" {
        pick(own.iter().copied().collect())
    } else {
        let identities: BTreeSet<u32> = snapshot
            .identities
            .iter()
            .filter(|identity| identity.workloads.iter().any(|workload| workload == text))
            .map(|identity| identity.id)
            .collect();
        let bound = snapshot
            .addresses
            .iter()
            .filter(|binding| {
                identities.contains(&binding.identity)
                    && binding.net.prefix_len() == binding.net.max_prefix_len()
            })
            .map(|binding| binding.net.addr())
            .collect();
        pick(bound)
    };
    found.ok_or_else(|| ExplainError::UnknownEnd(text.to_owned()))
}

fn identity(snapshot: &Snapshot, number: u32) -> String {
    if let Some(name) = Identity(number).reserved_name() {
        return name.to_owned();
    }
    snapshot
        .identities
        .iter()
        .find(|identity| identity.id == number)
        .map_or_else(
            || format!("#{number}"),
            |identity| {
                let labels: Vec<String> = identity
                    .labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                format!("#{number} {}", labels.join(","))
            },
        )
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        from,
        to,
        protocol,
        port,
        revision,
        panic,
        ends,
        text: _,
    } = explanation;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{from} -> {to} {} port {port}, by revision {revision}",
        policy::ports::protocol_name(*protocol)
    );
    match *panic {
        "open" => out.push_str("  PANIC open: everything passes, whatever is said below\n"),
        "close" => {
            out.push_str("  PANIC close: only failsafes pass, whatever is said below\n");
        }
        _ => {}
    }
    for end in ends {
        let verdict = if end.allow { "PASS" } else { "DROP" };
        let _ = writeln!(
            out,
            "  {:<8}{verdict}  enforced {} by {}; draft {} by {}; peer {}{}",
            end.direction,
            end.enforced,
            or_dash(&end.rule),
            end.draft,
            or_dash(&end.draft_rule),
            end.peer,
            if end.reason == "none" {
                String::new()
            } else {
                format!("; {}", end.reason)
            }
        );
    }
    out
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}
