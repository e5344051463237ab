//! Who may do what, over real connections.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

mod common;

use std::time::Duration;

use common::{Agent, Lab, channel, csr, enroll, eventually, options, pem};
use controller::auth::Identity;
use proto::v1;
use proto::v1::agent_sync_client::AgentSyncClient;
use proto::v1::flow_ingest_client::FlowIngestClient;
use proto::v1::inventory_client::InventoryClient;
use proto::v1::policies_client::PoliciesClient;
use proto::v1::status_client::StatusClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Channel;

async fn status(channel: &Channel) -> Result<v1::GetStatusResponse, tonic::Status> {
    let mut client = StatusClient::new(channel.clone());
    Ok(client.get(v1::GetStatusRequest {}).await?.into_inner())
}

fn code<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> Code {
    result.expect_err("refused").code()
}

#[tokio::test]
async fn a_token_works_once() {
    let lab = Lab::new().await;
    let (address, operator) = (lab.controller.address, lab.operator().await);
    let token = operator
        .token("shop/web-1", &["10.1.0.0/24"], &[("app", "web")])
        .await;
    let (first, _) = csr();
    // What the token does not cover does not use it up.
    let foreign = enroll(address, &operator.ca, &token, &first, &["10.2.0.1"]).await;
    assert_eq!(code(foreign), Code::PermissionDenied);
    let enrolled = enroll(address, &operator.ca, &token, &first, &["10.1.0.7"])
        .await
        .expect("enrolled");
    assert_eq!(enrolled.spiffe_id, "spiffe://test/agent/shop/web-1");
    assert_eq!(enrolled.workload, "shop/web-1");
    // The answer was lost: the same request again.
    enroll(address, &operator.ca, &token, &first, &["10.1.0.7"])
        .await
        .expect("repeated");
    // Somebody else with the same token.
    let second = enroll(address, &operator.ca, &token, &csr().0, &["10.1.0.7"]).await;
    assert_eq!(code(second), Code::Unauthenticated);
    // Another's address.
    let other = operator.token("web-2", &["10.1.0.0/24"], &[]).await;
    let stolen = enroll(address, &operator.ca, &other, &csr().0, &["10.1.0.7"])
        .await
        .expect_err("refused");
    assert!(
        stolen.message().contains("belongs to shop/web-1"),
        "{stolen}"
    );
    // Forged, malformed, of another secret.
    let (id, _) = token.split_once('.').expect("two parts");
    for bad in [
        format!("{id}.{}", "A".repeat(43)),
        "cfd-0.0".into(),
        String::new(),
    ] {
        assert_eq!(
            code(enroll(address, &operator.ca, &bad, &first, &[]).await),
            Code::Unauthenticated
        );
    }
    let rubbish = enroll(address, &operator.ca, &other, b"rubbish", &["10.1.0.8"]).await;
    assert_eq!(code(rubbish), Code::InvalidArgument);
    // Workload, labels and addresses are there.
    let mut inventory = InventoryClient::new(operator.channel.clone());
    let listed = inventory
        .list_workloads(v1::ListWorkloadsRequest::default())
        .await
        .expect("listed")
        .into_inner();
    assert_eq!(listed.workloads[0].name, "shop/web-1");
    assert_eq!(listed.workloads[0].labels["app"], "web");
    assert_eq!(listed.workloads[0].addresses, common::wire(&["10.1.0.7"]));
    // Every refusal is in the audit log, and the secret is not.
    let audit = lab.controller.core.store.audit(100).await.expect("the log");
    assert!(
        audit
            .iter()
            .any(|entry| entry.action == "agent.enroll" && entry.detail.contains("belongs to"))
    );
    assert!(!audit.iter().any(|entry| {
        entry
            .detail
            .contains(token.split_once('.').expect("two parts").1)
    }));
}

#[tokio::test]
async fn a_token_expires() {
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let request = v1::CreateTokenRequest {
        options: options(),
        workload: "web".into(),
        addresses: vec![common::net("10.1.0.1").into()],
        ttl_seconds: 1,
        ..v1::CreateTokenRequest::default()
    };
    let mut inventory = InventoryClient::new(operator.channel.clone());
    let created = inventory
        .create_token(request.clone())
        .await
        .expect("a token")
        .into_inner();
    assert_eq!(
        created.ca_sha256,
        lab.controller.core.authority.fingerprint()
    );
    // A token is shown once.
    assert_eq!(
        code(inventory.create_token(request).await),
        Code::AlreadyExists
    );
    eventually("the token expires", async || {
        // Nothing else is wrong with it: refused for its address until it has expired.
        let refused = enroll(
            lab.controller.address,
            &operator.ca,
            &created.token,
            &csr().0,
            &["10.9.9.9"],
        )
        .await;
        (code(refused) == Code::Unauthenticated).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_a_certificate_there_is_only_enrolment() {
    let lab = Lab::new().await;
    let ca = std::fs::read_to_string(lab.controller.operator_dir.join("ca.pem")).expect("a CA");
    let stranger = channel(lab.controller.address, &ca, None).await;
    assert_eq!(code(status(&stranger).await), Code::Unauthenticated);
    let mut sync = AgentSyncClient::new(stranger.clone());
    assert_eq!(
        code(sync.sync(tokio_stream::empty()).await),
        Code::Unauthenticated
    );
    let mut flows = FlowIngestClient::new(stranger.clone());
    assert_eq!(
        code(flows.export(tokio_stream::empty()).await),
        Code::Unauthenticated
    );
    let mut health = tonic_health::pb::health_client::HealthClient::new(stranger);
    let checked = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await;
    assert_eq!(code(checked), Code::Unauthenticated);
}

#[tokio::test]
async fn the_authority_is_shown_to_who_knows_its_hash_only() {
    let lab = Lab::new().await;
    let mut roots = rustls::RootCertStore::empty();
    let authority = &lab.controller.core.authority;
    roots.add(authority.certificate().clone()).expect("a CA");
    let mut config = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("versions")
    .with_root_certificates(roots)
    .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(lab.controller.address)
        .await
        .expect("it connects");
    let name = "cofferdam-controller".try_into().expect("a name");
    let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(name, tcp)
        .await;
    let tls = tls.expect("a handshake");
    let chain = tls.get_ref().1.peer_certificates().expect("a chain");
    assert_eq!(chain.last(), Some(authority.certificate()));
}

#[tokio::test]
async fn agents_and_people_keep_to_their_services() {
    let lab = Lab::new().await;
    let (operator, agent) = (lab.operator().await, lab.agent("web", "10.1.0.1").await);
    assert_eq!(code(status(&agent.channel).await), Code::PermissionDenied);
    let mut policies = PoliciesClient::new(agent.channel.clone());
    let applied = policies.apply(v1::ApplyRequest::default()).await;
    assert_eq!(code(applied), Code::PermissionDenied);
    let mut sync = AgentSyncClient::new(operator.channel.clone());
    assert_eq!(
        code(sync.sync(tokio_stream::empty()).await),
        Code::PermissionDenied
    );
    let mut health = tonic_health::pb::health_client::HealthClient::new(agent.channel.clone());
    health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .expect("well");
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
            operator.channel,
        );
    reflection
        .server_reflection_info(tokio_stream::empty())
        .await
        .expect("it reflects");
}

#[tokio::test]
async fn certificates_of_others_are_refused() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    let read = |name: &str| {
        std::fs::read_to_string(other.controller.operator_dir.join(name)).expect("a bundle")
    };
    let ca = std::fs::read_to_string(lab.controller.operator_dir.join("ca.pem")).expect("a CA");
    // TLS 1.3 tells the client only after the handshake, so that the first call fails.
    let result = {
        let tls = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(&ca))
            .domain_name("cofferdam-controller")
            .identity(tonic::transport::Identity::from_pem(
                read("cert.pem"),
                read("key.pem"),
            ));
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("https://{}", lab.controller.address))
                .and_then(|endpoint| endpoint.tls_config(tls))
                .expect("an endpoint");
        match endpoint.connect().await {
            Ok(channel) => status(&channel).await.map_err(|_| ()),
            Err(_) => Err(()),
        }
    };
    assert!(result.is_err());
    assert!(status(&lab.operator().await.channel).await.is_ok());
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let lab = Lab::new().await;
    let address = lab.controller.address;
    let mut silent = Vec::new();
    for garbage in [
        &b"\x16\x03\x01\xff\xff"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 70_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.expect("it connects");
        // The server may hang up while we speak.
        let _hung_up = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _hung_up =
            tokio::time::timeout(Duration::from_millis(50), stream.read_to_end(&mut answer)).await;
        silent.push(stream);
    }
    // Those who say nothing do not keep others out.
    for _ in 0..50 {
        silent.push(TcpStream::connect(address).await.expect("it connects"));
    }
    assert!(status(&lab.operator().await.channel).await.is_ok());
    drop(silent);
}

#[tokio::test]
async fn an_agent_claims_its_own_addresses_only() {
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let mut agent = Agent::join(lab.controller.address, &operator, "web", &["10.1.0.1"], &[]).await;
    lab.agent("db", "10.1.0.2").await;
    for foreign in ["10.1.0.2", "10.1.0.3", "127.0.0.1", "0.0.0.0"] {
        agent.addresses = vec![foreign.into()];
        let mut session = agent.sync(agent.hello(0, &[])).await.expect("a stream");
        let told = session.next().await.expect("a word");
        assert!(
            matches!(told, v1::controller_message::Message::Refused(_)),
            "{told:?}"
        );
        assert_eq!(code(session.next().await), Code::PermissionDenied);
    }
    let audit = lab.controller.core.store.audit(100).await.expect("the log");
    assert_eq!(
        audit
            .iter()
            .filter(|entry| entry.action == "agent.hello")
            .count(),
        4
    );
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_until_it_enrols_again() {
    let lab = Lab::new().await;
    let operator = lab.operator().await;
    let agent = lab.agent("web", "10.1.0.1").await;
    let (mut session, _) = agent.start().await;
    let request = v1::RevokeAgentRequest {
        options: options(),
        workload: "web".into(),
    };
    InventoryClient::new(operator.channel.clone())
        .revoke_agent(request)
        .await
        .expect("revoked");
    assert_eq!(code(session.next().await), Code::Unauthenticated);
    let again = agent.sync(agent.hello(0, &[])).await;
    assert_eq!(
        again.err().map(|status| status.code()),
        Some(Code::Unauthenticated)
    );
    let mut renew = AgentSyncClient::new(agent.channel.clone());
    assert_eq!(
        code(renew.renew(v1::RenewRequest { csr_der: csr().0 }).await),
        Code::Unauthenticated
    );
    // With a new token it is back, and the old certificate is worth nothing.
    let back = lab.agent("web", "10.1.0.1").await;
    back.start().await;
    let old = agent.sync(agent.hello(0, &[])).await;
    assert_eq!(
        old.err().map(|status| status.code()),
        Some(Code::Unauthenticated)
    );
}

#[tokio::test]
async fn certificates_are_renewed_and_end() {
    let lab = Lab::new().await;
    let agent = lab.agent("web", "10.1.0.1").await;
    let (request, key) = csr();
    let mut sync = AgentSyncClient::new(agent.channel.clone());
    let renewed = sync
        .renew(v1::RenewRequest {
            csr_der: request.clone(),
        })
        .await
        .expect("renewed")
        .into_inner();
    let cert = pem(&renewed.certificate_chain_der[0]);
    let fresh = channel(
        lab.controller.address,
        &agent.ca,
        Some((&cert, &key.serialize_pem())),
    )
    .await;
    let fresh = Agent {
        channel: fresh,
        ..agent.clone()
    };
    let (_session, _) = fresh.start().await;

    // A certificate that ends while its connection lives: the session ends with it.
    let identity = Identity::Agent("web".into());
    let authority = &lab.controller.core.authority;
    let short = authority
        .sign(&request, &identity, 1, Duration::from_secs(2))
        .expect("signed");
    let cert = pem(&short.certificate);
    let ending = channel(
        lab.controller.address,
        &agent.ca,
        Some((&cert, &key.serialize_pem())),
    )
    .await;
    let ending = Agent {
        channel: ending,
        ..agent
    };
    let (mut session, _) = ending.start().await;
    assert_eq!(code(session.next().await), Code::Unauthenticated);
}

#[tokio::test]
async fn an_older_enrolment_does_not_come_back_with_its_used_token() {
    let lab = Lab::new().await;
    let (address, operator) = (lab.controller.address, lab.operator().await);
    let ((old, _), (new, _)) = (csr(), csr());
    let first = operator.token("web", &["10.1.0.7"], &[]).await;
    let second = operator.token("web", &["10.1.0.7"], &[]).await;
    for (token, csr) in [(&first, &old), (&first, &old), (&second, &new)] {
        enroll(address, &operator.ca, token, csr, &["10.1.0.7"])
            .await
            .expect("enrolled, or told again");
    }
    let back = enroll(address, &operator.ca, &first, &old, &["10.1.0.7"]).await;
    assert_eq!(code(back), Code::Unauthenticated);
    enroll(address, &operator.ca, &second, &new, &["10.1.0.7"])
        .await
        .expect("the newest is told again");
}

#[tokio::test]
async fn who_claims_too_many_addresses_is_refused_and_stops_nobody() {
    let lab = Lab::with(|config| {
        config.limits.addresses = 50;
        config.limits.workload_addresses = 40;
    })
    .await;
    let (address, operator) = (lab.controller.address, lab.operator().await);
    let good = Agent::join(address, &operator, "good", &["10.2.0.0"], &[]).await;
    let obeys = good.obey();
    let many = |count| {
        (0..count)
            .map(|n| format!("10.1.0.{n}"))
            .collect::<Vec<_>>()
    };
    let token = operator.token("evil", &["10.1.0.0/24"], &[]).await;
    let claim = many(41);
    let claim: Vec<&str> = claim.iter().map(String::as_str).collect();
    let (request, key) = csr();
    let greedy = enroll(address, &operator.ca, &token, &request, &claim)
        .await
        .expect_err("refused");
    assert_eq!(greedy.code(), Code::PermissionDenied);
    assert!(greedy.message().contains("41") && greedy.message().contains("40"));
    let enrolled = enroll(address, &operator.ca, &token, &request, &claim[..1])
        .await
        .expect("enrolled");
    let (cert, key) = (pem(&enrolled.certificate_chain_der[0]), key.serialize_pem());
    let mut evil = Agent {
        name: "evil".into(),
        channel: channel(address, &operator.ca, Some((&cert, &key))).await,
        cert,
        key,
        ..good.clone()
    };
    // More than one may have; and, with others that have theirs, more than everybody's tables hold.
    for (count, limit, others) in [(41, "workload_addresses", 0), (40, "limits.addresses", 15)] {
        let name = format!("other-{others}");
        let prefix: Vec<String> = (0..others).map(|n| format!("10.3.0.{n}")).collect();
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        if others > 0 {
            Agent::join(address, &operator, &name, &prefix, &[]).await;
        }
        evil.addresses = many(count);
        let mut session = evil.sync(evil.hello(0, &[])).await.expect("a stream");
        let told = session.next().await.expect("a word");
        assert!(
            matches!(&told, v1::controller_message::Message::Refused(why) if why.contains(limit)),
            "{told:?}"
        );
        let seen = status(&operator.channel).await.expect("a status").agents;
        let row = seen.iter().find(|agent| agent.workload == "evil");
        assert!(row.is_some_and(|agent| agent.last_error.contains(limit)));
    }
    let isolate = v1::IsolateRequest {
        options: options(),
        workload: "evil".into(),
        wait_milliseconds: 5_000,
        ..v1::IsolateRequest::default()
    };
    let mut responses = v1::responses_client::ResponsesClient::new(operator.channel.clone());
    let answer = responses
        .isolate(isolate)
        .await
        .expect("isolated")
        .into_inner();
    assert_eq!(answer.agents_verified, 1, "{answer:?}");
    obeys.abort();
}

#[tokio::test]
async fn the_revoked_and_the_refused_are_seen_and_hold_nobody_up() {
    let lab = Lab::new().await;
    let (address, operator) = (lab.controller.address, lab.operator().await);
    let row = async |name: &str| {
        let agents = status(&operator.channel).await.expect("a status").agents;
        agents.into_iter().find(|agent| agent.workload == name)
    };
    // What `status --wait` asks of everybody.
    let counts = |agent: &v1::AgentInfo| {
        agent.digest_matches && agent.verified_revision >= agent.desired_revision
    };
    // Not covered: seen before the workload was ever in.
    let token = operator.token("web", &["10.1.0.1"], &[]).await;
    let foreign = enroll(address, &operator.ca, &token, &csr().0, &["10.9.0.1"]).await;
    assert_eq!(code(foreign), Code::PermissionDenied);
    let seen = row("web").await.expect("listed");
    assert!(
        seen.last_error
            .contains("does not cover the address 10.9.0.1")
    );
    assert!(!counts(&seen), "nobody is no fleet: {seen:?}");
    // In: forgotten. The token again, by somebody else.
    enroll(address, &operator.ca, &token, &csr().0, &["10.1.0.1"])
        .await
        .expect("enrolled");
    assert_eq!(row("web").await.expect("listed").last_error, "");
    let used = enroll(address, &operator.ca, &token, &csr().0, &["10.1.0.1"]).await;
    assert_eq!(code(used), Code::Unauthenticated);
    let seen = row("web").await.expect("listed");
    assert_eq!(seen.last_error, "enrolment refused: the token was used");
    // Who guesses at the secret writes nothing there.
    let (id, _) = token.split_once('.').expect("two parts");
    let db = operator.token("db", &["10.1.0.2"], &[]).await;
    let (db_id, _) = db.split_once('.').expect("two parts");
    for id in [id, db_id] {
        let forged = format!("{id}.{}", "A".repeat(43));
        let forged = enroll(address, &operator.ca, &forged, &csr().0, &[]).await;
        assert_eq!(code(forged), Code::Unauthenticated);
    }
    assert!(row("db").await.is_none());

    let db = lab.agent("db", "10.1.0.2").await;
    let obeys = db.obey();
    let request = v1::RevokeAgentRequest {
        options: options(),
        workload: "web".into(),
    };
    InventoryClient::new(operator.channel.clone())
        .revoke_agent(request)
        .await
        .expect("revoked");
    let agents = eventually("all of the fleet have it", async || {
        let agents = status(&operator.channel).await.expect("a status").agents;
        agents.iter().all(counts).then_some(agents)
    })
    .await;
    assert_eq!(agents.len(), 2);
    assert!(agents[1].last_error.starts_with("revoked") && !agents[1].connected);
    obeys.abort();
}
