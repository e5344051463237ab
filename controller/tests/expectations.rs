//! Tests in policy files, and hostile texts: what they refuse is not applied.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says so by failing"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Agent, Lab, Operator, options};
use proto::v1;
use proto::v1::policies_client::PoliciesClient;

/// Web may reach the database on a port; the tests say which one.
fn shop(port: u16, tests: &str) -> String {
    format!(
        "apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {{name: db}}
spec:
  state: enforced
  subject: {{app: db}}
  ingress:
    - action: allow
      peers: [{{selector: {{app: web}}}}]
      ports: [{{port: {port}}}]
tests:
{tests}
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {{name: web}}
spec:
  subject: {{app: web}}
  egress: [{{action: allow}}]
"
    )
}

const WORKS: &str =
    "  - {name: the shop works, from: {app: web}, to: {app: db}, port: 5432, expect: allow}";

/// Revision of the newest object: that of the state also moves when identities are numbered.
async fn revision(operator: &Operator) -> u64 {
    let mut client = PoliciesClient::new(operator.channel.clone());
    let list = client.list(v1::ListObjectsRequest::default()).await;
    let objects = list.expect("a list").into_inner().objects;
    objects
        .iter()
        .map(|object| object.revision)
        .max()
        .unwrap_or_default()
}

async fn lab() -> (Lab, Operator) {
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let address = lab.controller.address;
    Agent::join(address, &operator, "db", &["10.1.0.2"], &[("app", "db")]).await;
    Agent::join(address, &operator, "web", &["10.1.0.1"], &[("app", "web")]).await;
    (lab, operator)
}

#[tokio::test]
async fn a_failing_test_refuses_the_change() {
    let (_lab, operator) = lab().await;
    let before = revision(&operator).await;
    let answer = operator.apply(&shop(5433, WORKS)).await;
    assert_eq!(answer.problems.len(), 1, "{:?}", answer.problems);
    let problem = &answer.problems[0];
    assert_eq!((problem.line, problem.column), (12, 5), "{problem:?}");
    for part in [
        "the shop works",
        "web → db tcp/5432",
        "expected allow",
        "deny by standard/db/ingress",
    ] {
        assert!(problem.message.contains(part), "{part}: {problem:?}");
    }
    assert_eq!(revision(&operator).await, before, "nothing was applied");
    let answer = operator.apply(&shop(5432, WORKS)).await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    assert!(answer.revision > before);
}

#[tokio::test]
async fn a_change_elsewhere_that_breaks_a_stored_test_is_refused() {
    let (_lab, operator) = lab().await;
    let answer = operator.apply(&shop(5432, WORKS)).await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    let guardrail = "apiVersion: cofferdam.dev/v1
kind: Guardrail
metadata: {name: closed}
spec:
  subject: {app: db}
  ingress: [{action: deny}]
";
    let answer = operator.apply(guardrail).await;
    let [problem] = &answer.problems[..] else {
        panic!("one problem: {:?}", answer.problems);
    };
    assert_eq!(problem.file, "Policy/db");
    assert!(
        problem.message.contains("guardrail/closed/ingress[0]"),
        "{problem:?}"
    );
}

#[tokio::test]
async fn a_test_that_failed_before_or_means_nobody_holds_nobody_up() {
    let (lab, operator) = lab().await;
    let nobody = "  - {from: {app: nobody}, to: {app: db}, port: 22, expect: allow}
  - {from: {app: cache}, to: {app: db}, port: 5432, expect: allow}";
    let answer = operator.apply(&shop(5432, nobody)).await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    // Now there is a cache, and the test fails through nobody's change.
    Agent::join(
        lab.controller.address,
        &operator,
        "cache",
        &["10.1.0.3"],
        &[("app", "cache")],
    )
    .await;
    let group = "apiVersion: cofferdam.dev/v1
kind: AddressGroup
metadata: {name: office}
spec: {cidrs: [192.0.2.0/24]}
";
    let answer = operator.apply(group).await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    // Who touches the policy has to mend its test.
    let answer = operator.apply(&shop(5432, nobody)).await;
    assert_eq!(answer.problems.len(), 1, "{:?}", answer.problems);
}

const NEVER: &str = "apiVersion: cofferdam.dev/v1
kind: Invariant
metadata: {name: web-stays-out}
spec:
  from: [{selector: {app: web}}]
  to: [{selector: {app: db}}]
  ports: [{port: 22}]
  expect: unreachable
  reason: ssh goes over the jump host
";

#[tokio::test]
async fn a_change_that_breaks_an_invariant_is_refused_with_a_counter_example() {
    let (lab, operator) = lab().await;
    let answer = operator
        .apply(&format!("{NEVER}---\n{}", shop(5432, WORKS)))
        .await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    assert!(answer.warnings.is_empty(), "{:?}", answer.warnings);
    let hole = "apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: hole}
spec:
  subject: {app: db}
  ingress: [{action: allow, ports: [{port: 20, endPort: 25}]}]
";
    let answer = operator.apply(hole).await;
    let [problem] = &answer.problems[..] else {
        panic!("one problem: {:?}", answer.problems);
    };
    assert_eq!(problem.file, "Invariant/web-stays-out");
    assert_eq!(
        problem.message,
        "invariant \"web-stays-out\" (app=web → app=db on tcp/22: unreachable) does not hold: web (10.1.0.1) → db \
         (10.1.0.2) tcp/22: egress allowed by standard/web/egress[0]; ingress allowed by standard/hole/ingress[0]"
    );
    assert!(problem.suggestion.contains("ssh goes over the jump host"));
    // The watcher sees the stored policies, which are as before.
    eventually(&lab, "holds").await;
    let mut client = PoliciesClient::new(operator.channel.clone());
    let list = client.list(v1::ListObjectsRequest::default()).await;
    let stored = list.expect("a list").into_inner().objects;
    assert!(
        stored.iter().all(|object| object.name != "hole"),
        "nothing was applied"
    );
    let invariant = stored.iter().find(|object| object.kind == "Invariant");
    assert_eq!(invariant.expect("it is stored").text, NEVER);
}

#[tokio::test]
async fn an_invariant_that_was_broken_before_or_means_nobody_holds_nobody_up() {
    let (lab, operator) = lab().await;
    let nobody = NEVER
        .replace("app: web", "app: cache")
        .replace("22", "5432");
    let open = shop(5432, WORKS).replace("{app: web}}]", "{app: web}}, {selector: {app: cache}}]");
    let cache = "apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: cache}
spec: {subject: {app: cache}, defaultAction: allow}
";
    let answer = operator
        .apply(&format!("{nobody}---\n{cache}---\n{open}"))
        .await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    let warning = &answer.warnings[0].message;
    assert!(
        warning.contains("checks nothing: \"from\" means nobody"),
        "{warning}"
    );
    eventually(&lab, "empty").await;
    // Now there is somebody, and it is broken through nobody's change.
    let address = lab.controller.address;
    Agent::join(
        address,
        &operator,
        "cache",
        &["10.1.0.3"],
        &[("app", "cache")],
    )
    .await;
    eventually(&lab, "broken").await;
    let group = "apiVersion: cofferdam.dev/v1
kind: AddressGroup
metadata: {name: office}
spec: {cidrs: [192.0.2.0/24]}
";
    let answer = operator.apply(group).await;
    assert!(answer.problems.is_empty(), "{:?}", answer.problems);
    let warning = &answer.warnings[0].message;
    assert!(
        warning.contains("does not hold: cache (10.1.0.3) → db (10.1.0.2) tcp/5432"),
        "{warning}"
    );
    // Who touches the invariant has to mend what it says.
    let answer = operator.apply(&nobody.replace("ssh", "this")).await;
    assert_eq!(answer.problems.len(), 1, "{:?}", answer.problems);
}

/// Waits until the one invariant that there is has come to a state.
async fn eventually(lab: &Lab, state: &'static str) {
    let metrics = &lab.controller.core.metrics;
    let began = Instant::now();
    while metrics.invariants(state).get() != 1 {
        assert!(began.elapsed() < Duration::from_secs(20), "never {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn hostile_texts_are_refused_in_bounded_time() {
    let (_lab, operator) = lab().await;
    let before = revision(&operator).await;
    let bomb = (1..30).fold(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(),
        |text, level| {
            let list = vec![format!("*a{}", level - 1); 9].join(", ");
            text + &format!("a{level}: &a{level} [{list}]\n")
        },
    );
    let unknown_tag =
        "apiVersion: cofferdam.dev/v1\nkind: !!python/object/apply:os.system [id]\n".to_owned();
    for text in [
        bomb,
        "[".repeat(100_000),
        "- ".repeat(1_000_000),
        "---\n{}\n".repeat(200_000),
        "x".repeat(3 << 20),
        unknown_tag,
        "\u{0}".to_owned(),
    ] {
        let began = Instant::now();
        let answer = operator.apply(&text).await;
        assert!(
            !answer.problems.is_empty(),
            "{}",
            text.chars().take(40).collect::<String>()
        );
        let place = &answer.problems[0];
        assert!(
            place.line > 0 && place.column > 0 && !place.file.is_empty(),
            "{place:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    // What is longer than a message may be does not reach the parser.
    for length in [7 << 20, 20 << 20] {
        let mut client = PoliciesClient::new(operator.channel.clone());
        let request = v1::ApplyRequest {
            options: options(),
            files: vec![v1::SourceFile {
                name: "long.yaml".to_owned(),
                text: "x".repeat(length),
            }],
            ..v1::ApplyRequest::default()
        };
        let refused = match client.apply(request).await {
            Err(_) => true,
            Ok(answer) => !answer.into_inner().problems.is_empty(),
        };
        assert!(refused, "{length} bytes");
    }
    assert_eq!(revision(&operator).await, before, "nothing was applied");
}
