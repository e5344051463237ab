//! Packets in fragments through the loaded object: every rule of `datapath::fragment`, in both families.

use datapath::abi::mode;
use datapath::packet::tcp::{ACK, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{End, end, fragments, icmp, piece, sctp, tcp, udp};

use crate::support::frames::with_ip_options;
use crate::support::scene::{
    LOCAL, LOCAL6, PEER, PEER6, Scene, failsafe, policy, set_mode, without,
};

/// Bytes of the header that every fragment carries: IPv4's, or IPv6's with a fragment header.
const FAMILIES: [(&str, &str, usize); 2] = [(PEER, LOCAL, 20), (PEER6, LOCAL6, 48)];

fn each_family(mut test: impl FnMut(&mut Scene, End, End, usize)) {
    for (peer, local, header) in FAMILIES {
        let Some(mut s) = Scene::open(without(policy(), 53)) else {
            return;
        };
        test(&mut s, end(peer, 9), end(local, 53), header);
    }
}

#[test]
fn a_datagram_in_order_is_one_flow_and_leaves_nothing_behind() {
    each_family(|s, from, to, header| {
        let pieces = fragments(&udp(from, to, 2_992), 7, 1_000);
        let bytes = 1_000 + header;
        let first = format!("flow:new out+1/{bytes} event:new fragment:known");
        s.pass_in(&pieces[0], &first);
        s.pass_in(&pieces[1], &format!("out+1/{bytes}"));
        s.pass_in(&pieces[2], &format!("out+1/{bytes} fragment:gone"));
        s.drop_in(&pieces[2], &format!("reason:fragment+1/{bytes}"));
        // The answer in pieces: its own direction, its own state.
        let answer = fragments(&udp(to, from, 1_992), 7, 1_000);
        let replied = format!("state:new>replied in+1/{bytes} fragment:known");
        s.pass_out(&answer[0], &replied);
        s.drop_in(&answer[1], &format!("reason:fragment+1/{bytes}"));
        s.pass_out(&answer[1], &format!("in+1/{bytes} fragment:gone"));
    });
}

#[test]
fn unknown_and_overtaking_fragments_are_dropped() {
    each_family(|s, from, to, header| {
        let pieces = fragments(&udp(from, to, 2_992), 7, 1_000);
        let bytes = 1_000 + header;
        let unknown = format!("reason:fragment+1/{bytes}");
        s.drop_in(&pieces[2], &unknown);
        s.drop_in(&pieces[1], &unknown);
        let first = format!("flow:new out+1/{bytes} event:new fragment:known");
        s.pass_in(&pieces[0], &first);
        s.pass_in(&pieces[2], &format!("out+1/{bytes}"));
        s.pass_in(&pieces[1], &format!("out+1/{bytes}"));
        // Another identification, another pair, another protocol: not this packet.
        let other = fragments(&udp(from, to, 2_992), 8, 1_000);
        s.drop_in(&other[1], &unknown);
        s.drop_out(&pieces[1], &unknown);
        if header == 20 {
            let mut other = pieces[1].clone();
            other[23] = 6;
            s.drop_in(&other, &unknown);
        }
    });
}

#[test]
fn what_is_denied_teaches_nobody() {
    each_family(|s, from, to, header| {
        let pieces = fragments(&udp(from, end(&to.addr.to_string(), 54), 1_992), 7, 1_000);
        let bytes = 1_000 + header;
        s.drop_in(
            &pieces[0],
            &format!("reason:default-deny+1/{bytes} denied+1/{bytes} deny:new event:deny"),
        );
        s.drop_in(&pieces[1], &format!("reason:fragment+1/{bytes}"));
    });
}

#[test]
fn a_new_policy_cuts_the_rest_of_a_packet() {
    each_family(|s, from, to, header| {
        let pieces = fragments(&udp(from, to, 2_992), 7, 1_000);
        let bytes = 1_000 + header;
        let first = format!("flow:new out+1/{bytes} event:new fragment:known");
        s.pass_in(&pieces[0], &first);
        s.pass_in(&pieces[1], &format!("out+1/{bytes}"));
        s.commit(2, 1);
        s.drop_in(
            &pieces[2],
            &format!(
                "state:new>cut gen:1>2 why:none>policy-changed event:close \
                 reason:policy-changed+1/{bytes} denied+1/{bytes} deny:new event:deny"
            ),
        );
        s.drop_in(
            &pieces[1],
            &format!("reason:policy-changed+1/{bytes} denied+1/{bytes}"),
        );
    });
}

#[test]
fn a_fragment_inside_the_header_poisons() {
    each_family(|s, from, to, header| {
        let to = end(&to.addr.to_string(), 443);
        let frame = tcp(from, to, SYN, 600);
        let first = format!(
            "flow:syn-sent out+1/{} event:new fragment:known",
            400 + header
        );
        s.pass_in(&piece(&frame, 3, 0, 400), &first);
        s.pass_in(
            &piece(&frame, 3, 24, 400),
            &format!("out+1/{}", 376 + header),
        );
        let inside = format!(
            "reason:fragment-invalid+1/{} fragment:poisoned",
            384 + header
        );
        s.drop_in(&piece(&frame, 3, 16, 400), &inside);
        let poisoned = format!("reason:fragment-invalid+1/{}", 376 + header);
        s.drop_in(&piece(&frame, 3, 24, 400), &poisoned);
        let poisoned = format!("reason:fragment-invalid+1/{}", 400 + header);
        s.drop_in(&piece(&frame, 3, 0, 400), &poisoned);
        // UDP's header is 8 bytes, so that its second fragment may begin there; SCTP's is 12.
        let small = udp(from, end(&to.addr.to_string(), 53), 32);
        let first = format!("flow:new out+1/{} event:new fragment:known", 8 + header);
        s.pass_in(&piece(&small, 4, 0, 8), &first);
        s.pass_in(
            &piece(&small, 4, 8, 40),
            &format!("out+1/{} fragment:gone", 32 + header),
        );
        let small = sctp(from, end(&to.addr.to_string(), 99), 32);
        let short = format!("reason:truncated+1/{} fragment:poisoned", 8 + header);
        s.drop_in(&piece(&small, 5, 0, 8), &short);
        let first = format!("flow:new out+1/{} event:new fragment:known", 16 + header);
        s.pass_in(&piece(&small, 6, 0, 16), &first);
        let inside = format!("reason:fragment-invalid+1/{} fragment:poisoned", 8 + header);
        s.drop_in(&piece(&small, 6, 8, 16), &inside);
    });
}

#[test]
fn a_first_fragment_without_its_header_poisons() {
    each_family(|s, from, to, header| {
        let frame = tcp(from, end(&to.addr.to_string(), 443), SYN, 600);
        for short in [8, 16] {
            let bytes = short + header;
            s.drop_in(
                &piece(&frame, short as u32, 0, short),
                &format!("reason:truncated+1/{bytes} fragment:poisoned"),
            );
            let all = format!("reason:fragment-invalid+1/{}", 400 + header);
            s.drop_in(&piece(&frame, short as u32, 0, 400), &all);
            let rest = format!("reason:fragment-invalid+1/{}", 220 + header);
            s.drop_in(&piece(&frame, short as u32, 400, 620), &rest);
        }
    });
}

#[test]
fn two_first_fragments_poison_unless_they_are_the_same() {
    each_family(|s, from, to, header| {
        let peer = from.addr.to_string();
        let [one, two] = [9, 10].map(|port| udp(end(&peer, port), to, 1_200));
        let bytes = 800 + header;
        let first = format!("flow:new out+1/{bytes} event:new fragment:known");
        s.pass_in(&piece(&one, 3, 0, 800), &first);
        s.pass_in(&piece(&one, 3, 0, 800), &format!("out+1/{bytes}"));
        let invalid = format!("reason:fragment-invalid+1/{bytes}");
        s.drop_in(
            &piece(&two, 3, 0, 800),
            &format!("{invalid} fragment:poisoned"),
        );
        s.drop_in(&piece(&one, 3, 0, 800), &invalid);
        let rest = format!("reason:fragment-invalid+1/{}", 408 + header);
        s.drop_in(&piece(&one, 3, 800, 1_208), &rest);
    });
}

#[test]
fn what_is_remembered_ends_and_poison_ends_later() {
    each_family(|s, from, to, header| {
        let frame = udp(from, to, 2_992);
        let bytes = 1_000 + header;
        let pieces = fragments(&frame, 7, 1_000);
        let ticks = s.twin.ticks(10);
        let first = format!("flow:new out+1/{bytes} event:new fragment:known");
        s.pass_in(&pieces[0], &first);
        s.twin.age(ticks);
        s.drop_in(&pieces[1], &format!("reason:fragment+1/{bytes}"));
        s.pass_in(&pieces[0], &format!("out+1/{bytes}"));
        s.pass_in(&pieces[1], &format!("out+1/{bytes}"));
        let mut other = pieces[0].clone();
        other[14 + header + 1] ^= 1;
        let invalid = format!("reason:fragment-invalid+1/{bytes}");
        s.drop_in(&other, &format!("{invalid} fragment:poisoned"));
        s.twin.age(3 * ticks);
        s.drop_in(&pieces[0], &invalid);
        s.twin.age(4 * ticks);
        // The flow was idle for longer than its timeout, so that this is another instance of it.
        s.pass_in(
            &pieces[0],
            &format!("out-2/-{} fragment:known event:new", 2 * bytes),
        );
    });
}

#[test]
fn lengths_that_no_fragment_has() {
    each_family(|s, from, to, header| {
        let frame = udp(from, to, 2_000);
        let bytes = |data: usize| data + header;
        s.drop_in(
            &piece(&frame, 1, 0, 804),
            &format!("reason:fragment-invalid+1/{} fragment:poisoned", bytes(804)),
        );
        let first = format!("flow:new out+1/{} event:new fragment:known", bytes(800));
        s.pass_in(&piece(&frame, 2, 0, 800), &first);
        let invalid = |data| format!("reason:fragment-invalid+1/{}", bytes(data));
        s.drop_in(&piece(&frame, 2, 800, 804), &invalid(4));
        s.drop_in(&piece(&frame, 2, 800, 800), &invalid(0));
        let mut beyond = piece(&frame, 2, 800, 2_008);
        let (at, word) = if header == 20 {
            (20, 0x1fff_u16)
        } else {
            (56, 0xfff8)
        };
        beyond[at..at + 2].copy_from_slice(&word.to_be_bytes());
        s.drop_in(&beyond, &invalid(1_208));
        let rest = format!("out+1/{} fragment:gone", bytes(1_208));
        s.pass_in(&piece(&frame, 2, 800, 2_008), &rest);
    });
}

#[test]
fn a_fragmented_segment_moves_the_connection_once() {
    each_family(|s, from, to, header| {
        let to = end(&to.addr.to_string(), 443);
        let syn = fragments(&tcp(from, to, SYN, 620), 1, 320);
        let bytes = 320 + header;
        let new = format!("flow:syn-sent out+1/{bytes} event:new fragment:known");
        s.pass_in(&syn[0], &new);
        s.pass_in(&syn[1], &format!("out+1/{bytes} fragment:gone"));
        let answer = tcp(to, from, SYN | ACK, 0);
        let plain = answer.len() - 14;
        s.pass_out(
            &answer,
            &format!("state:syn-sent>syn-received in+1/{plain}"),
        );
        s.pass_in(&syn[0], &format!("out+1/{bytes} fragment:known"));
        s.pass_in(&syn[1], &format!("out+1/{bytes} fragment:gone"));
        let data = fragments(&tcp(from, to, ACK, 620), 2, 320);
        let proof = format!("state:syn-received>established out+1/{bytes} fragment:known");
        s.pass_in(&data[0], &proof);
        s.pass_in(&data[1], &format!("out+1/{bytes} fragment:gone"));
    });
}

#[test]
fn pings_in_pieces() {
    for (peer, local, header) in FAMILIES {
        let Some(mut s) = Scene::open(Content::default()) else {
            return;
        };
        let (request, reply) = if header == 20 { (8, 0) } else { (128, 129) };
        let (a, b) = (end(peer, 7), end(local, 7));
        let bytes = 1_000 + header;
        let ask = fragments(&icmp(a, b, request, 0, &[1; 1_992]), 1, 1_000);
        let new = format!("flow:new out+1/{bytes} event:new fragment:known");
        s.pass_in(&ask[0], &new);
        s.pass_in(&ask[1], &format!("out+1/{bytes} fragment:gone"));
        let answer = fragments(&icmp(b, a, reply, 0, &[1; 1_992]), 1, 1_000);
        let replied = format!("state:new>replied in+1/{bytes} fragment:known");
        s.pass_out(&answer[0], &replied);
        s.pass_out(&answer[1], &format!("in+1/{bytes} fragment:gone"));
    }
}

#[test]
fn options_are_in_every_fragment_and_failsafes_are_not_forgotten() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let safe = udp(end(PEER, 9), end(LOCAL, 1_234), 1_192);
    let allow = datapath::abi::failsafe_flags::ORDINARY;
    let rule = failsafe(datapath::ids::Direction::Ingress, 17, 1_234, PEER, allow);
    s.twin.set_failsafes(vec![rule]);
    let pieces = fragments(&safe, 1, 600).into_iter();
    let pieces: Vec<_> = pieces.map(|frame| with_ip_options(frame, 3)).collect();
    s.pass_in(&pieces[0], "flow:new out+1/632 event:new fragment:known");
    s.pass_in(&pieces[1], "out+1/632 fragment:gone");
}

#[test]
fn nothing_is_dropped_where_nothing_is_enforced() {
    let mut observed = policy();
    set_mode(&mut observed, mode::OBSERVE);
    for (peer, local, header) in FAMILIES {
        let Some(mut s) = Scene::of(observed.clone(), policy()) else {
            return;
        };
        let frame = tcp(end(peer, 9), end(local, 443), SYN, 600);
        let rest = format!("reason:mode-observe+1/{}", 220 + header);
        s.pass_in(&piece(&frame, 1, 400, 620), &rest);
        let short = format!("reason:mode-observe+1/{} fragment:poisoned", 16 + header);
        s.pass_in(&piece(&frame, 1, 0, 16), &short);
        s.pass_in(&piece(&frame, 1, 400, 620), &rest);
    }
}
