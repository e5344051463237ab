//! Judges with a content in user space, by the same code that the kernel runs.
//!
//! For `explain`, and to find adopted flows that the new policy would deny.

use std::collections::HashMap;
use std::net::IpAddr;

use datapath::abi::{
    AddrValue, Cidr4Key, Cidr6Key, ClassKey, ClassValue, EndpointValue, FailsafeKey, FailsafeValue,
    FilterValue, RuleKey, RuleValue,
};
use datapath::verdict::{Decision, PolicyLookup, Query, decide};

use super::failsafes::{self, Failsafe};
use crate::kernel::clock;
use crate::kernel::content::{Content, Part};

/// A content with indexes, answering as the kernel's maps do.
#[derive(Debug, Default)]
pub struct Lookup {
    hosts: HashMap<IpAddr, AddrValue>,
    prefixes: Vec<(ipnet::IpNet, AddrValue)>,
    endpoints: HashMap<u32, EndpointValue>,
    classes: HashMap<(u32, u32, u32), ClassValue>,
    rules: HashMap<(u32, u32, u8, [u8; 2]), RuleValue>,
    filters: HashMap<(u32, u32, u8, [u8; 2]), FilterValue>,
    failsafes: Vec<(FailsafeKey, FailsafeValue)>,
}

impl Lookup {
    /// Indexes a content and the failsafes beside it.
    #[must_use]
    pub fn new(content: &Content, failsafes: &[Failsafe]) -> Self {
        let mut lookup = Self::default();
        for (key, value) in content.part(Part::Addr4).entries::<[u8; 4], AddrValue>() {
            lookup.hosts.insert(IpAddr::from(key), value);
        }
        for (key, value) in content.part(Part::Addr6).entries::<[u8; 16], AddrValue>() {
            lookup.hosts.insert(IpAddr::from(key), value);
        }
        for (key, value) in content.part(Part::Cidr4).entries::<Cidr4Key, AddrValue>() {
            lookup.prefix(IpAddr::from(key.addr), key.prefix_len, value);
        }
        for (key, value) in content.part(Part::Cidr6).entries::<Cidr6Key, AddrValue>() {
            lookup.prefix(IpAddr::from(key.addr), key.prefix_len, value);
        }
        lookup
            .prefixes
            .sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        lookup.endpoints = content.part(Part::Endpoints).entries().collect();
        lookup.classes = content
            .part(Part::Classes)
            .entries::<ClassKey, ClassValue>()
            .map(|(key, value)| ((key.endpoint, key.identity, key.direction), value))
            .collect();
        let tail = |key: RuleKey| (key.prefix_len, key.class, key.protocol, key.port);
        lookup.rules = content
            .part(Part::Rules)
            .entries::<RuleKey, RuleValue>()
            .map(|(key, value)| (tail(key), value))
            .collect();
        lookup.filters = content
            .part(Part::Filters)
            .entries::<RuleKey, FilterValue>()
            .map(|(key, value)| (tail(key), value))
            .collect();
        lookup.failsafes = failsafes::entries(failsafes).into_values().collect();
        lookup
    }

    fn prefix(&mut self, address: IpAddr, length: u32, value: AddrValue) {
        if let Ok(net) = ipnet::IpNet::new(address, u8::try_from(length).unwrap_or(u8::MAX)) {
            self.prefixes.push((net, value));
        }
    }

    /// What an address is bound to: host address first, then the longest prefix, else unknown.
    #[must_use]
    pub fn binding(&self, address: IpAddr) -> AddrValue {
        self.hosts.get(&address).copied().unwrap_or_else(|| {
            self.prefixes
                .iter()
                .find(|(net, _)| net.contains(&address))
                .map(|(_, value)| *value)
                .unwrap_or_default()
        })
    }

    /// Judges one end of a flow.
    #[must_use]
    pub fn decide(&self, query: &Query) -> Decision {
        decide(self, query, false)
    }
}

fn longest<V: Copy>(table: &HashMap<(u32, u32, u8, [u8; 2]), V>, key: &RuleKey) -> Option<V> {
    let port = u16::from_be_bytes(key.port);
    (0..=16u8)
        .rev()
        .find_map(|bits| {
            let masked = policy::snapshot::mask(port, bits).to_be_bytes();
            table
                .get(&(40 + u32::from(bits), key.class, key.protocol, masked))
                .copied()
        })
        .or_else(|| table.get(&(32, key.class, 0, [0, 0])).copied())
}

impl PolicyLookup for Lookup {
    type Class = ClassValue;
    type Cell = RuleValue;

    fn endpoint(&self, endpoint: u32) -> Option<EndpointValue> {
        self.endpoints.get(&endpoint).copied()
    }

    fn class(&self, key: &ClassKey) -> Option<ClassValue> {
        self.classes
            .get(&(key.endpoint, key.identity, key.direction))
            .copied()
    }

    fn rule(&self, class: &ClassValue, protocol: u8, port: u16) -> Option<RuleValue> {
        longest(&self.rules, &RuleKey::lookup(class.class, protocol, port))
    }

    fn filter(&self, key: &RuleKey) -> Option<FilterValue> {
        longest(&self.filters, key)
    }

    fn failsafe(&self, key: &FailsafeKey) -> Option<FailsafeValue> {
        let address = std::net::Ipv6Addr::from(key.addr);
        self.failsafes
            .iter()
            .filter(|(entry, _)| {
                entry.direction == key.direction
                    && entry.protocol == key.protocol
                    && entry.port == key.port
                    && u8::try_from(entry.prefix_len - 32)
                        .ok()
                        .and_then(|length| {
                            ipnet::Ipv6Net::new(std::net::Ipv6Addr::from(entry.addr), length).ok()
                        })
                        .is_some_and(|net| net.contains(&address))
            })
            .max_by_key(|(entry, _)| entry.prefix_len)
            .map(|(_, value)| *value)
    }

    fn boot_ns(&self) -> u64 {
        clock::boot_ns()
    }
}
