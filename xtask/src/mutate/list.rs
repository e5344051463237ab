//! The mutations: each breaks one thing that a packet, a record or a verdict depends on.

/// A small change of the kernel's sources that some test must notice.
pub(super) struct Mutation {
    /// Path from the root of the workspace.
    pub(super) file: &'static str,
    /// Exact text, once in the file.
    pub(super) text: &'static str,
    /// What takes its place.
    pub(super) replacement: &'static str,
    /// What it breaks.
    pub(super) breaks: &'static str,
}

macro_rules! mutations {
    ($($file:literal { $($breaks:literal: $text:literal => $replacement:literal;)+ })+) => {
        &[$($(Mutation {
            file: $file,
            text: $text,
            replacement: $replacement,
            breaks: $breaks,
        },)+)+]
    };
}

/// All of them.
pub(super) const MUTATIONS: &[Mutation] = mutations! {
    "datapath/src/verdict.rs" {
        "isolation": "if endpoint.mode == mode::ISOLATE {" => "if endpoint.mode == u32::MAX {";
        "isolation shrinks the failsafes": "flags & (failsafe_flags::CONTROLLER | failsafe_flags::FORENSIC) != 0" => "flags != 0";
        "isolation of the peer": "query.peer.flags & addr_flags::ISOLATED != 0" => "query.peer.flags == u32::MAX";
        "an isolated peer keeps forensics only": "return if flags & failsafe_flags::FORENSIC != 0 {" => "return if flags != 0 {";
        "failsafes come before policy": "    if flags != 0 {\n        return Decision::by_failsafe(failsafe.rule);\n    }\n    by_policy" => "    by_policy";
        "filters deny": "filter.action & 0xff == filter_action::DENY" => "filter.action & 0xff == filter_action::ALLOW";
        "the mode softens filters": "let enforced = filter.action & filter_action::ENFORCED != 0;" => "let enforced = true;";
        "observe drops nothing": "decision.allow = decision.evaluated || !decision.enforced_here;" => "decision.allow = decision.evaluated;";
        "the draft enforces nothing": "decision.allow = decision.evaluated || !decision.enforced_here;" => "decision.allow = decision.draft || !decision.enforced_here;";
        "the reason says that a mode observes": "(false, true) => DropReason::ModeObserve," => "(false, true) => decision.evaluated_reason,";
        "the draft's verdict": "draft: cell.draft == verdict::ALLOW," => "draft: cell.enforced == verdict::ALLOW,";
        "the draft's rule": "draft_rule: cell.draft_rule," => "draft_rule: cell.rule,";
        "existing: keep": "keep: cell.flags & rule_flags::KEEP != 0," => "keep: cell.flags & rule_flags::AUDIT != 0,";
        "selective modes": "enforced_here: cell.flags & rule_flags::ENFORCED != 0," => "enforced_here: true,";
        "a deadline": "if lookup.boot_ns() >= cell.expiry {" => "if lookup.boot_ns() < cell.expiry {";
        "the verdict after a deadline": "decision.evaluated = cell.after == verdict::ALLOW;" => "decision.evaluated = cell.enforced == verdict::ALLOW;";
        "the reason after a deadline": "reason_of(cell.after_reason)" => "reason_of(cell.reason)";
        "unknown matches no allow": "query.peer.identity == Identity::UNKNOWN.0" => "query.peer.identity == u32::MAX";
        "a hole in the policy denies": "if endpoint.mode == mode::OBSERVE {" => "if endpoint.mode != mode::OBSERVE {";
        "a failsafe for a whole protocol": "key.port = [0, 0];" => "key.port = [0, 1];";
    }
    "datapath/src/failsafe.rs" {
        "DHCP is UDP": "if protocol != protocol::UDP {" => "if protocol != protocol::TCP {";
        "DHCP's direction": "Direction::Ingress => matches!((src_port, dst_port), (67, 68) | (547, 546))," => "Direction::Ingress => matches!((src_port, dst_port), (68, 67) | (546, 547)),";
        "DHCPv6": "(68, 67) | (546, 547)" => "(68, 67)";
    }
    "datapath/src/packet/ipv4.rs" {
        "options move the ports": "offset: l3 + header.length," => "offset: l3 + HEADER,";
        "later fragments": "if header.fragment & (MORE | OFFSET) != 0 {" => "if header.fragment & MORE != 0 {";
    }
    "datapath/src/packet/ipv6.rs" {
        "length of an authentication header": "4 => (u32::from(length) + 2) * 4," => "4 => (u32::from(length) + 1) * 4,";
    }
    "datapath/src/packet/transport.rs" {
        "control of the other family": "other if other != l4.control => IcmpClass::Other," => "0 => IcmpClass::Other,";
        "redirects": "        5 => IcmpClass::Redirect," => "        5 => IcmpClass::Other,";
        "neighbour discovery from afar": "_ => hop_limit == 255," => "_ => hop_limit != 0,";
        "impossible flags": "        && !(control & tcp::FIN != 0 && control & tcp::RST != 0)" => "";
    }
    "datapath/src/packet/mod.rs" {
        "order of the ends": "        F::less(src, dst)" => "        F::less(dst, src)";
    }
    "datapath/src/fragment.rs" {
        "a fragment inside the header": "if packet.fragment.offset < value.headers {" => "if packet.fragment.offset == 0 {";
        "two first fragments": "if old.poisoned == 0 && says_the_same(&old, &value) {" => "if old.poisoned == 0 {";
        "what is denied teaches nobody": "        if !passed {\n" => "        if passed && w.packet.bytes == 0 {\n";
    }
    "datapath/src/conntrack.rs" {
        "what proves a flow": "&& numbers.1.wrapping_sub(isn).wrapping_sub(1) < ACKNOWLEDGED" => "";
        "a reset that was not believed": "State::RESET if control & tcp::ACK != 0 => State::ESTABLISHED," => "State::RESET if control == 0 => State::ESTABLISHED,";
        "which number is acknowledged": "out.isn = Some(numbers.0);" => "out.isn = Some(numbers.1);";
        "who proves a datagram flow": "State::NEW if !from_initiator => State::REPLIED," => "State::NEW => State::REPLIED,";
        "who has finished": "(_, true) => State::FIN_INITIATOR," => "(_, true) => State::FIN_RESPONDER,";
    }
    "datapath/src/pipeline/mod.rs" {
        "an error quotes what its receiver sent": "if inner.src == w.packet.dst {" => "if inner.protocol != 255 {";
        "a flow's own direction": "w.query.direction = flow_direction;" => "w.query.direction = w.direction;";
    }
    "datapath/src/pipeline/opening.rs" {
        "a middle of nothing": "    if !opening {" => "    if is_reset(&w.packet) {";
        "a spoofed source": "w.query.peer.flags & addr_flags::LOCAL != 0" => "w.query.peer.flags == u32::MAX";
    }
    "datapath/src/pipeline/fast.rs" {
        "the active content of a counted flow": "const MASK: u64 = 0xffff_ffff_0000_00ff;" => "const MASK: u64 = 0xff;";
        "a deadline of a counted flow": "|| line.expiry() != 0 {" => "|| line.expiry() == u32::MAX {";
        "headers of merged segments": "let more = u64::from(segments - 1) * u64::from(headers);" => "let more = u64::from(segments) * u64::from(headers);";
        "flags that a direction has not shown": "&& flags.tcp() | tcp_flags == flags.tcp()" => "";
    }
    "datapath/src/table/key.rs" {
        "the key of an entry": "differ |= unsafe { word::load(line.cast::<u64>().add(1 + index)) } ^ *word;" => "differ = unsafe { word::load(line.cast::<u64>().add(1 + index)) } ^ *word;";
    }
    "datapath/src/table/mod.rs" {
        "whose peer it is": "(verdict & bits::EGRESS != 0) == (verdict & bits::INITIATOR_HI != 0)" => "verdict & bits::INITIATOR_HI == 0";
    }
    "datapath/src/negative.rs" {
        "a denial holds for one content": "if word::load(&raw const (*entry).valid) != valid(active.generation(), config)" => "if word::load(&raw const (*entry).valid) == 0";
        "a denial is of one tuple": "            || !tuple.is_of(entry)\n" => "";
        "a denial that is counted": "let after = before + packets * pending::PACKET + bytes;" => "let after = before + bytes;";
        "denials while arming": "    if active.is_learning()\n" => "    if active.generation() == u32::MAX\n";
    }
    "agent-ebpf/src/content.rs" {
        "the active slot": "match class_at(self.slot, one, key.identity, scope) {" => "match class_at(self.slot ^ 1, one, key.identity, scope) {";
        "the second line of a cell": "None => cell_at(slot, two, key.class, port)," => "None => None,";
        "the second line of an address": "0 => bound4_at(slot, two, addr)," => "0 => 0,";
        "cells of a port that are said to be absent": "if present.wrapping_shr(cells::bit(protocol, key.port)) & 1 != 0" => "if present.wrapping_shr(cells::bit(protocol, key.port) + 1) & 1 != 0";
        "a range comes before the protocol": "if present & cells::RANGES != 0" => "if present & cells::RANGES == u64::MAX";
        "the cell of a protocol": "if present & cells::PROTOCOLS != 0 {" => "if present & cells::PROTOCOLS == u64::MAX {";
        "the cell of everything else": "if present & cells::DEFAULT != 0 {" => "if present & cells::DEFAULT == u64::MAX {";
        "failsafes said to be absent": "Direction::Egress => egress," => "Direction::Egress => u64::MAX,";
    }
    "agent-ebpf/src/env.rs" {
        "prefixes of unbound addresses": "key.prefix_len = $bits;" => "key.prefix_len = $bits - 8;";
    }
};
