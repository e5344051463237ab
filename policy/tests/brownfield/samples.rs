//! Texts as the command line of AWS prints them.

use policy::brownfield::report::Outcome;
use policy::brownfield::{CloudOptions, Imported, aws};
use policy::model::Object;
use policy::source::Source;

use super::{Judge, import};

/// What became of every rule of a sample, as `place outcome`.
pub(crate) fn outcomes(imported: &Imported) -> Vec<String> {
    let items = imported.report.items.iter();
    items
        .map(|item| format!("{} {}", item.place, item.outcome.name()))
        .collect()
}

#[test]
fn an_estate_as_the_cli_prints_it() {
    let sample = |name: &str| {
        let path = format!("{}/tests/brownfield/{name}", env!("CARGO_MANIFEST_DIR"));
        Source::new(name, std::fs::read_to_string(path).unwrap())
    };
    let sources = [
        "groups.json",
        "rules.json",
        "acls.json",
        "pl-0a1b2c3d.json",
        "instances.json",
        "vpcs.json",
    ]
    .map(sample);
    let imported = import(
        &sources,
        &CloudOptions {
            owner: Some("net-team".into()),
            ..CloudOptions::default()
        },
    );
    let outcomes = outcomes(&imported);
    for expected in [
        "SecurityGroups[0].IpPermissions[0].IpRanges[0] exact",
        "SecurityGroups[0].IpPermissions[1].UserIdGroupPairs[0] exact",
        "SecurityGroups[1].IpPermissions[0].UserIdGroupPairs[1] narrower",
        "SecurityGroups[1].IpPermissions[0].UserIdGroupPairs[2] not carried over",
        "SecurityGroups[1].IpPermissionsEgress[0].PrefixListIds[0] exact",
        "SecurityGroups[1].IpPermissionsEgress[0].PrefixListIds[1] not carried over",
        "SecurityGroupRules[0] exact",
        "NetworkAcls[0].Entries[0] exact",
        "NetworkAcls[1].Entries[0] not carried over",
    ] {
        assert!(
            outcomes.iter().any(|one| one == expected),
            "{expected} is not in {outcomes:#?}"
        );
    }
    let judge = Judge::new(&imported, |_| true);
    let ends = |from: &str, to: &str, service| {
        judge.ends(from.parse().unwrap(), to.parse().unwrap(), service)
    };
    // The load balancer's group reaches the web servers, nobody else does.
    assert_eq!(
        ends("203.0.113.9", "10.20.1.10", (6, 443)),
        [None, Some(true)]
    );
    assert_eq!(
        ends("10.20.1.10", "10.20.2.20", (6, 5432)),
        [Some(true), Some(true)]
    );
    assert_eq!(
        ends("10.20.1.99", "10.20.2.20", (6, 5432)),
        [None, Some(false)]
    );
    // Security groups do not filter the VPC's own services: its resolver and the instance metadata.
    assert_eq!(
        ends("10.20.2.20", "10.20.0.2", (17, 53)),
        [Some(true), None]
    );
    assert_eq!(
        ends("10.20.2.20", "169.254.169.254", (6, 80)),
        [Some(true), None]
    );
    assert_eq!(
        ends("10.20.2.20", "198.51.100.9", (6, 443)),
        [Some(false), None]
    );
    // Interfaces with other groups are workloads of their own.
    let names: Vec<String> = imported.objects.iter().map(Object::id).collect();
    assert!(
        names.contains(&"Workload/i-0aa/eni-0a2".to_owned()),
        "{names:?}"
    );
    assert!(names.contains(&"Workload/i-0bb".to_owned()), "{names:?}");
    assert!(
        !names.contains(&"Workload/i-0cc".to_owned()),
        "it is terminated"
    );
    let wider = imported
        .report
        .items
        .iter()
        .any(|item| item.outcome == Outcome::Wider);
    assert!(!wider);
}

#[test]
fn what_is_no_listing_is_refused() {
    for (name, text, says) in [
        ("x.json", "{}", "none of the known listings"),
        (
            "x.json",
            "{\"SecurityGroups\": [{}]}",
            "SecurityGroups[0]: there is no GroupId",
        ),
        ("x.json", "{\"SecurityGroups\": 1}", "is no list"),
        ("x.json", "{\"Entries\": []}{", "x.json:1:16"),
        (
            "entries.json",
            "{\"Entries\": [{\"Cidr\": \"10.0.0.0/8\"}]}",
            "pl-….json",
        ),
        (
            "x.json",
            "{\"Subnets\": [{\"SubnetId\": \"s\", \"CidrBlock\": \"10\"}]}",
            "Subnets[0]",
        ),
    ] {
        let error = aws::import(&[Source::new(name, text)], &CloudOptions::default()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
