//! Isolation: who is told, how fast, and how it ends.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

mod common;

use common::{Agent, Lab, Operator, content, eventually, options};
use policy::snapshot::{Mode, Snapshot};
use proto::v1;
use proto::v1::inventory_client::InventoryClient;
use proto::v1::responses_client::ResponsesClient;
use tonic::Code;

async fn agents(lab: &Lab) -> (Operator, Agent, Agent) {
    let operator = lab.operator().await;
    let address = lab.controller.address;
    let web = Agent::join(address, &operator, "web", &["10.1.0.1"], &[("app", "web")]).await;
    let db = Agent::join(address, &operator, "db", &["10.1.0.2"], &[("app", "db")]).await;
    (operator, web, db)
}

fn isolate(workload: &str, ttl: u32, wait: u32) -> v1::IsolateRequest {
    v1::IsolateRequest {
        options: options(),
        workload: workload.into(),
        ttl_seconds: ttl,
        reason: "test".into(),
        wait_milliseconds: wait,
    }
}

fn restore(workload: &str, wait: u32) -> v1::RestoreRequest {
    v1::RestoreRequest {
        options: options(),
        workload: workload.into(),
        wait_milliseconds: wait,
    }
}

async fn everybody_verified(operator: &Operator) {
    let mut client = proto::v1::status_client::StatusClient::new(operator.channel.clone());
    eventually("everybody has verified", async || {
        let status = client
            .get(v1::GetStatusRequest {})
            .await
            .expect("a status")
            .into_inner();
        let all = status
            .agents
            .iter()
            .all(|agent| agent.digest_matches && agent.connected);
        all.then_some(())
    })
    .await;
}

fn isolated(snapshot: &Snapshot) -> Vec<String> {
    let bound = snapshot.addresses.iter().filter(|binding| binding.isolated);
    bound
        .map(|binding| binding.net.addr().to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolation_is_verified_everywhere_with_its_times() {
    let lab = Lab::new().await;
    let (operator, web, db) = agents(&lab).await;
    let tasks = [web.obey(), db.obey()];
    everybody_verified(&operator).await;
    let mut client = ResponsesClient::new(operator.channel.clone());
    let request = isolate("web", 0, 10_000);
    let answer = client
        .isolate(request.clone())
        .await
        .expect("isolated")
        .into_inner();
    assert_eq!(
        (answer.agents_affected, answer.agents_verified),
        (2, 2),
        "{answer:?}"
    );
    assert!(answer.not_verified.is_empty());
    assert!(
        0.0 < answer.stored_ms
            && answer.stored_ms <= answer.sent_ms
            && answer.sent_ms <= answer.verified_ms,
        "{answer:?}"
    );
    eprintln!(
        "stored {:.1} ms, sent {:.1} ms, verified {:.1} ms",
        answer.stored_ms, answer.sent_ms, answer.verified_ms
    );
    let again = client
        .isolate(request)
        .await
        .expect("repeated")
        .into_inner();
    assert_eq!(again.revision, answer.revision);
    let mut inventory = InventoryClient::new(operator.channel.clone());
    let listed = inventory
        .list_workloads(v1::ListWorkloadsRequest::default())
        .await
        .expect("listed")
        .into_inner();
    let web_info = listed
        .workloads
        .iter()
        .find(|workload| workload.name == "web")
        .expect("web");
    assert_eq!(web_info.mode(), v1::Mode::Isolate);
    let answer = client
        .restore(restore("web", 10_000))
        .await
        .expect("restored")
        .into_inner();
    assert_eq!(answer.agents_verified, 2);
    let twice = client
        .restore(restore("web", 0))
        .await
        .expect_err("refused");
    assert_eq!(twice.code(), Code::FailedPrecondition);
    let nobody = client
        .isolate(isolate("nobody", 0, 0))
        .await
        .expect_err("refused");
    assert_eq!(nobody.code(), Code::NotFound);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn who_does_not_answer_is_named() {
    let lab = Lab::new().await;
    let (operator, web, db) = agents(&lab).await;
    let (_silent, _) = web.start().await;
    let obedient = db.obey();
    everybody_verified(&operator).await;
    let mut client = ResponsesClient::new(operator.channel.clone());
    let answer = client
        .isolate(isolate("web", 0, 300))
        .await
        .expect("isolated")
        .into_inner();
    assert_eq!(answer.not_verified, ["web"]);
    assert_eq!(answer.agents_verified, 1);
    obedient.abort();
}

#[tokio::test]
async fn an_isolation_overtakes_and_holds_in_the_fallback() {
    let lab = Lab::new().await;
    let (operator, web, db) = agents(&lab).await;
    let (mut session, _) = web.start().await;
    let (_other, _) = db.start().await;
    everybody_verified(&operator).await;
    // A change waits for its confirmation, and its push for an answer.
    let change = "
apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: all}
spec: {subject: all, mode: enforce}
";
    let applied = operator.apply_within(change, 60).await;
    assert!(applied.confirm_deadline.is_some());
    let waiting = session.push().await;
    assert!(!waiting.urgent && waiting.fallback.is_some());
    let mut client = ResponsesClient::new(operator.channel.clone());
    client.isolate(isolate("db", 0, 0)).await.expect("isolated");
    // Nobody answered the push before: the isolation does not wait for that.
    let urgent = session.push().await;
    assert!(urgent.urgent);
    assert!(
        (40..=60).contains(&urgent.confirm_within_seconds),
        "{}",
        urgent.confirm_within_seconds
    );
    let now = content(&urgent);
    let wire = urgent.fallback.as_ref().expect("a fallback");
    let fallback = Snapshot::try_from(wire).expect("it converts");
    assert_eq!(isolated(&now), ["10.1.0.2"]);
    assert_eq!(isolated(&fallback), ["10.1.0.2"]);
    assert_eq!(
        (now.endpoints[0].mode, fallback.endpoints[0].mode),
        (Mode::Enforce, Mode::Observe)
    );
    assert!(now.revision > applied.revision && fallback.revision == now.revision);
}

#[tokio::test]
async fn an_isolation_ends_by_itself() {
    let lab = Lab::new().await;
    let (operator, web, db) = agents(&lab).await;
    let (mut session, first) = web.start().await;
    let (_other, _) = db.start().await;
    everybody_verified(&operator).await;
    let mut client = ResponsesClient::new(operator.channel.clone());
    client.isolate(isolate("db", 1, 0)).await.expect("isolated");
    let push = session.push().await;
    assert_eq!(isolated(&content(&push)), ["10.1.0.2"]);
    session.ack(&push).await;
    let back = session.push().await;
    assert_eq!(back.digest, first.digest);
    assert!(back.urgent);
    let audit = lab.controller.core.store.audit(1).await.expect("the log");
    assert_eq!(
        (audit[0].actor.as_str(), audit[0].action.as_str()),
        ("controller", "workload.restore")
    );
}

#[tokio::test]
async fn who_comes_back_or_drifts_is_told_the_fallback_with_its_isolations() {
    let lab = Lab::new().await;
    let (operator, web, db) = agents(&lab).await;
    let (session, first) = web.start().await;
    let (_other, _) = db.start().await;
    everybody_verified(&operator).await;
    let change = "
apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: all}
spec: {subject: all, mode: enforce}
";
    operator.apply_within(change, 60).await;
    drop(session);
    let mut client = ResponsesClient::new(operator.channel.clone());
    client.isolate(isolate("db", 0, 0)).await.expect("isolated");
    let hello = web.hello(content(&first).revision, &first.digest);
    let mut session = web.sync(hello).await.expect("a session");
    let told = session.push().await;
    let drifted = v1::SnapshotAck {
        revision: content(&told).revision,
        nonce: told.nonce,
        digest: vec![1; 32],
        ..v1::SnapshotAck::default()
    };
    session.send(v1::agent_message::Message::Ack(drifted)).await;
    let again = session.push().await;
    for push in [told, again] {
        assert!(push.confirm_within_seconds > 0);
        let wire = push.fallback.as_ref().expect("a fallback");
        let fallback = Snapshot::try_from(wire).expect("it converts");
        assert_eq!(isolated(&content(&push)), ["10.1.0.2"]);
        assert_eq!(isolated(&fallback), ["10.1.0.2"]);
        assert_eq!(fallback.endpoints[0].mode, Mode::Observe);
    }
}
