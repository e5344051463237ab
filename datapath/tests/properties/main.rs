//! Properties of the parser, of connection states and of the flow table that hold for every input, and fuzz targets.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "../parser/memory.rs"]
#[allow(dead_code, reason = "merged packets are the parser's own tests")]
mod memory;
mod table;
mod targets;

use std::sync::LazyLock;

use datapath::packet::tcp::SYN;
use datapath::packet::{Packet, parse4, parse6};
use datapath::sim::packets::{end, fragments, icmp, other, sctp, tcp, udp};
use memory::Memory;
use proptest::prelude::*;
use targets::L3;

/// One frame of each kind, both families; the first two are plain segments.
fn whole() -> Vec<Vec<u8>> {
    let pairs = [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")];
    let ends = pairs.map(|(from, to)| (end(from, 40_000), end(to, 443)));
    let mut frames: Vec<Vec<u8>> = ends
        .iter()
        .map(|(from, to)| tcp(*from, *to, SYN, 8))
        .collect();
    for (from, to) in ends {
        frames.extend([udp(from, to, 8), sctp(from, to, 8), other(from, to, 47, 8)]);
        frames.extend(fragments(&udp(from, to, 100), 5, 48));
        let quoted = udp(to, from, 8);
        let kinds: &[u8] = match from.addr.is_ipv4() {
            true => &[0, 3, 5, 8, 11, 13],
            false => &[1, 2, 128, 129, 134, 135, 137, 143],
        };
        frames.extend(
            kinds
                .iter()
                .map(|kind| icmp(from, to, *kind, 0, &quoted[L3..])),
        );
    }
    // Behind a chain: destination options, routing, hop by hop.
    let mut chain = frames[1].clone();
    for number in [60, 43, 0] {
        let next = std::mem::replace(&mut chain[L3 + 6], number);
        chain.splice(L3 + 40..L3 + 40, [next, 0, 1, 4, 0, 0, 0, 0]);
        let length = (chain.len() - L3 - 40) as u16;
        chain[L3 + 4..L3 + 6].copy_from_slice(&length.to_be_bytes());
    }
    frames.push(chain);
    frames
}

/// The same, made once.
fn corpus() -> &'static [Vec<u8>] {
    static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(whole);
    &CORPUS
}

/// A frame with some of its bytes replaced, and cut or lengthened.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    let frames = corpus();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (
        prop::sample::select(frames),
        edits,
        any::<prop::sample::Index>(),
        0..8u8,
    )
        .prop_map(|(mut frame, edits, cut, what)| {
            for (at, value) in edits {
                let at = L3 + at.index(frame.len() - L3);
                frame[at] = value;
            }
            match what {
                0 => frame.truncate(L3 + cut.index(frame.len() - L3)),
                1 => frame.resize(frame.len() + 1 + cut.index(30), 0),
                _ => {}
            }
            frame
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

    #[test]
    fn the_parser_reads_what_is_there(frame in broken()) {
        targets::parser(&frame);
    }

    #[test]
    fn no_cut_of_a_frame_is_a_packet(frame in prop::sample::select(corpus()), cut in any::<prop::sample::Index>()) {
        let cut = &frame[..L3 + cut.index(frame.len() - L3)];
        let memory = Memory::of(cut);
        prop_assert!(parse4(&memory, L3 as u32, &mut Packet::default()).is_err());
        prop_assert!(parse6(&memory, L3 as u32, &mut Packet::default()).is_err());
    }

    #[test]
    fn states_follow_their_rules(data in prop::collection::vec(any::<u8>(), 0..40)) {
        targets::steps(&data);
    }

    #[test]
    fn a_host_that_allows_nothing_lets_nothing_in(frames in prop::collection::vec((broken(), any::<bool>()), 1..6)) {
        let mut data = Vec::new();
        for (frame, outward) in frames {
            let eights = (frame.len() - L3).div_ceil(8);
            data.push(eights as u8 | u8::from(outward) << 7);
            // Bytes behind the packet, as short frames have them.
            let end = data.len() + L3 + eights * 8;
            data.extend(frame);
            data.resize(end, 0);
        }
        targets::pipeline(&data);
    }
}

/// Each target over whole frames, every cut of them, and random bytes.
#[test]
fn fuzz_targets_find_nothing() {
    let corpus = corpus();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut runs = 0;
    let targets: [fn(&[u8]); 3] = [targets::parser, targets::steps, targets::pipeline];
    for target in targets {
        for frame in corpus {
            for length in 0..=frame.len() {
                target(&frame[..length]);
                runs += 1;
            }
        }
        for _ in 0..4_000 {
            let length = next() as usize % 300;
            let random: Vec<u8> = (0..length).map(|_| next() as u8).collect();
            target(&random);
            runs += 1;
        }
    }
    println!("{runs} runs of {} targets", targets.len());
}
