//! Policy on its way to agents.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says so by failing"
)]

mod common;

use common::{Agent, Lab, Operator, Wrap as _, content, eventually, options};
use proto::v1::controller_message::Message as Down;
use proto::v1::policies_client::PoliciesClient;
use proto::v1::status_client::StatusClient;
use proto::v1::{self, agent_message};
use tonic::Code;

const ENFORCE: &str = "
apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: all}
spec: {subject: all, mode: enforce}
";

fn allow(port: u16) -> String {
    format!(
        "
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {{name: db}}
spec:
  state: enforced
  subject: {{app: db}}
  ingress:
    - action: allow
      peers: [{{selector: {{app: web}}}}]
      ports: [{{protocol: tcp, port: {port}}}]
"
    )
}

async fn two_agents(lab: &Lab) -> (Operator, Agent, Agent) {
    let operator = lab.operator().await;
    let address = lab.controller.address;
    let db = Agent::join(address, &operator, "db", &["10.1.0.2"], &[("app", "db")]).await;
    let web = Agent::join(address, &operator, "web", &["10.1.0.1"], &[("app", "web")]).await;
    (operator, db, web)
}

async fn info(operator: &Operator, workload: &str) -> v1::AgentInfo {
    let mut client = StatusClient::new(operator.channel.clone());
    let status = client.get(v1::GetStatusRequest {}).await.expect("a status");
    let agents = status.into_inner().agents;
    agents
        .into_iter()
        .find(|agent| agent.workload == workload)
        .expect("it is listed")
}

async fn verified(operator: &Operator, workload: &str) -> v1::AgentInfo {
    eventually("verified", async || {
        let info = info(operator, workload).await;
        (info.digest_matches && info.verified_revision == info.desired_revision).then_some(info)
    })
    .await
}

async fn history(operator: &Operator) -> Vec<v1::HistoryEntry> {
    let mut client = PoliciesClient::new(operator.channel.clone());
    let history = client
        .history(v1::HistoryRequest::default())
        .await
        .expect("a history");
    history.into_inner().entries
}

#[tokio::test]
async fn a_change_reaches_whom_it_concerns_and_is_proved() {
    let lab = Lab::new().await;
    let (operator, db, web) = two_agents(&lab).await;
    let (mut db_session, first) = db.start().await;
    let (mut web_session, _) = web.start().await;
    assert_eq!(content(&first).endpoints[0].name, "db");
    verified(&operator, "db").await;
    let applied = operator.apply(&allow(5432)).await;
    assert_eq!(applied.problems, []);
    assert!(
        applied.affected_agents.contains(&"db".to_owned()),
        "{applied:?}"
    );
    assert_eq!(applied.changes[0].change, "added");
    let push = db_session.push().await;
    assert_eq!(push.confirm_within_seconds, 0);
    assert!(
        content(&push)
            .rule_names
            .iter()
            .any(|rule| rule.name.contains("db/ingress[0]"))
    );
    assert!(info(&operator, "db").await.verified_revision < applied.revision);
    db_session.ack(&push).await;
    let db_info = verified(&operator, "db").await;
    assert_eq!(db_info.verified_revision, applied.revision);
    let web_push = web_session.push().await;
    web_session.ack(&web_push).await;
    verified(&operator, "web").await;

    // Only db is concerned: nothing is sent to web.
    let applied = operator.apply(&allow(5433)).await;
    assert_eq!(applied.affected_agents, ["db"]);
    assert_eq!(applied.changes[0].fields, ["spec.ingress"]);
    let push = db_session.push().await;
    assert_eq!(content(&push).revision, applied.revision);
    db_session.ack(&push).await;
    verified(&operator, "db").await;
    assert!(info(&operator, "web").await.desired_revision < applied.revision);
    // The same again changes nothing.
    let same = operator.apply(&allow(5433)).await;
    assert_eq!(
        (same.revision, same.changes[0].change.as_str()),
        (applied.revision, "unchanged")
    );
}

#[tokio::test]
async fn a_bad_set_is_refused_whole_with_every_problem() {
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let bad = format!(
        "{}---\nkind: Policy\nmetadata: {{name: x}}\nspce: {{}}\n---\n{ENFORCE}",
        allow(0)
    );
    let refused = operator.apply(&bad).await;
    assert!(refused.problems.len() >= 2, "{:?}", refused.problems);
    for problem in &refused.problems {
        assert!(
            problem.file == "p.yaml" && problem.line > 0 && problem.column > 0,
            "{problem:?}"
        );
    }
    let dangling = allow(1).replace("selector: {app: web}", "addressGroup: nobody");
    let refused = operator.apply(&dangling).await;
    assert!(
        refused.problems[0].message.contains("nobody"),
        "{refused:?}"
    );
    let mut client = PoliciesClient::new(operator.channel.clone());
    let listed = client
        .list(v1::ListObjectsRequest::default())
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(listed.objects, []);
    assert_eq!(history(&operator).await, []);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_numbers() {
    let lab = Lab::with(|config| config.limits.rules = 3).await;
    let (operator, ..) = two_agents(&lab).await;
    let ports: Vec<_> = (1..40)
        .map(|n| format!("{{protocol: tcp, port: {}}}", n * 3))
        .collect();
    let wide = allow(1).replace("{protocol: tcp, port: 1}", &ports.join(", "));
    let refused = operator.apply(&wide).await;
    assert!(
        refused.problems[0].message.contains("hold 3"),
        "{:?}",
        refused.problems
    );
    assert_eq!(history(&operator).await, []);
}

#[tokio::test]
async fn mutations_are_idempotent_and_look_before_they_leap() {
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let mut client = PoliciesClient::new(operator.channel.clone());
    let file = |text: &str| {
        vec![v1::SourceFile {
            name: "p.yaml".into(),
            text: text.into(),
        }]
    };
    let mut request = v1::ApplyRequest {
        options: options(),
        files: file(&allow(1)),
        ..v1::ApplyRequest::default()
    };
    let option = |request: &mut v1::ApplyRequest, change: &dyn Fn(&mut v1::MutationOptions)| {
        change(request.options.as_mut().expect("options"));
    };
    option(&mut request, &|options| options.dry_run = true);
    client.apply(request.clone()).await.expect("tried");
    assert_eq!(history(&operator).await, []);
    option(&mut request, &|options| options.dry_run = false);
    let first = client
        .apply(request.clone())
        .await
        .expect("applied")
        .into_inner();
    let again = client
        .apply(request.clone())
        .await
        .expect("repeated")
        .into_inner();
    assert_eq!(first, again);
    assert_eq!(history(&operator).await.len(), 1);
    // The key for something else, no key, and a state that moved on.
    request.files = file(&allow(2));
    let code = |result: Result<_, tonic::Status>| result.map(drop).expect_err("refused").code();
    assert_eq!(
        code(client.apply(request.clone()).await),
        Code::InvalidArgument
    );
    request.options = None;
    assert_eq!(
        code(client.apply(request.clone()).await),
        Code::InvalidArgument
    );
    operator.apply(&allow(3)).await;
    request.options = options();
    option(&mut request, &|options| {
        options.expected_revision = first.revision
    });
    assert_eq!(code(client.apply(request.clone()).await), Code::Aborted);
    // Prune, and back again.
    request = v1::ApplyRequest {
        options: options(),
        prune: true,
        ..v1::ApplyRequest::default()
    };
    let pruned = client.apply(request).await.expect("pruned").into_inner();
    assert_eq!(pruned.changes[0].change, "removed");
    let rollback = v1::RollbackRequest {
        options: options(),
        to_revision: first.revision,
    };
    client.rollback(rollback).await.expect("rolled back");
    let listed = client
        .list(v1::ListObjectsRequest::default())
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(listed.objects[0].text.trim(), allow(1).trim());
    assert_eq!(history(&operator).await[0].action, "rollback");
}

#[tokio::test]
async fn a_nack_is_kept_and_the_next_change_offered() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let (mut session, first) = db.start().await;
    let before = verified(&operator, "db").await;
    operator.apply(&allow(1)).await;
    let push = session.push().await;
    let nack = v1::SnapshotNack {
        revision: content(&push).revision,
        nonce: push.nonce,
        reason: "the map is full: 12 of 10".into(),
    };
    session.send(agent_message::Message::Nack(nack)).await;
    let told = eventually("the reason is told", async || {
        Some(info(&operator, "db").await).filter(|info| !info.last_error.is_empty())
    })
    .await;
    assert!(told.last_error.contains("12 of 10"));
    assert_eq!(told.verified_revision, before.verified_revision);
    assert!(!told.digest_matches);
    operator.apply(&allow(2)).await;
    let push = session.push().await;
    session.ack(&push).await;
    let fine = verified(&operator, "db").await;
    assert_eq!(fine.last_error, "");
    assert_ne!(push.digest, first.digest);
}

#[tokio::test]
async fn who_has_it_already_is_sent_nothing() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let (session, push) = db.start().await;
    verified(&operator, "db").await;
    drop(session);
    let hello = db.hello(content(&push).revision, &push.digest);
    let mut session = db.sync(hello).await.expect("a session");
    verified(&operator, "db").await;
    // The first thing it hears is the next change.
    let applied = operator.apply(&allow(1)).await;
    let next = session.push().await;
    assert_eq!(content(&next).revision, applied.revision);
    session.ack(&next).await;
    // Another content under the same number is not believed.
    drop(session);
    let mut session = db
        .sync(db.hello(applied.revision, &[0; 32]))
        .await
        .expect("a session");
    assert_eq!(session.push().await.digest, next.digest);
}

#[tokio::test]
async fn a_wrong_digest_is_no_proof() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let mut session = db.sync(db.hello(0, &[])).await.expect("a session");
    let push = session.push().await;
    let ack = v1::SnapshotAck {
        revision: content(&push).revision,
        nonce: push.nonce,
        digest: vec![1; 32],
        ..v1::SnapshotAck::default()
    };
    session.send(agent_message::Message::Ack(ack)).await;
    // It is sent again, and told to whoever asks.
    let again = session.push().await;
    assert_eq!(again.digest, push.digest);
    let told = info(&operator, "db").await;
    assert!(
        !told.digest_matches && told.last_error.contains("other content"),
        "{told:?}"
    );
    session.ack(&again).await;
    verified(&operator, "db").await;
}

#[tokio::test]
async fn a_newer_push_takes_the_place_of_one_not_sent() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let mut session = db.sync(db.hello(0, &[])).await.expect("a session");
    let first = session.push().await;
    // While the agent is busy with the first, three changes come.
    operator.apply(&allow(1)).await;
    operator.apply(&allow(2)).await;
    let last = operator.apply(&allow(3)).await;
    lab.controller.core.hub.planned(last.revision).await;
    session.ack(&first).await;
    let next = session.push().await;
    assert_eq!(content(&next).revision, last.revision);
    session.ack(&next).await;
    verified(&operator, "db").await;
}

#[tokio::test]
async fn a_second_session_takes_the_first_ones_place() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let (mut old, _) = db.start().await;
    let (_new, _) = db.start().await;
    assert_eq!(old.next().await.expect_err("ended").code(), Code::Aborted);
    assert!(verified(&operator, "db").await.connected);
    // Nonsense ends a session and nothing else.
    let mut odd = db.sync(db.hello(0, &[])).await.expect("a session");
    odd.push().await;
    odd.up
        .send(v1::AgentMessage::default())
        .await
        .expect("open");
    assert_eq!(
        odd.next().await.expect_err("ended").code(),
        Code::InvalidArgument
    );
    let mut odd = db.sync(db.hello(0, &[])).await.expect("a session");
    odd.push().await;
    odd.up
        .send(agent_message::Message::Hello(db.hello(0, &[])).wrap())
        .await
        .expect("open");
    assert_eq!(
        odd.next().await.expect_err("ended").code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_change_that_denies_more_waits_for_its_confirmation() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let (mut session, _) = db.start().await;
    operator.apply(&allow(5432)).await;
    let push = session.push().await;
    session.ack(&push).await;
    verified(&operator, "db").await;
    // From observe to enforce: something that passed is dropped now.
    let applied = operator.apply_within(ENFORCE, 0).await;
    assert!(
        applied.denies_more && applied.confirm_deadline.is_some(),
        "{applied:?}"
    );
    let push = session.push().await;
    assert!(
        (50..=60).contains(&push.confirm_within_seconds),
        "{}",
        push.confirm_within_seconds
    );
    session.ack(&push).await;
    eventually("pending", async || {
        info(&operator, "db").await.pending.then_some(())
    })
    .await;
    assert_eq!(history(&operator).await[0].state, "pending");
    let mut client = PoliciesClient::new(operator.channel.clone());
    let second = client
        .apply(v1::ApplyRequest {
            options: options(),
            ..Default::default()
        })
        .await;
    assert_eq!(
        second.expect_err("refused").code(),
        Code::FailedPrecondition
    );
    let confirm = v1::ConfirmRequest {
        options: options(),
        revision: 0,
    };
    client.confirm(confirm.clone()).await.expect("confirmed");
    client.confirm(confirm).await.expect("repeated");
    match session.next().await.expect("a word") {
        Down::Confirm(confirm) => assert_eq!(confirm.revision, applied.revision),
        other => panic!("{other:?}"),
    }
    assert_eq!(history(&operator).await[0].state, "confirmed");
    assert!(!verified(&operator, "db").await.pending);
    let nothing = v1::ConfirmRequest {
        options: options(),
        revision: 0,
    };
    assert_eq!(
        client.confirm(nothing).await.expect_err("refused").code(),
        Code::FailedPrecondition
    );
}

#[tokio::test]
async fn without_a_confirmation_the_old_content_comes_back() {
    let lab = Lab::new().await;
    let (operator, db, _) = two_agents(&lab).await;
    let (mut session, first) = db.start().await;
    verified(&operator, "db").await;
    let applied = operator
        .apply_within(&format!("{ENFORCE}---\n{}", allow(1)), 1)
        .await;
    let push = session.push().await;
    assert_eq!(push.confirm_within_seconds, 1);
    session.ack(&push).await;
    // The controller itself goes back: same content, new number.
    let back = session.push().await;
    assert_eq!(back.digest, first.digest);
    assert!(content(&back).revision > applied.revision);
    assert_eq!(back.confirm_within_seconds, 0);
    session.ack(&back).await;
    verified(&operator, "db").await;
    let history = history(&operator).await;
    assert_eq!(history[0].action, "fall-back");
    assert_eq!(
        (history[1].revision, history[1].state.as_str()),
        (applied.revision, "rolled-back")
    );
    let mut client = PoliciesClient::new(operator.channel.clone());
    let listed = client
        .list(v1::ListObjectsRequest::default())
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(listed.objects, []);
}

#[tokio::test]
async fn explain_and_watch_answer() {
    let lab = Lab::new().await;
    let (operator, ..) = two_agents(&lab).await;
    operator
        .apply(&format!("{ENFORCE}---\n{}", allow(5432)))
        .await;
    let mut client = PoliciesClient::new(operator.channel.clone());
    let mut ask = async |from: &str, port| {
        let request = v1::ExplainRequest {
            from: from.into(),
            to: "db".into(),
            protocol: 6,
            port,
        };
        client.explain(request).await
    };
    let denied = ask("10.9.9.9", 5432).await.expect("explained").into_inner();
    assert!(!denied.enforced_allow, "{denied:?}");
    let allowed = ask("web", 5432).await.expect("explained").into_inner();
    assert!(allowed.json.contains("db/ingress[0]"), "{allowed:?}");
    assert_eq!(
        ask("nobody", 1).await.expect_err("refused").code(),
        Code::InvalidArgument
    );
    assert_eq!(
        ask("web", 65_536).await.expect_err("refused").code(),
        Code::InvalidArgument
    );

    let mut status = StatusClient::new(operator.channel.clone());
    let watch = status
        .watch(v1::GetStatusRequest {})
        .await
        .expect("a stream");
    let mut watch = watch.into_inner();
    let first = watch.message().await.expect("a word").expect("a status");
    operator.apply(&allow(1)).await;
    loop {
        let next = watch.message().await.expect("a word").expect("a status");
        if next.revision > first.revision {
            break;
        }
    }
}

#[tokio::test]
async fn a_host_that_a_policy_does_not_fit_stops_no_other() {
    let lab = Lab::with(|config| config.limits.rules = 8).await;
    let (address, operator) = (lab.controller.address, lab.operator().await);
    let web = Agent::join(address, &operator, "web", &["10.1.0.1"], &[("app", "web")]).await;
    let obeys = web.obey();
    verified(&operator, "web").await;
    let ports: Vec<_> = (1..40)
        .map(|n| format!("{{protocol: tcp, port: {}}}", n * 3))
        .collect();
    let wide = allow(1).replace("{protocol: tcp, port: 1}", &ports.join(", "));
    // Fits all that there are; then comes one that it does not fit.
    let applied = operator.apply(&wide).await;
    assert_eq!(applied.problems, []);
    let db = Agent::join(address, &operator, "db", &["10.1.0.2"], &[("app", "db")]).await;
    let db_obeys = db.obey();
    let told = eventually("it is told why", async || {
        Some(info(&operator, "db").await).filter(|info| !info.last_error.is_empty())
    })
    .await;
    assert!(told.last_error.contains("hold 8"), "{told:?}");
    assert!(!told.digest_matches, "nothing was proved: {told:?}");
    let isolate = v1::IsolateRequest {
        options: options(),
        workload: "db".into(),
        wait_milliseconds: 10_000,
        ..v1::IsolateRequest::default()
    };
    let mut responses = v1::responses_client::ResponsesClient::new(operator.channel.clone());
    let answer = responses.isolate(isolate).await.expect("isolated");
    let answer = answer.into_inner();
    assert_eq!(
        (answer.agents_affected, answer.agents_verified),
        (2, 1),
        "{answer:?}"
    );
    assert_eq!(answer.not_verified, ["db"]);
    // Changes for others go on; one that makes a further host not fit is refused whole.
    let other = operator.apply(ENFORCE).await;
    assert_eq!(other.problems, []);
    let refused = operator
        .apply(&wide.replace("subject: {app: db}", "subject: {app: web}"))
        .await;
    assert!(refused.problems[0].message.contains("web"), "{refused:?}");
    // As soon as it fits, it is sent.
    operator.apply(&allow(5432)).await;
    let fine = verified(&operator, "db").await;
    assert_eq!(fine.last_error, "");
    obeys.abort();
    db_obeys.abort();
}

#[tokio::test]
async fn an_isolation_that_is_not_planned_in_time_is_not_complete() {
    use controller::state::{WorkloadRecord, key, put};
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let mut change = lab.controller.core.change().await;
    for n in 0..300u32 {
        let address = std::net::Ipv4Addr::from(0x0a01_0000 + n).into();
        let record = WorkloadRecord {
            labels: std::iter::once(("n".into(), n.to_string())).collect(),
            scope: vec![ipnet::IpNet::from(address)],
            addresses: vec![address],
            hostname: String::new(),
            enrolment: 1,
            revoked: false,
            enrolled_at: 0,
        };
        change.op(put(format!("{}w{n}", key::WORKLOAD), &record));
    }
    change.commit().await.expect("written");
    let isolate = v1::IsolateRequest {
        options: options(),
        workload: "w0".into(),
        wait_milliseconds: 1,
        ..v1::IsolateRequest::default()
    };
    let mut responses = v1::responses_client::ResponsesClient::new(operator.channel.clone());
    let answer = responses.isolate(isolate).await.expect("isolated");
    let answer = answer.into_inner();
    assert_eq!((answer.agents_affected, answer.agents_verified), (300, 0));
    assert_eq!(answer.not_verified.len(), 300);
    assert!(answer.not_verified[0].contains("not planned"), "{answer:?}");
}
