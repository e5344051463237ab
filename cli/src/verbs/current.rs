//! What is in force at the controller: its objects and its workloads, for evaluation here.

use std::collections::BTreeSet;

use policy::enrolled::Enrolled;
use policy::problems::Problems;
use policy::set::PolicySet;
use policy::source::Source;
use proto::convert;
use proto::v1::{self, inventory_client::InventoryClient, policies_client::PoliciesClient};

use super::session::pages;
use crate::change::Inventory;
use crate::client::{MAX_ANSWER, Remote};

/// Every stored object. The inner error: an object that this version does not understand.
pub(super) async fn policies(remote: &Remote) -> anyhow::Result<Result<PolicySet, Problems>> {
    let found = pages(usize::MAX, |page_size, page_token| {
        let remote = remote.clone();
        let request = v1::ListObjectsRequest {
            page_size,
            page_token,
            ..v1::ListObjectsRequest::default()
        };
        async move {
            let mut client =
                PoliciesClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER);
            let page = remote.read(client.list(request)).await?;
            Ok((page.objects, page.next_page_token))
        }
    })
    .await?;
    let sources: Vec<Source> = (found.rows.into_iter())
        .map(|object| Source::new(format!("{}/{}", object.kind, object.name), object.text))
        .collect();
    Ok(PolicySet::parse(&sources))
}

/// Every workload whose agent has joined, and what is inside.
pub(super) async fn inventory(remote: &Remote) -> anyhow::Result<Inventory> {
    let around = std::cell::RefCell::new((Vec::new(), 0));
    let found = pages(usize::MAX, |page_size, page_token| {
        let (remote, around) = (remote.clone(), &around);
        let request = v1::ListWorkloadsRequest {
            page_size,
            page_token,
        };
        async move {
            let mut client =
                InventoryClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER);
            let page = remote.read(client.list_workloads(request)).await?;
            around.replace((page.managed_networks, page.default_mode));
            Ok((page.workloads, page.next_page_token))
        }
    })
    .await?;
    let (networks, default_mode) = around.into_inner();
    let isolated: BTreeSet<String> = (found.rows.iter())
        .filter(|workload| workload.isolated)
        .map(|workload| workload.name.clone())
        .collect();
    let enrolled = (found.rows.into_iter())
        .filter(|workload| workload.enrolled)
        .map(|workload| {
            let addresses = (workload.addresses.iter())
                .map(|address| convert::to_address("addresses", Some(address)))
                .collect::<Result<_, _>>()?;
            Ok(Enrolled {
                full_name: workload.name,
                labels: workload.enrolled_labels.into_iter().collect(),
                addresses,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Inventory::Controller {
        managed_networks: convert::to_prefixes("managed_networks", &networks)?,
        default_mode: convert::to_mode("default_mode", default_mode)?,
        enrolled,
        isolated,
    })
}
