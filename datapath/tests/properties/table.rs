//! Keys, hashes and entries.

use std::collections::{BTreeMap, BTreeSet};

use datapath::abi::{Key4, Tables};
use datapath::hash::SECRET_WORDS;
use datapath::ids::Direction::{Egress, Ingress};
use datapath::packet::{Family, V4, V6, canonical};
use datapath::pipeline::Action::Pass;
use datapath::sim::packets::{end, udp};
use datapath::table::{Tabled, WAYS, spot};
use proptest::prelude::*;

use super::targets::closed;

fn tables(secret: [u32; SECRET_WORDS], bits: u32) -> Tables {
    Tables {
        secret,
        mask4: (1 << bits) - 1,
        mask6: (1 << bits) - 1,
        ..Tables::default()
    }
}

fn key(addr: u32, port: u16) -> Key4 {
    let (ends, _) = canonical::<V4>(&addr.to_be_bytes(), &[10, 0, 0, 1], port, 443);
    V4::key(ends, 6, 1)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_directions_have_one_key(a in any::<[u8; 4]>(), b in any::<[u8; 4]>(), c in any::<[u8; 16]>(),
        d in any::<[u8; 16]>(), p in any::<u16>(), q in any::<u16>()) {
        let ((there, from_lo), (back, to_lo)) = (canonical::<V4>(&a, &b, p, q), canonical::<V4>(&b, &a, q, p));
        prop_assert_eq!(V4::key(there, 6, 1), V4::key(back, 6, 1));
        prop_assert!(from_lo != to_lo || (a, p) == (b, q));
        let ((there, _), (back, _)) = (canonical::<V6>(&c, &d, p, q), canonical::<V6>(&d, &c, q, p));
        prop_assert_eq!(V6::key(there, 17, 1), V6::key(back, 17, 1));
        // Nothing of the tuple is lost.
        let [straight, turned] = [(p, q), (q, p)].map(|(p, q)| V4::key(canonical::<V4>(&a, &b, p, q).0, 6, 1));
        prop_assert!(straight != turned || p == q || a == b);
    }

    #[test]
    fn an_entry_is_looked_for_inside_the_table(addr in any::<u32>(), port in any::<u16>(),
        secret in any::<[u32; SECRET_WORDS]>(), bits in 0u32..20) {
        let tables = tables(secret, bits);
        let at = spot::<V4>(&tables, &V4::words(&key(addr, port)));
        prop_assert!(at.set <= tables.mask4 && at.start < WAYS);
        prop_assert_eq!(at, spot::<V4>(&tables, &V4::words(&key(addr, port))));
    }

    /// Tuples that conflict under one secret do not under another: nobody can prepare them.
    #[test]
    fn conflicts_depend_on_the_secret(one in any::<[u32; SECRET_WORDS]>(), two in any::<[u32; SECRET_WORDS]>()) {
        prop_assume!(one != two);
        let (one, two) = (tables(one, 6), tables(two, 6));
        let set = |tables, n: u32| spot::<V4>(tables, &V4::words(&key(0x0a40_0000 + n, 5))).set;
        let conflicting: Vec<u32> = (0..8_192).filter(|n| set(&one, *n) == 7).collect();
        let spread: BTreeSet<u32> = conflicting.iter().map(|n| set(&two, *n)).collect();
        // About 128 of 8,192, over 64 sets: about 55 of them are met.
        prop_assert!(conflicting.len() > 40 && spread.len() > 20, "{} {}", conflicting.len(), spread.len());
    }

    /// Whatever comes in whatever order: one entry a tuple, and each packet that passed in exactly one of them.
    #[test]
    fn every_packet_is_counted_once(packets in prop::collection::vec((0u8..6, any::<bool>()), 1..120)) {
        let mut sim = closed();
        // Everything is allowed.
        for slot in &mut sim.slots {
            for (_, cell) in &mut slot.rules {
                (cell.enforced, cell.reason) = (1, 0);
            }
        }
        let server = end("10.0.0.1", 53);
        let mut passed = BTreeMap::<u16, u64>::new();
        for (n, inward) in packets {
            let client = end("10.0.0.2", 1000 + u16::from(n));
            let (frame, direction) = match inward {
                true => (udp(client, server, 3), Ingress),
                false => (udp(server, client, 3), Egress),
            };
            if sim.send(&frame, direction) == Pass {
                *passed.entry(client.port).or_default() += 1;
            }
        }
        let mut counted = BTreeMap::<u16, u64>::new();
        for (key, flow) in sim.flows4() {
            let port = u16::from_be_bytes(key.hi_port);
            let packets = flow.lines.iter().map(|line| line.body.packets).sum();
            prop_assert_eq!(counted.insert(port, packets), None, "one entry a tuple");
        }
        prop_assert_eq!(counted, passed);
    }
}
