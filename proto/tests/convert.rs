//! Round trips, and what must be refused.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use policy::snapshot::{
    AddressBinding, CellVerdict, ClassBinding, Endpoint, FilterCell, FlowDirection, IdentityInfo,
    Mode, PortPrefix, RuleCell, RuleName, Snapshot,
};
use prost::Message as _;
use proto::convert::{ConvertError, Fault, from_unix_ns, to_unix_ns};
use proto::v1;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn sample() -> Snapshot {
    let allow = CellVerdict {
        allow: true,
        rule: 1,
        reason: 0,
    };
    let deny = CellVerdict {
        allow: false,
        rule: 2,
        reason: 255,
    };
    Snapshot {
        revision: u64::MAX,
        endpoints: vec![Endpoint {
            id: 1,
            name: "shop/web-1".into(),
            mode: Mode::Enforce,
            addresses: vec![
                "10.0.0.5".parse().expect("v4"),
                "2001:db8::5".parse().expect("v6"),
            ],
        }],
        identities: vec![IdentityInfo {
            id: 256,
            labels: BTreeMap::from([("app".into(), "web".into())]),
            cidrs: vec![net("10.0.0.0/8"), net("::/0")],
            workloads: vec!["shop/web-1".into()],
        }],
        addresses: vec![
            AddressBinding {
                net: net("10.0.0.5/32"),
                identity: 256,
                isolated: false,
                local: true,
            },
            AddressBinding {
                net: net("0.0.0.0/0"),
                identity: 2,
                isolated: true,
                local: false,
            },
        ],
        classes: vec![ClassBinding {
            endpoint: 1,
            direction: FlowDirection::Egress,
            identity: 256,
            class: 7,
            filter: 3,
        }],
        rules: vec![
            RuleCell {
                class: 7,
                ports: PortPrefix {
                    protocol: Some(6),
                    port: 5432,
                    port_bits: 16,
                },
                enforced: allow,
                draft: deny,
                expires: Some(1_800_000_000_000_000_000),
                after: Some(deny),
                mode_enforced: true,
                keep: true,
                audit: true,
                hard: true,
            },
            RuleCell {
                class: 7,
                ports: PortPrefix::ANY,
                enforced: deny,
                draft: deny,
                expires: None,
                after: None,
                mode_enforced: false,
                keep: false,
                audit: false,
                hard: false,
            },
        ],
        filters: [None, Some(true), Some(false)]
            .map(|allow| FilterCell {
                class: 3,
                ports: PortPrefix {
                    protocol: Some(17),
                    port: 0,
                    port_bits: 0,
                },
                allow,
                rule: 4,
                mode_enforced: true,
            })
            .to_vec(),
        rule_names: vec![RuleName {
            id: 1,
            name: "standard/shop-db/ingress[0]".into(),
        }],
    }
}

#[test]
fn a_snapshot_survives_the_wire() {
    let before = sample();
    let bytes = v1::Snapshot::from(&before).encode_to_vec();
    let wire = v1::Snapshot::decode(bytes.as_slice()).expect("decodes");
    let after = Snapshot::try_from(wire).expect("converts");
    assert_eq!(after, before);
    assert_eq!(after.digest(), before.digest());
}

fn refused(spoil: impl FnOnce(&mut v1::Snapshot)) -> ConvertError {
    let mut wire = v1::Snapshot::from(&sample());
    spoil(&mut wire);
    Snapshot::try_from(&wire).expect_err("must be refused")
}

fn ports(wire: &mut v1::Snapshot) -> &mut v1::PortPrefix {
    wire.rules[0].ports.as_mut().expect("ports")
}

fn prefix(wire: &mut v1::Snapshot) -> &mut v1::Prefix {
    wire.addresses[0].prefix.as_mut().expect("a prefix")
}

#[test]
fn addresses_are_checked() {
    for length in [0, 3, 5, 15, 17] {
        let error = refused(|wire| wire.endpoints[0].addresses[1].value = vec![0; length]);
        assert_eq!(error.field, "endpoints[0].addresses[1]");
        assert_eq!(error.fault, Fault::AddressLength(length));
    }
    let error = refused(|wire| prefix(wire).length = 33);
    assert_eq!(
        error.to_string(),
        "addresses[0].prefix.length: prefix length 33 is above 32"
    );
    assert_eq!(
        refused(|wire| prefix(wire).length = 256).fault,
        Fault::PrefixLength {
            length: 256,
            max: 32
        }
    );
    assert_eq!(
        refused(|wire| wire.identities[0].cidrs[1].length = 129).field,
        "identities[0].cidrs[1].length"
    );
    assert_eq!(
        refused(|wire| prefix(wire).length = 24).fault,
        Fault::HostBits
    );
    assert_eq!(
        refused(|wire| wire.addresses[0].prefix = None).fault,
        Fault::Missing
    );
}

#[test]
fn enumerations_are_checked() {
    for value in [0, 5, -1] {
        let error = refused(|wire| wire.endpoints[0].mode = value);
        assert_eq!(error.field, "endpoints[0].mode");
        assert_eq!(error.fault, Fault::UnknownValue(value));
    }
    for value in [0, 3] {
        let error = refused(|wire| wire.classes[0].direction = value);
        assert_eq!(error.field, "classes[0].direction");
    }
}

#[test]
fn cells_are_checked() {
    let field = |error: ConvertError| error.field;
    let over = |value, max| Fault::OutOfRange { value, max };
    assert_eq!(
        field(refused(|wire| wire.rules[1].enforced = None)),
        "rules[1].enforced"
    );
    assert_eq!(
        field(refused(|wire| wire.rules[1].draft = None)),
        "rules[1].draft"
    );
    assert_eq!(
        field(refused(|wire| wire.rules[0].after = None)),
        "rules[0].after"
    );
    assert_eq!(
        field(refused(|wire| wire.filters[2].ports = None)),
        "filters[2].ports"
    );
    let reason = refused(|wire| {
        if let Some(after) = wire.rules[0].after.as_mut() {
            after.reason = 256;
        }
    });
    assert_eq!(
        (reason.field.as_str(), reason.fault),
        ("rules[0].after.reason", over(256, 255))
    );
    assert_eq!(
        refused(|wire| ports(wire).protocol = Some(256)).fault,
        over(256, 255)
    );
    assert_eq!(
        refused(|wire| ports(wire).port = 65_536).fault,
        over(65_536, 65_535)
    );
    for spoil in [
        |ports: &mut v1::PortPrefix| ports.port_bits = 17,
        |ports: &mut v1::PortPrefix| ports.protocol = None,
        |ports: &mut v1::PortPrefix| ports.port_bits = 4,
    ] {
        let error = refused(|wire| spoil(ports(wire)));
        assert_eq!(error.field, "rules[0].ports.port_bits");
    }
}

#[test]
fn times_are_checked() {
    let ns = 1_700_000_000_123_456_789;
    assert_eq!(to_unix_ns(&from_unix_ns(ns)), Ok(ns));
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
        let time = prost_types::Timestamp { seconds, nanos };
        assert!(to_unix_ns(&time).is_err(), "{time:?}");
    }
}

#[test]
fn an_address_keeps_its_family() {
    for text in ["192.0.2.1", "::1", "::ffff:192.0.2.1"] {
        let address: IpAddr = text.parse().expect("an address");
        let wire = v1::Address::from(address);
        assert_eq!(IpAddr::try_from(&wire), Ok(address));
    }
}
