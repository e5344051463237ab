//! Sets of policy objects: taking them apart, comparing them, putting them back.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::model::Object;
use policy::set::PolicySet;
use policy::source::Source;
use proto::v1;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tonic::Status;

use crate::clock;
use crate::core::{Change, Core, CoreError, Texts};
use crate::planner::{self, PlanError, Settings};
use crate::state::{
    self, Content, ContentRef, HistoryRecord, ObjectKey, ObjectRecord, Objects, PendingRecord,
    State, key,
};
use crate::store::Op;

/// Key under which an object is stored.
pub(super) fn object_key(object: &Object) -> ObjectKey {
    let id = object.id();
    let (kind, name) = id.split_once('/').unwrap_or((id.as_str(), ""));
    (kind.to_owned(), name.to_owned())
}

/// The text of every object of some files: the document that it stands in.
pub(super) fn texts_of(files: &[v1::SourceFile], objects: &[Object], actor: &str) -> Texts {
    let mut texts = Texts::new();
    let mut listed: BTreeMap<(String, String), usize> = BTreeMap::new();
    for object in objects {
        let place = object.place();
        let mut text = files
            .iter()
            .find(|file| *file.name == *place.file)
            .map(|file| document_at(&file.text, place.line))
            .unwrap_or_default();
        // A list holds several objects: each is stored by itself.
        let document = serde_saphyr::from_str::<serde_json::Value>(&text).unwrap_or_default();
        let mut own = &document;
        if document["kind"] == "List" {
            let next = listed
                .entry((place.file.to_string(), text.clone()))
                .or_default();
            own = &document["items"][*next];
            text = serde_json::to_string_pretty(own).unwrap_or_default();
            *next += 1;
        }
        // What another system wrote is stored as what it was understood to be: one document each, and
        // the one that import added has no text of its own.
        if own["apiVersion"] != policy::model::API_VERSION {
            text = serde_json::to_string_pretty(&object.to_json()).unwrap_or_default() + "\n";
        }
        let record = ObjectRecord {
            text,
            actor: actor.to_owned(),
        };
        texts.insert(object_key(object), record);
    }
    texts
}

/// The YAML document that a line (from 1) belongs to. A line that begins with `---` begins a
/// document wherever it stands, also inside a block of text.
fn document_at(text: &str, line: u64) -> String {
    let mut document = String::new();
    for (number, content) in (1..).zip(text.lines()) {
        let marker = content == "---" || content.starts_with("--- ") || content == "...";
        if marker {
            if number > line {
                break;
            }
            document.clear();
            let Some(rest) = content.strip_prefix("--- ") else {
                continue;
            };
            document.push_str(rest);
        } else {
            document.push_str(content);
        }
        document.push('\n');
    }
    document.trim_matches('\n').to_owned() + "\n"
}

/// Problems for the wire.
pub(super) fn wire_problems(problems: policy::problems::Problems) -> Vec<v1::Problem> {
    problems.0.into_iter().map(wire_problem).collect()
}

/// One problem for the wire.
pub(super) fn wire_problem(problem: policy::problems::Problem) -> v1::Problem {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    v1::Problem {
        file: problem.file,
        line: number(problem.line),
        column: number(problem.column),
        message: problem.message,
        suggestion: problem.suggestion.unwrap_or_default(),
    }
}

/// Current objects, without the revision that wrote them.
pub(super) fn current(objects: &Objects) -> Texts {
    objects
        .iter()
        .map(|(key, (record, _))| (key.clone(), record.clone()))
        .collect()
}

/// Understands a set: new objects keep the places of their files.
pub(super) fn understand(texts: &Texts, new: Vec<Object>) -> Result<PolicySet, Vec<v1::Problem>> {
    let replaced: std::collections::BTreeSet<_> = new.iter().map(object_key).collect();
    let sources: Vec<_> = texts
        .iter()
        .filter(|(key, _)| !replaced.contains(*key))
        .map(|((kind, name), record)| Source::new(format!("{kind}/{name}"), record.text.as_str()))
        .collect();
    let mut objects = policy::parse::parse(&sources).map_err(wire_problems)?;
    objects.extend(new);
    PolicySet::build(objects).map_err(wire_problems)
}

/// What a change does to every object, in the order of kinds and names.
pub(super) fn compare(before: &Texts, after: &Texts) -> Vec<v1::ObjectChange> {
    let mut changes = BTreeMap::new();
    for key in before.keys().chain(after.keys()) {
        let (old, new) = (before.get(key), after.get(key));
        let (change, fields) = match (old, new) {
            (None, _) => ("added", Vec::new()),
            (_, None) => ("removed", Vec::new()),
            (Some(old), Some(new)) if old.text == new.text => ("unchanged", Vec::new()),
            (Some(old), Some(new)) => ("changed", fields(&old.text, &new.text)),
        };
        changes.insert(
            key.clone(),
            v1::ObjectChange {
                kind: key.0.clone(),
                name: key.1.clone(),
                change: change.to_owned(),
                fields,
            },
        );
    }
    changes.into_values().collect()
}

/// Paths of the fields, two levels deep, in which two texts differ.
fn fields(old: &str, new: &str) -> Vec<String> {
    let read = |text: &str| serde_saphyr::from_str::<serde_json::Value>(text).unwrap_or_default();
    let (old, new) = (read(old), read(new));
    let mut paths = Vec::new();
    for top in ["metadata", "spec"] {
        let empty = serde_json::Map::new();
        let part = |value: &'_ serde_json::Value| value[top].as_object().cloned();
        let (old, new) = (part(&old), part(&new));
        let (old, new) = (
            old.as_ref().unwrap_or(&empty),
            new.as_ref().unwrap_or(&empty),
        );
        for name in old.keys().chain(new.keys()) {
            let path = format!("{top}.{name}");
            if old.get(name) != new.get(name) && !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

/// What a change of policy means for the agents.
pub(super) struct Impact {
    /// Whose snapshot changes.
    pub(super) affected: Vec<String>,
    /// Something that passes now will be dropped.
    pub(super) denies_more: bool,
}

/// Compiles for every agent, before and after.
pub(super) async fn impact(
    core: &Core,
    state: &Arc<State>,
    after: Arc<PolicySet>,
) -> Result<Result<Impact, PlanError>, Status> {
    let (state, settings) = (state.clone(), Settings::from(&core.config));
    let work = move || -> Result<Impact, PlanError> {
        let at = OffsetDateTime::now_utc();
        let mut identities = (*state.identities).clone();
        let mut plan = |policies: &PolicySet| {
            planner::plan(&state, policies, &settings, &mut identities, 0, at)
        };
        let mut after = plan(&after);
        // What does not fit already, by a workload too many, keeps nobody else from changes.
        let before = plan(&state.policies);
        (after.unfit).retain(|name, _| !before.unfit.contains_key(name));
        if let Some((_, error)) = after.unfit.pop_first() {
            return Err(error);
        }
        let (before, after) = (before.fit, after.fit);
        let affected = after
            .iter()
            .filter(|(name, snapshot)| {
                before
                    .get(*name)
                    .is_none_or(|old| old.digest() != snapshot.digest())
            })
            .map(|(name, _)| name.clone())
            .collect();
        Ok(Impact {
            affected,
            denies_more: planner::denies_more(&before, &after),
        })
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Status::internal("compiling was cut short"))
}

/// Reference to a set of texts.
pub(super) fn content(texts: &Texts) -> Content {
    let reference = |((kind, name), record): (&ObjectKey, &ObjectRecord)| ContentRef {
        kind: kind.clone(),
        name: name.clone(),
        sha256: hash(&record.text),
        actor: record.actor.clone(),
    };
    Content(texts.iter().map(reference).collect())
}

fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// Adds what makes `after` the content, and its line of history.
pub(super) fn replace(
    change: &mut Change<'_>,
    after: &Texts,
    actor: &str,
    action: &str,
    summary: &str,
    state: &str,
) {
    let before = current(&change.state.objects);
    for (key, record) in after {
        if before.get(key) != Some(record) {
            change.op(Op::Put(
                format!("{}{}", key::TEXT, hash(&record.text)),
                record.text.clone().into_bytes(),
            ));
            change.op(state::put(key::object(key), record));
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        change.op(Op::Delete(key::object(key)));
    }
    let record = HistoryRecord {
        at: clock::now_ns(),
        actor: actor.to_owned(),
        action: action.to_owned(),
        summary: summary.to_owned(),
        state: state.to_owned(),
        content: content(after),
    };
    change.op(state::put(key::history(change.revision()), &record));
}

/// Changes the state of a line of history.
pub(super) async fn mark(
    core: &Core,
    change: &mut Change<'_>,
    revision: u64,
    state: &str,
) -> Result<(), CoreError> {
    use crate::store::Store as _;
    let key = key::history(revision);
    if let Some(item) = core.store.get(&key).await?
        && let Ok(mut record) = serde_json::from_slice::<HistoryRecord>(&item.value)
    {
        record.state = state.to_owned();
        change.op(state::put(key, &record));
    }
    Ok(())
}

/// Nobody confirmed: the old content under a new revision, as the kernels have it by then.
///
/// # Errors
/// When the store fails.
pub async fn fall_back(
    core: &Core,
    change: &mut Change<'_>,
    pending: &PendingRecord,
) -> Result<(), CoreError> {
    let texts = core.texts(&pending.previous).await?;
    let summary = format!("revision {} was not confirmed", pending.revision);
    tracing::warn!(
        revision = pending.revision,
        "nobody confirmed: back to the content before"
    );
    replace(change, &texts, "controller", "fall-back", &summary, "final");
    mark(core, change, pending.revision, "rolled-back").await?;
    change.op(Op::Delete(key::PENDING.to_owned()));
    change.audit("controller", "policy.fall-back", "", &summary);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_at_their_markers() {
        let text = "# head\nkind: A\n---\nkind: B\nx: |\n  ---\n  y\n--- # comment\nkind: C\n";
        assert_eq!(document_at(text, 2), "# head\nkind: A\n");
        assert_eq!(document_at(text, 4), "kind: B\nx: |\n  ---\n  y\n");
        assert_eq!(document_at(text, 9), "# comment\nkind: C\n");
        assert_eq!(document_at("kind: A", 1), "kind: A\n");
    }

    /// What is stored says the same as what was applied, also of Kubernetes' objects and lists.
    #[test]
    #[allow(clippy::expect_used, reason = "a test")]
    fn objects_of_a_cluster_are_stored_as_ours() {
        let network = |name: &str| {
            format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {{podSelector: {{}}}}}}"
            )
        };
        let own = "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {name: own} # kept\nspec: {subject: all}\n";
        let text = format!(
            "{own}---\n{}\n---\napiVersion: v1\nkind: List\nitems:\n  - {}\n  - {}\n",
            network("a"),
            network("b"),
            network("c"),
        );
        let files = [v1::SourceFile {
            name: "k.yaml".to_owned(),
            text: text.clone(),
        }];
        let objects = policy::parse::parse(&[Source::new("k.yaml", text)]).expect("the file");
        let texts = texts_of(&files, &objects, "ann");
        assert_eq!(texts.len(), 5);
        assert_eq!(texts[&("Policy".to_owned(), "own".to_owned())].text, own);
        let stored = understand(&texts, Vec::new()).expect("what is stored");
        assert_eq!(stored, PolicySet::build(objects.clone()).expect("a set"));
        // Applied again, every text is the same.
        assert_eq!(understand(&texts, objects.clone()).expect("both"), stored);
        let again = texts_of(&files, &objects, "ann");
        assert!(
            compare(&texts, &again)
                .iter()
                .all(|change| change.change == "unchanged")
        );
    }
}
