//! Policy in, history, and why a flow is denied.

use std::sync::Arc;

use policy::evaluate::evaluate_flow;
use policy::explain::explain_flow;
use policy::probe::{Flow, Probe, ProbeEnd};
use policy::source::Source;
use proto::v1::policies_server::Policies;
use proto::{convert, v1};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::content::{self, Impact};
use super::expectations;
use super::invariants;
use super::{Api, caller, expect, page};
use crate::clock;
use crate::core::{Begun, Texts, parse_texts, store_status};
use crate::planner::{self, Settings};
use crate::state::{self, HistoryRecord, PendingRecord, key};
use crate::store::{Op, Store as _};

/// Seconds to confirm a change that denies more, when nobody says how many.
const CONFIRM_WITHIN: u32 = 60;
/// Text of all files of one request.
const MAX_TEXT: usize = 8 << 20;

#[tonic::async_trait]
impl Policies for Api {
    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let options = request.options.clone().unwrap_or_default();
        let begun = self.core.begin(&caller, Some(&options), &request).await?;
        let (mut change, slot) = match begun {
            Begun::Fresh(change, slot) => (change, slot),
            Begun::Repeated(answer) => return Ok(Response::new(answer)),
        };
        expect(Some(&options), change.state.policy_revision, "policy")?;
        refuse_while_pending(change.state.pending.as_deref())?;
        let refused = |problems| {
            Ok(Response::new(v1::ApplyResponse {
                problems,
                ..v1::ApplyResponse::default()
            }))
        };
        check_files(&request.files)?;

        let sources: Vec<_> = (request.files.iter())
            .map(|file| Source::new(file.name.as_str(), file.text.as_str()))
            .collect();
        let objects = match policy::parse::parse(&sources) {
            Ok(objects) => objects,
            Err(problems) => return refused(content::wire_problems(problems)),
        };
        // Twice the same object in the files: the whole set is checked first, so that it is told.
        let before = content::current(&change.state.objects);
        let mut after = if request.prune {
            Texts::new()
        } else {
            before.clone()
        };
        for (key, mut record) in content::texts_of(&request.files, &objects, &caller.uri) {
            // Whose text is the same stays the author.
            if let Some(old) = before.get(&key).filter(|old| old.text == record.text) {
                record = old.clone();
            }
            after.insert(key, record);
        }
        let named = expectations::policies_of(&objects);
        let invariants = invariants::names_of(&objects);
        let policies = match content::understand(&after, objects) {
            Ok(policies) => Arc::new(policies),
            Err(problems) => return refused(problems),
        };
        let mut failed =
            expectations::broken(&self.core, &change.state, policies.clone(), &named).await?;
        let checked =
            invariants::check(&self.core, &change.state, policies.clone(), invariants).await?;
        failed.extend(checked.refusals);
        if !failed.is_empty() {
            return refused(failed);
        }
        let impact = match content::impact(&self.core, &change.state, policies).await? {
            Ok(impact) => impact,
            Err(error) => {
                return refused(vec![v1::Problem {
                    message: error.to_string(),
                    suggestion: "nothing was applied; use wider selectors or fewer port ranges"
                        .to_owned(),
                    ..v1::Problem::default()
                }]);
            }
        };

        let changes = content::compare(&before, &after);
        let changed = changes
            .iter()
            .filter(|change| change.change != "unchanged")
            .count();
        let within = confirm_within(request.confirm_within_seconds, &impact);
        let deadline = within
            .filter(|_| changed > 0)
            .map(|seconds| clock::now_ns().saturating_add(clock::seconds_ns(seconds.into())));
        let mut response = v1::ApplyResponse {
            revision: change.state.policy_revision,
            changes,
            problems: Vec::new(),
            affected_agents: impact.affected,
            denies_more: impact.denies_more,
            confirm_deadline: deadline.map(convert::from_unix_ns),
            warnings: checked.warnings,
        };
        if options.dry_run {
            return Ok(Response::new(response));
        }
        if changed > 0 {
            response.revision = change.revision();
            let summary = format!(
                "{changed} object(s) changed, {} agent(s) affected",
                response.affected_agents.len()
            );
            let state = if deadline.is_some() {
                "pending"
            } else {
                "final"
            };
            content::replace(&mut change, &after, &caller.uri, "apply", &summary, state);
            if let Some(deadline) = deadline {
                let pending = PendingRecord {
                    revision: change.revision(),
                    deadline,
                    previous: content::content(&before),
                };
                // The old texts are kept by hash already: every object was written with its text.
                change.op(state::put(key::PENDING.to_owned(), &pending));
            }
            change.audit(&caller.uri, "policy.apply", "", &summary);
        }
        change.answer(slot, &response);
        change.commit().await?;
        Ok(Response::new(response))
    }

    async fn confirm(
        &self,
        request: Request<v1::ConfirmRequest>,
    ) -> Result<Response<v1::ConfirmResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let options = request.options.clone();
        let (mut change, slot) = match self.core.begin(&caller, options.as_ref(), &request).await? {
            Begun::Fresh(change, slot) => (change, slot),
            Begun::Repeated(answer) => return Ok(Response::new(answer)),
        };
        let Some(pending) = change.state.pending.clone() else {
            return Err(Status::failed_precondition(
                "no change waits for a confirmation",
            ));
        };
        if request.revision != 0 && request.revision != pending.revision {
            return Err(Status::failed_precondition(format!(
                "revision {} waits for a confirmation, not {}",
                pending.revision, request.revision
            )));
        }
        if pending.deadline <= clock::now_ns() {
            return Err(Status::failed_precondition(
                "too late: the kernels have fallen back",
            ));
        }
        let response = v1::ConfirmResponse {
            revision: pending.revision,
        };
        if !options.is_some_and(|options| options.dry_run) {
            content::mark(&self.core, &mut change, pending.revision, "confirmed").await?;
            change.op(Op::Delete(key::PENDING.to_owned()));
            change.audit(
                &caller.uri,
                "policy.confirm",
                &pending.revision.to_string(),
                "",
            );
            change.answer(slot, &response);
            change.commit().await?;
        }
        Ok(Response::new(response))
    }

    async fn list(
        &self,
        request: Request<v1::ListObjectsRequest>,
    ) -> Result<Response<v1::ListObjectsResponse>, Status> {
        let request = request.into_inner();
        let state = self.core.state();
        let wanted = |(kind, name): &state::ObjectKey| {
            (request.kind.is_empty() || *kind == request.kind)
                && (request.name.is_empty() || *name == request.name)
        };
        let objects = state.objects.iter().filter(|(key, _)| wanted(key)).map(
            |((kind, name), (record, revision))| v1::StoredObject {
                kind: kind.clone(),
                name: name.clone(),
                revision: *revision,
                text: record.text.clone(),
                actor: record.actor.clone(),
            },
        );
        let (objects, next_page_token) = page(objects, request.page_size, &request.page_token)?;
        Ok(Response::new(v1::ListObjectsResponse {
            objects,
            revision: state.revision,
            next_page_token,
        }))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        let request = request.into_inner();
        let (_, items) =
            (self.core.store.list(key::HISTORY).await).map_err(|error| store_status(&error))?;
        let entries = items.iter().rev().filter_map(|item| {
            let revision = item.key.strip_prefix(key::HISTORY)?.parse().ok()?;
            let record: HistoryRecord = serde_json::from_slice(&item.value).ok()?;
            Some(v1::HistoryEntry {
                revision,
                at: Some(convert::from_unix_ns(record.at)),
                actor: record.actor,
                action: record.action,
                summary: record.summary,
                state: record.state,
            })
        });
        let (entries, next_page_token) = page(entries, request.page_size, &request.page_token)?;
        Ok(Response::new(v1::HistoryResponse {
            entries,
            next_page_token,
        }))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let options = request.options.clone().unwrap_or_default();
        let (mut change, slot) = match self.core.begin(&caller, Some(&options), &request).await? {
            Begun::Fresh(change, slot) => (change, slot),
            Begun::Repeated(answer) => return Ok(Response::new(answer)),
        };
        expect(Some(&options), change.state.policy_revision, "policy")?;
        let key = key::history(request.to_revision);
        let item = (self.core.store.get(&key).await).map_err(|error| store_status(&error))?;
        let record: HistoryRecord = item
            .and_then(|item| serde_json::from_slice(&item.value).ok())
            .ok_or_else(|| {
                Status::not_found(format!("history has no revision {}", request.to_revision))
            })?;
        let after = self.core.texts(&record.content).await?;
        let policies =
            parse_texts(&after).map_err(|error| Status::failed_precondition(error.to_string()))?;
        let impact = content::impact(&self.core, &change.state, Arc::new(policies))
            .await?
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let mut response = v1::ApplyResponse {
            revision: change.revision(),
            changes: content::compare(&content::current(&change.state.objects), &after),
            problems: Vec::new(),
            affected_agents: impact.affected,
            denies_more: impact.denies_more,
            confirm_deadline: None,
            // A way back is never held up; what it breaks is in the log and in the metric.
            warnings: Vec::new(),
        };
        if options.dry_run {
            response.revision = change.state.policy_revision;
            return Ok(Response::new(response));
        }
        let summary = format!("content of revision {}", request.to_revision);
        content::replace(
            &mut change,
            &after,
            &caller.uri,
            "rollback",
            &summary,
            "final",
        );
        if let Some(pending) = change.state.pending.clone() {
            content::mark(&self.core, &mut change, pending.revision, "rolled-back").await?;
            change.op(Op::Delete(key::PENDING.to_owned()));
        }
        change.audit(
            &caller.uri,
            "policy.rollback",
            &request.to_revision.to_string(),
            &summary,
        );
        change.answer(slot, &response);
        change.commit().await?;
        Ok(Response::new(response))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let request = request.into_inner();
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let probe = Probe {
            id: String::new(),
            from: ProbeEnd::parse(&request.from),
            to: ProbeEnd::parse(&request.to),
            protocol: convert::to_u8("protocol", request.protocol)
                .map_err(|error| invalid(&error))?,
            port: convert::to_u16("port", request.port).map_err(|error| invalid(&error))?,
        };
        let state = self.core.state();
        let world = planner::world(&state, &state.policies, &Settings::from(&self.core.config));
        let flow = Flow::resolve(&world, &probe).map_err(|error| invalid(&error))?;
        let at = OffsetDateTime::now_utc();
        let verdict = evaluate_flow(&world, &state.policies, &flow, at);
        let walk = explain_flow(&world, &state.policies, &flow, at);
        Ok(Response::new(v1::ExplainResponse {
            text: walk.to_string(),
            json: serde_json::to_string(&walk).unwrap_or_default(),
            enforced_allow: verdict.enforced.is_allow(),
            draft_allow: verdict.draft.is_allow(),
            rule: verdict.rule.unwrap_or_default(),
        }))
    }
}

fn refuse_while_pending(pending: Option<&PendingRecord>) -> Result<(), Status> {
    match pending {
        Some(pending) => Err(Status::failed_precondition(format!(
            "revision {} waits for its confirmation: confirm it or roll back first",
            pending.revision
        ))),
        None => Ok(()),
    }
}

fn check_files(files: &[v1::SourceFile]) -> Result<(), Status> {
    let text: usize = files.iter().map(|file| file.text.len()).sum();
    if text > MAX_TEXT {
        return Err(Status::invalid_argument(format!(
            "files: {text} bytes of text, at most {MAX_TEXT}"
        )));
    }
    let mut names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) || names.contains(&"") {
        return Err(Status::invalid_argument(
            "files: every file needs a name of its own",
        ));
    }
    Ok(())
}

fn confirm_within(asked: i32, impact: &Impact) -> Option<u32> {
    let seconds = match u32::try_from(asked) {
        Ok(0) if impact.denies_more => CONFIRM_WITHIN,
        Ok(0) | Err(_) => return None,
        Ok(seconds) => seconds,
    };
    (!impact.affected.is_empty()).then_some(seconds)
}
