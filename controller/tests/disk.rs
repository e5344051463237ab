//! A full disk: said clearly, nothing lost, and over by itself when there is space.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

mod common;

use std::process::Command;

use common::{Agent, Operator};
use controller::Controller;
use proto::v1;
use proto::v1::flows_client::FlowsClient;
use proto::v1::inventory_client::InventoryClient;
use tonic::Code;

/// A small file system that goes when the test does.
struct Tmpfs(tempfile::TempDir);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_over_when_it_is_over() {
    let tmpfs = Tmpfs(tempfile::tempdir().expect("a directory"));
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(tmpfs.0.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: may not mount a tmpfs");
        return;
    }
    let controller = Controller::start(common::config(tmpfs.0.path()))
        .await
        .expect("it starts");
    let operator = Operator::connect(controller.address, &controller.operator_dir).await;
    let agent = Agent::join(controller.address, &operator, "web", &["10.1.0.1"], &[]).await;
    let ballast = tmpfs.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).expect("written");

    let mut export = agent.export().await;
    let records = |sequence: u64| -> Vec<_> {
        (0..200)
            .map(|n| agent.flow(&format!("{sequence}-{n}"), "10.9.0.1", 80))
            .collect()
    };
    let mut sequence = 0;
    let full = loop {
        sequence += 1;
        match export.send(sequence, records(sequence)).await {
            Ok(ack) => assert_eq!(ack.sequence, sequence),
            Err(status) => break status,
        }
        assert!(sequence < 500, "the disk never fills");
    };
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert!(full.message().contains("full"), "{full}");
    // Policy cannot be changed either, and says so; what is there can be looked at.
    let mut inventory = InventoryClient::new(operator.channel.clone());
    let mut refused = None;
    for n in 0..2_000 {
        let request = v1::CreateTokenRequest {
            options: common::options(),
            workload: format!("w{n}"),
            addresses: vec![common::net("10.3.0.0/16").into()],
            ..v1::CreateTokenRequest::default()
        };
        if let Err(status) = inventory.create_token(request).await {
            refused = Some(status);
            break;
        }
    }
    assert_eq!(
        refused.map(|status| status.code()),
        Some(Code::ResourceExhausted)
    );
    let listed = inventory
        .list_workloads(v1::ListWorkloadsRequest::default())
        .await;
    assert_eq!(listed.expect("listed").into_inner().workloads.len(), 1);
    assert!(controller.core.metrics.text().contains("disk_full_total 2"));

    std::fs::remove_file(&ballast).expect("removed");
    let mut export = agent.export().await;
    assert_eq!(export.durable, sequence - 1);
    assert_eq!(
        export
            .send(sequence, records(sequence))
            .await
            .expect("acknowledged")
            .sequence,
        sequence
    );
    let mut flows = FlowsClient::new(operator.channel.clone());
    let edges = flows
        .edges(v1::ListEdgesRequest::default())
        .await
        .expect("edges")
        .into_inner()
        .edges;
    assert_eq!(edges[0].flows, sequence * 200);
    operator.token("w", &["10.3.0.1"], &[]).await;
    controller.stop().await;
}
