//! A simulated host's content as the kernel's tables hold it.

use std::collections::BTreeMap;

use agent::kernel::content::{Content, Part};
use datapath::abi::{Cidr4Key, Cidr6Key, ClassKey, FailsafeKey, FailsafeValue, RuleKey};
use datapath::sim;

/// Clears every bit behind the first `bits`: tries keep keys in this form.
fn clear(bytes: &mut [u8], bits: u32) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        let start = index as u32 * 8;
        if bits <= start {
            *byte = 0;
        } else if bits < start + 8 {
            *byte &= 0xff << (8 - (bits - start));
        }
    }
}

fn rule_key(key: &RuleKey) -> RuleKey {
    let mut tail = [key.protocol, key.port[0], key.port[1]];
    clear(&mut tail, key.prefix_len - RuleKey::ANY_PROTOCOL);
    RuleKey {
        protocol: tail[0],
        port: [tail[1], tail[2]],
        pad: 0,
        ..*key
    }
}

/// The eight tables of a slot.
pub fn content(from: &sim::Content) -> Content {
    let mut to = Content::default();
    for (net, bits, value) in &from.addresses {
        let mut net = *net;
        clear(&mut net, *bits);
        let four = *bits >= 96 && net.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        let tail: [u8; 4] = net[12..].try_into().expect("four bytes");
        match (four, *bits) {
            (true, 128) => to.part_mut(Part::Addr4).push(&tail, value),
            (true, bits) => to.part_mut(Part::Cidr4).push(
                &Cidr4Key {
                    prefix_len: bits - 96,
                    addr: tail,
                },
                value,
            ),
            (false, 128) => to.part_mut(Part::Addr6).push(&net, value),
            (false, bits) => to.part_mut(Part::Cidr6).push(
                &Cidr6Key {
                    prefix_len: bits,
                    addr: net,
                },
                value,
            ),
        }
    }
    for (endpoint, value) in &from.endpoints {
        to.part_mut(Part::Endpoints).push(endpoint, value);
    }
    for ((endpoint, identity, direction), value) in &from.classes {
        let key = ClassKey {
            endpoint: *endpoint,
            identity: *identity,
            direction: *direction,
        };
        to.part_mut(Part::Classes).push(&key, value);
    }
    for (key, value) in &from.rules {
        to.part_mut(Part::Rules).push(&rule_key(key), value);
    }
    for (key, value) in &from.filters {
        to.part_mut(Part::Filters).push(&rule_key(key), value);
    }
    to.sort();
    to
}

/// Failsafes as [`agent::kernel::OfflineKernel::set_failsafes`] wants them.
pub fn failsafes(
    from: &[(FailsafeKey, FailsafeValue)],
) -> BTreeMap<Vec<u8>, (FailsafeKey, FailsafeValue)> {
    let mut to = BTreeMap::new();
    for (key, value) in from {
        let mut key = *key;
        clear(&mut key.addr, key.prefix_len - 32);
        let mut bytes = key.prefix_len.to_ne_bytes().to_vec();
        bytes.extend([key.direction, key.protocol]);
        bytes.extend(key.port);
        bytes.extend(key.addr);
        to.insert(bytes, (key, *value));
    }
    to
}
