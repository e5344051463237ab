//! Packets that are too short, contradict themselves, come in pieces or are no IP: no such packet ever allows.

use datapath::abi::{config_flags, mode};
use datapath::packet::tcp::{ACK, SYN};
use datapath::sim::Content;
use datapath::sim::packets::{end, tcp, udp};

use crate::support::frames::{ethernet, with_extension, with_ip_options};
use crate::support::scene::{LOCAL6, PEER6, Scene, client, policy, server, set_mode};
use crate::support::twin::default_config;

#[test]
fn headers_that_contradict_themselves() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    s.establish(client(), server(), true);
    let good = tcp(client(), server(), ACK, 4);
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[14 + at] = byte;
        frame
    };
    // Version 5, header of 16 bytes, total length below the header, total length beyond the frame.
    s.drop_in(&with(0, 0x55), "reason:malformed-ip+1/44");
    s.drop_in(&with(0, 0x44), "reason:malformed-ip+1/44");
    s.drop_in(&with(3, 19), "reason:malformed-ip+1/44");
    s.drop_in(&with(3, 45), "reason:truncated+1/44");
    s.drop_in(&with(3, 39), "reason:truncated+1/44");
    // TCP header of 16 bytes, and one that is longer than the packet.
    s.drop_in(&with(20 + 12, 0x40), "reason:truncated+1/44");
    s.drop_in(&with(20 + 12, 0x70), "reason:truncated+1/44");
    s.pass_in(&with(20 + 12, 0x60), "out+1/44");
    s.pass_in(&with(3, 40), "out+1/40");
}

#[test]
fn ipv4_options_move_the_ports() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let syn = tcp(client(), server(), SYN, 0);
    s.pass_in(
        &with_ip_options(syn.clone(), 10),
        "flow:syn-sent out+1/80 event:new",
    );
    s.pass_in(&with_ip_options(syn.clone(), 1), "out+1/44");
    // The length says there are options, but the packet ends.
    let mut cut = syn;
    cut[14] = 0x4f;
    s.drop_in(&cut, "reason:malformed-ip+1/40");
}

#[test]
fn chains_of_extension_headers() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let syn = tcp(end(PEER6, 5), end(LOCAL6, 443), SYN, 0);
    let long = |frame, number| with_extension(frame, number, &[[1].as_slice(), &[0; 14]].concat());
    let short = |frame, number| with_extension(frame, number, &[0; 7]);
    // 60 + 8 hop-by-hop + 16 destination options + 8 routing.
    let chain = short(long(short(syn.clone(), 43), 60), 0);
    s.pass_in(&chain, "flow:syn-sent out+1/92 event:new");
    // An authentication header counts 4-byte units, minus 2: 1 is 12 bytes.
    let signed = with_extension(syn.clone(), 51, &[[1].as_slice(), &[0; 10]].concat());
    s.pass_in(&signed, "out+1/72");
    for number in [59, 135, 139, 140, 253, 254] {
        s.drop_in(&short(syn.clone(), number), "reason:unknown-extension+1/68");
    }
    let six = (0..6).fold(syn.clone(), |frame, _| short(frame, 60));
    s.pass_in(&six, "out+1/108");
    s.drop_in(&short(six, 60), "reason:unknown-extension+1/116");
    // A header that runs over the end.
    let over = with_extension(syn, 60, &[200, 0, 0, 0, 0, 0, 0]);
    s.drop_in(&over, "reason:truncated+1/68");
}

#[test]
fn ipv6_headers_that_lie() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let good = tcp(end(PEER6, 5), end(LOCAL6, 443), SYN, 0);
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[14 + at] = byte;
        frame
    };
    s.drop_in(&with(0, 0x40), "reason:malformed-ip+1/60");
    s.drop_in(&with(5, 21), "reason:truncated+1/60");
    s.drop_in(&with(5, 19), "reason:truncated+1/60");
    let mapped = udp(end("::ffff:10.0.0.2", 5), end(LOCAL6, 53), 0);
    s.drop_in(&mapped, "reason:malformed-ip+1/48");
    s.pass_in(&good, "flow:syn-sent out+1/60 event:new");
}

#[test]
fn frames_that_are_no_ip() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    s.pass_in(&ethernet(0x0806, 60), "");
    s.pass_out(&ethernet(0x0806, 60), "");
    s.pass_in(&ethernet(0x88cc, 60), "reason:non-ip+1/46");
    s.pass_in(&ethernet(0x0026, 60), "reason:non-ip+1/46");
    let mut config = default_config();
    config.flags = config_flags::L2_DROP;
    s.twin.set_config(config);
    s.pass_in(&ethernet(0x0806, 60), "");
    s.drop_in(&ethernet(0x88cc, 60), "reason:non-ip+1/46");
    s.drop_out(&ethernet(0x8847, 60), "reason:non-ip+1/46");
}

#[test]
fn broken_packets_pass_where_nothing_is_enforced() {
    let mut observed = policy();
    set_mode(&mut observed, mode::OBSERVE);
    let Some(mut s) = Scene::of(observed, policy()) else {
        return;
    };
    let mut bad = tcp(client(), server(), SYN, 0);
    bad[14] = 0x55;
    s.pass_in(&bad, "reason:mode-observe+1/40");
    s.commit(2, 1);
    s.drop_in(&bad, "reason:malformed-ip+1/40");
}
