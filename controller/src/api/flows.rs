//! Flows: kept ones, live ones, and edges.

use proto::v1::flows_server::Flows;
use proto::{convert, v1};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::{Answers, Api, page_position, page_size};
use crate::core::sql_status;
use crate::flows::Filter;

#[tonic::async_trait]
impl Flows for Api {
    async fn list(
        &self,
        request: Request<v1::ListFlowsRequest>,
    ) -> Result<Response<v1::ListFlowsResponse>, Status> {
        let request = request.into_inner();
        let before: i64 = page_position(&request.page_token)?;
        let size = page_size(request.page_size);
        let listed = self
            .core
            .flows
            .list(filter(request.filter)?, before, size)
            .await;
        let listed = listed.map_err(|error| sql_status(&error))?;
        let (flows, next_page_token) = super::page_of(listed, size);
        Ok(Response::new(v1::ListFlowsResponse {
            flows,
            next_page_token,
        }))
    }

    type FollowStream = Answers<v1::FlowRecord>;

    async fn follow(
        &self,
        request: Request<v1::FollowFlowsRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let filter = filter(request.into_inner().filter)?;
        let mut live = self.ingest.live.subscribe();
        let metrics = self.core.metrics.clone();
        Ok(Response::new(self.stream(|feed| async move {
            loop {
                match live.recv().await {
                    Ok(flow) if filter.matches(&flow) => {
                        if !feed.send(Ok(flow.record.clone())).await {
                            return;
                        }
                    }
                    Ok(_) => {}
                    // Told in a record that is none: it has a state and nothing else.
                    Err(RecvError::Lagged(lost)) => {
                        metrics.follower_lost.inc_by(lost);
                        let notice = v1::FlowRecord {
                            state: format!("lost:{lost}"),
                            ..v1::FlowRecord::default()
                        };
                        if !feed.send(Ok(notice)).await {
                            return;
                        }
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        })))
    }

    async fn edges(
        &self,
        request: Request<v1::ListEdgesRequest>,
    ) -> Result<Response<v1::ListEdgesResponse>, Status> {
        let request = request.into_inner();
        let offset: u32 = page_position(&request.page_token)?;
        let size = page_size(request.page_size);
        let edges = self
            .core
            .flows
            .edges(filter(request.filter)?, offset, size)
            .await;
        let edges = edges.map_err(|error| sql_status(&error))?;
        let full = edges.len() >= usize::try_from(size).unwrap_or(usize::MAX);
        let next = full.then(|| offset.saturating_add(size).to_string());
        Ok(Response::new(v1::ListEdgesResponse {
            edges,
            next_page_token: next.unwrap_or_default(),
        }))
    }
}

fn filter(wire: Option<v1::FlowFilter>) -> Result<Filter, Status> {
    let wire = wire.unwrap_or_default();
    let invalid =
        |error: convert::ConvertError| Status::invalid_argument(error.within("filter").to_string());
    let name = |text: String| {
        (!text.is_empty()).then(|| match text.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_canonical().to_string(),
            Err(_) => text,
        })
    };
    Ok(Filter {
        workload: name(wire.workload),
        peer: name(wire.peer),
        port: Some(convert::to_u16("port", wire.port).map_err(invalid)?).filter(|port| *port > 0),
        denied_only: wire.denied_only,
        protocol: Some(convert::to_u8("protocol", wire.protocol).map_err(invalid)?)
            .filter(|p| *p > 0),
    })
}
