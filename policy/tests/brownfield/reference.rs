//! A small reading of AWS's rules of its own: it knows nothing of regions, policies or selectors, and walks the
//! JSON that a random estate is written to, packet by packet, as the user guide says that AWS does.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::HOSTS;

pub(crate) fn has(net: &str, address: IpAddr) -> bool {
    net.parse::<IpNet>().unwrap().contains(&address)
}

pub(crate) fn protocol_matches(item: &Value, key: &str, protocol: u8, port: u16) -> bool {
    let number = match item[key].as_str().unwrap() {
        "-1" => return true,
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        other => other.parse::<u8>().unwrap(),
    };
    let field = |own: &str, range: &str, icmp: &str| {
        let inner = if protocol == 1 {
            &item["IcmpTypeCode"][icmp]
        } else {
            &item["PortRange"][range]
        };
        item[own].as_i64().or_else(|| inner.as_i64())
    };
    let (from, to) = (
        field("FromPort", "From", "Type"),
        field("ToPort", "To", "Code"),
    );
    number == protocol
        && match protocol {
            6 | 17 => (from.unwrap()..=to.unwrap()).contains(&i64::from(port)),
            1 => {
                let [kind, code] = port.to_be_bytes().map(i64::from);
                (from == Some(-1) || from == Some(kind)) && (to == Some(-1) || to == Some(code))
            }
            _ => true,
        }
}

pub(crate) fn groups_of(address: IpAddr) -> &'static [&'static str] {
    let host = HOSTS
        .iter()
        .find(|(own, ..)| own.parse::<IpAddr>().unwrap() == address);
    host.map_or(&[], |(_, _, groups)| groups)
}

/// What the groups of one end say about its peer.
pub(crate) fn groups_allow(
    listing: &Value,
    own: IpAddr,
    peer: IpAddr,
    key: &str,
    service: (u8, u16),
) -> bool {
    let attached = |group: &&Value| groups_of(own).iter().any(|id| group["GroupId"] == *id);
    let groups = listing["SecurityGroups"].as_array().unwrap();
    groups.iter().filter(attached).any(|group| {
        group[key].as_array().unwrap().iter().any(|permission| {
            let list = |key: &str| permission[key].as_array().unwrap().clone();
            let by_net = list("IpRanges")
                .iter()
                .any(|range| has(range["CidrIp"].as_str().unwrap(), peer));
            let by_group = list("UserIdGroupPairs")
                .iter()
                .any(|pair| groups_of(peer).iter().any(|id| pair["GroupId"] == *id));
            let by_list = list("PrefixListIds")
                .iter()
                .any(|one| one["PrefixListId"] == "pl-known" && has("192.0.2.0/28", peer));
            protocol_matches(permission, "IpProtocol", service.0, service.1)
                && (by_net || by_group || by_list)
        })
    })
}

/// What an ACL says about one packet.
pub(crate) fn acl_passes(listing: &Value, egress: bool, peer: IpAddr, service: (u8, u16)) -> bool {
    let entries = listing["NetworkAcls"][0]["Entries"].as_array().unwrap();
    let mut own: Vec<&Value> = entries
        .iter()
        .filter(|entry| entry["Egress"] == egress)
        .collect();
    own.sort_by_key(|entry| entry["RuleNumber"].as_u64().unwrap());
    let first = own.into_iter().find(|entry| {
        entry["CidrBlock"]
            .as_str()
            .is_some_and(|net| has(net, peer))
            && protocol_matches(entry, "Protocol", service.0, service.1)
    });
    first.is_some_and(|entry| entry["RuleAction"] == "allow")
}

/// The packets that answer, if there are any: to every port that the client may have taken.
pub(crate) fn replies((protocol, port): (u8, u16)) -> Vec<(u8, u16)> {
    match (protocol, port >> 8) {
        (6 | 17, _) => (32_768..=60_999)
            .step_by(7)
            .chain([60_999])
            .map(|port| (protocol, port))
            .collect(),
        (1, 8) => vec![(1, 0)],
        (1, _) => Vec::new(),
        _ => vec![(protocol, 0)],
    }
}
