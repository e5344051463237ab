//! Packets that stand for several wire segments: counted as the wire would show them.

use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::pipeline::Action::{Drop, Pass};
use datapath::sim::Content;
use datapath::sim::packets::{end, tcp, udp};

use crate::support::frames::{with_ip_options, with_tcp_options};
use crate::support::rig::Merged;
use crate::support::scene::{LOCAL, LOCAL6, PEER, PEER6, Scene, client, server};

fn merged(segments: u32, size: u32) -> Option<Merged> {
    Some(Merged { segments, size })
}

#[test]
fn every_segment_counts_with_its_headers() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.establish(c, v, true);
    let frame = tcp(v, c, ACK, 2_500);
    s.step(&frame, Egress, None, Pass, "in+1/2540");
    s.step(&frame, Egress, merged(0, 0), Pass, "in+1/2540");
    s.step(&frame, Egress, merged(1, 2_500), Pass, "in+1/2540");
    s.step(&frame, Egress, merged(3, 1_000), Pass, "in+3/2620");
    // 20 bytes of TCP options: 60 bytes of headers a segment.
    let options = with_tcp_options(frame.clone(), 5);
    s.step(&options, Egress, merged(3, 1_000), Pass, "in+3/2680");
    let both = with_ip_options(options, 2);
    s.step(&both, Egress, merged(3, 1_000), Pass, "in+3/2704");
}

/// Hypervisors and virtio drivers give the size of a segment and leave the number at 0.
#[test]
fn segments_that_nobody_counted_are_counted_by_their_size() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.establish(c, v, true);
    let frame = tcp(v, c, ACK, 2_500);
    s.step(&frame, Egress, merged(0, 1_000), Pass, "in+3/2620");
    s.step(&frame, Egress, merged(0, 1_250), Pass, "in+2/2580");
    s.step(&frame, Egress, merged(0, 2_499), Pass, "in+2/2580");
    s.step(&frame, Egress, merged(0, 2_500), Pass, "in+1/2540");
    s.step(&frame, Egress, merged(1, 1_000), Pass, "in+1/2540");
    s.step(&frame, Egress, merged(2, 1_000), Pass, "in+2/2580");
    let frame = udp(end(LOCAL6, 5_000), end(PEER6, 53), 3_000);
    s.step(
        &frame,
        Egress,
        merged(0, 1_400),
        Pass,
        "flow:new out+3/3144 event:new",
    );
}

#[test]
fn udp_and_ipv6_segments_have_their_own_headers() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let frame = udp(end(LOCAL6, 5_000), end(PEER6, 53), 3_000);
    s.step(
        &frame,
        Egress,
        merged(3, 1_000),
        Pass,
        "flow:new out+3/3144 event:new",
    );
    s.step(&frame, Egress, merged(3, 1_000), Pass, "out+3/3144");
    let frame = tcp(end(PEER, 5), end(LOCAL, 22), SYN, 100);
    s.step(
        &frame,
        Ingress,
        merged(2, 50),
        Drop,
        "reason:default-deny+2/180 denied+2/180 deny:new event:deny",
    );
}

#[test]
fn a_length_of_zero_is_a_big_packet_only_when_it_is_merged() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let (c, v) = (client(), server());
    s.establish(c, v, true);
    let mut frame = tcp(v, c, ACK, 2_000);
    frame[16..18].fill(0);
    s.step(&frame, Egress, merged(2, 1_000), Pass, "in+2/2080");
    s.step(&frame, Egress, None, Drop, "reason:malformed-ip+1/2040");
    s.step(
        &frame,
        Egress,
        merged(1, 2_000),
        Drop,
        "reason:malformed-ip+1/2040",
    );
    let mut frame = tcp(end(PEER6, 5), end(LOCAL6, 443), SYN, 200);
    frame[18..20].fill(0);
    s.step(
        &frame,
        Ingress,
        merged(2, 100),
        Pass,
        "flow:syn-sent out+2/320 event:new",
    );
    s.step(&frame, Ingress, None, Drop, "reason:truncated+1/260");
    s.step(&frame, Ingress, merged(7, 100), Pass, "out+7/620");
}

#[test]
fn broken_packets_count_their_segments_too() {
    let Some(mut s) = Scene::open(Content::default()) else {
        return;
    };
    let mut frame = tcp(client(), server(), ACK, 100);
    frame[14] = 0x46;
    frame[14 + 24 + 12] = 0;
    s.step(
        &frame,
        Ingress,
        merged(4, 25),
        Drop,
        "reason:truncated+4/140",
    );
}
