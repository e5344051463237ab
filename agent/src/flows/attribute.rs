//! Joins records with the processes behind them, once a flow.
//!
//! Who began a flow is found by the cookie that its first packet carried. A packet that comes in has no socket yet: its
//! flow is found by its ends among the accepted connections, or else by asking the kernel which socket takes it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use datapath::owner::{AcceptKey, Accepted, Owner};

use super::Record;
use super::process::{Describer, Process};
use crate::kernel::sockowner::Listed;

/// Flows whose process is remembered, in each of two generations.
const REMEMBERED: usize = 65_536;

/// Where owners are found.
pub trait Owners {
    /// Who made, bound or connected the socket with this cookie.
    fn socket(&mut self, cookie: u64) -> Option<Owner>;
    /// The socket of an accepted connection.
    fn accepted(&mut self, key: &AcceptKey) -> Option<Accepted>;
    /// Cookie of the network namespace whose flows these are.
    fn netns(&self) -> u64;
    /// The socket that the kernel gives packets to that `remote` sends to `local`.
    fn listed(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<Listed>;
}

#[derive(Clone, Debug)]
struct Known {
    process: Arc<Process>,
    cookie: u64,
    /// A connection that was not accepted yet may get another owner than who listens.
    is_final: bool,
}

/// Fills the process into records. Remembers what it found for as long as a flow is reported.
#[derive(Debug)]
pub struct Joiner<S> {
    owners: S,
    describer: Describer,
    young: HashMap<String, Known>,
    old: HashMap<String, Known>,
}

impl<S: Owners> Joiner<S> {
    /// Over sources of owners.
    pub fn new(owners: S, describer: Describer) -> Self {
        Self {
            owners,
            describer,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// Sets `process` (and the socket's cookie, where the record had none) in every record whose process is known.
    pub fn fill(&mut self, records: &mut [Record]) {
        for record in records {
            let known = match self.remembered(&record.uid) {
                Some(known) if known.is_final => Some(known),
                before => self.find(record).or(before),
            };
            let Some(known) = known else { continue };
            record.process = Some(Arc::clone(&known.process));
            if record.cookie == 0 {
                record.cookie = known.cookie;
            }
            if record.closed {
                self.young.remove(&record.uid);
                self.old.remove(&record.uid);
            } else {
                self.remember(record.uid.clone(), known);
            }
        }
    }

    fn remembered(&self, uid: &str) -> Option<Known> {
        self.young.get(uid).or_else(|| self.old.get(uid)).cloned()
    }

    fn remember(&mut self, uid: String, known: Known) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(uid, known);
    }

    fn find(&mut self, record: &Record) -> Option<Known> {
        if record.cookie != 0
            && let Some(owner) = self.owners.socket(record.cookie)
        {
            return Some(self.owned(&owner, record.cookie, true));
        }
        let ingress = record.direction == "ingress";
        // What was not let in reached nobody.
        if record.denial && ingress {
            return None;
        }
        let initiator = SocketAddr::new(record.initiator, record.initiator_port);
        let responder = SocketAddr::new(record.responder, record.responder_port);
        let (local, remote) = if ingress {
            (responder, initiator)
        } else {
            (initiator, responder)
        };
        if ingress && let Some(accepted) = self.accepted(record.protocol, local, remote) {
            return Some(self.owned(&accepted.owner, accepted.cookie, true));
        }
        let listed = self.owners.listed(record.protocol, local, remote)?;
        if let Some(owner) = self.owners.socket(listed.cookie) {
            return Some(self.owned(&owner, listed.cookie, record.protocol != 6));
        }
        Some(Known {
            process: Arc::new(self.describer.listed(&listed)),
            cookie: 0,
            is_final: false,
        })
    }

    fn accepted(
        &mut self,
        protocol: u8,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<Accepted> {
        if protocol != 6 {
            return None;
        }
        let key = AcceptKey {
            netns: self.owners.netns(),
            local: mapped(local),
            remote: mapped(remote),
            local_port: local.port(),
            remote_port: remote.port(),
            pad: 0,
        };
        self.owners.accepted(&key)
    }

    fn owned(&mut self, owner: &Owner, cookie: u64, is_final: bool) -> Known {
        Known {
            process: Arc::new(self.describer.owner(owner)),
            cookie: if is_final { cookie } else { 0 },
            is_final,
        }
    }
}

fn mapped(end: SocketAddr) -> [u8; 16] {
    match end.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::clock::Converter;
    use datapath::abi::{Clock, Event, event_kind};
    use datapath::owner::how;

    #[derive(Default)]
    struct Fake {
        sockets: HashMap<u64, Owner>,
        accepted: Option<(AcceptKey, Accepted)>,
        listed: Option<Listed>,
        questions: u32,
    }

    impl Owners for Fake {
        fn socket(&mut self, cookie: u64) -> Option<Owner> {
            self.questions += 1;
            self.sockets.get(&cookie).copied()
        }
        fn accepted(&mut self, key: &AcceptKey) -> Option<Accepted> {
            self.questions += 1;
            self.accepted
                .filter(|(is, _)| is == key)
                .map(|(_, accepted)| accepted)
        }
        fn netns(&self) -> u64 {
            4
        }
        fn listed(&mut self, _: u8, _: SocketAddr, _: SocketAddr) -> Option<Listed> {
            self.questions += 1;
            self.listed
        }
    }

    fn owner(pid: u32) -> Owner {
        Owner {
            // No process has such a number, so /proc says nothing of it.
            pid: 0x7000_0000 + pid,
            uid: 7,
            how: how::BIND,
            ..Owner::default()
        }
    }

    fn record(direction: u8, protocol: u8, cookie: u64, closed: bool) -> Record {
        let clock = Converter::new(Clock::default(), 0, 100);
        let names = crate::flows::names::Names::default();
        let context = crate::flows::record::Context {
            boot: "b",
            clock: &clock,
            names: &names,
        };
        let mapped = |last| {
            let mut address = [0; 16];
            address[10..].copy_from_slice(&[255, 255, 10, 0, 0, last]);
            address
        };
        let event = Event {
            kind: event_kind::NEW,
            protocol,
            direction,
            family: 4,
            initiator: mapped(2),
            responder: mapped(1),
            initiator_port: 40_000,
            responder_port: 80,
            cookie,
            ..Event::default()
        };
        Record::of_event(&context, &event, closed)
    }

    fn joiner(owners: Fake) -> Joiner<Fake> {
        Joiner::new(owners, Describer::new(None))
    }

    fn pid_of(record: &Record) -> Option<u32> {
        record
            .process
            .as_ref()
            .and_then(|process| process.pid)
            .map(|pid| pid - 0x7000_0000)
    }

    const IN: u8 = datapath::ids::Direction::Ingress as u8;
    const OUT: u8 = datapath::ids::Direction::Egress as u8;

    #[test]
    fn a_cookie_is_asked_about_once_a_flow() {
        let mut joiner = joiner(Fake {
            sockets: HashMap::from([(9, owner(1))]),
            ..Fake::default()
        });
        for _ in 0..3 {
            let mut records = [record(OUT, 6, 9, false)];
            joiner.fill(&mut records);
            assert_eq!(pid_of(&records[0]), Some(1));
        }
        assert_eq!(joiner.owners.questions, 1);
        let mut records = [record(OUT, 6, 9, true)];
        joiner.fill(&mut records);
        assert_eq!(pid_of(&records[0]), Some(1), "the last word names it too");
        assert!(joiner.young.is_empty(), "and is the last that is known");
    }

    #[test]
    fn who_listens_gives_way_to_who_accepted() {
        let listed = Listed {
            cookie: 5,
            uid: 3,
            cgroup: None,
        };
        let mut joiner = joiner(Fake {
            sockets: HashMap::from([(5, owner(1))]),
            listed: Some(listed),
            ..Fake::default()
        });
        let mut records = [record(IN, 6, 0, false)];
        joiner.fill(&mut records);
        assert_eq!((pid_of(&records[0]), records[0].cookie), (Some(1), 0));
        let [first] = &records;
        let key = AcceptKey {
            netns: 4,
            local: mapped(SocketAddr::new(first.responder, 0)),
            remote: mapped(SocketAddr::new(first.initiator, 0)),
            local_port: 80,
            remote_port: 40_000,
            pad: 0,
        };
        let accepted = Accepted {
            owner: owner(2),
            cookie: 77,
        };
        joiner.owners.accepted = Some((key, accepted));
        let mut records = [record(IN, 6, 0, false)];
        joiner.fill(&mut records);
        assert_eq!((pid_of(&records[0]), records[0].cookie), (Some(2), 77));
        let questions = joiner.owners.questions;
        joiner.fill(&mut [record(IN, 6, 0, false)]);
        assert_eq!(joiner.owners.questions, questions, "that is final");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let mut joiner = joiner(Fake::default());
        let mut records = [
            record(IN, 6, 0, false),
            record(OUT, 17, 12, false),
            record(IN, 1, 0, false),
        ];
        joiner.fill(&mut records);
        assert!(records.iter().all(|record| record.process.is_none()));
        joiner.owners.listed = Some(Listed {
            cookie: 5,
            uid: 3,
            cgroup: None,
        });
        let mut denied = record(IN, 6, 0, false);
        denied.denial = true;
        let mut records = [denied, record(IN, 17, 0, false)];
        joiner.fill(&mut records);
        assert_eq!(records[0].process, None, "a denied packet reached nobody");
        let process = records[1].process.as_deref().expect("listed");
        assert_eq!(
            (process.uid, process.pid, process.learnt),
            (Some(3), None, "listed")
        );
    }

    #[test]
    fn the_memory_of_flows_has_an_end() {
        let mut joiner = joiner(Fake {
            sockets: HashMap::from([(9, owner(1))]),
            ..Fake::default()
        });
        for number in 0..3 * REMEMBERED {
            let mut one = record(OUT, 6, 9, false);
            one.uid = number.to_string();
            joiner.fill(&mut [one]);
        }
        assert!(joiner.young.len() + joiner.old.len() <= 2 * REMEMBERED);
    }
}
