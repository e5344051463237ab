//! Findings: kept ones and live ones.

use proto::v1;
use proto::v1::detections_server::Detections;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::{Answers, Api, page_position, page_size};
use crate::core::sql_status;

#[tonic::async_trait]
impl Detections for Api {
    async fn list(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        let request = request.into_inner();
        let before: i64 = page_position(&request.page_token)?;
        let size = page_size(request.page_size);
        let listed = self.core.flows.findings(before, size).await;
        let listed = listed.map_err(|error| sql_status(&error))?;
        let (findings, next_page_token) = super::page_of(listed, size);
        Ok(Response::new(v1::ListFindingsResponse {
            findings,
            next_page_token,
        }))
    }

    type FollowStream = Answers<v1::Finding>;

    async fn follow(
        &self,
        _request: Request<v1::FollowFindingsRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut live = self.core.findings.subscribe();
        Ok(Response::new(self.stream(|feed| async move {
            loop {
                match live.recv().await {
                    Ok(finding) => {
                        if !feed.send(Ok(v1::Finding::clone(&finding))).await {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(lost)) => {
                        let told =
                            Status::data_loss(format!("{lost} findings were missed: list them"));
                        let _gone = feed.send(Err(told)).await;
                        return;
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        })))
    }
}
