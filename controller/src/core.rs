//! The heart: one state, changed by one mutation at a time, each with actor, key and audit entry.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, MutexGuard, broadcast, watch};
use tonic::Status;

use crate::auth::{Authority, Caller};
use crate::clock;
use crate::config::Config;
use crate::distribute::Hub;
use crate::flows::FlowDb;
use crate::metrics::Metrics;
use crate::sql::SqlError;
use crate::state::{self, AnswerRecord, State, StateError, key};
use crate::store::{
    AuditEntry, Op, Precondition, Revision, SqliteStore, Store as _, StoreError, Txn,
};

/// Everything that the services share.
#[derive(Debug)]
pub struct Core {
    /// As started with.
    pub config: Config,
    /// State, durable.
    pub store: SqliteStore,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Flows, durable.
    pub flows: FlowDb,
    /// Agents and what they have.
    pub hub: Hub,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// New findings, for followers.
    pub findings: broadcast::Sender<Arc<proto::v1::Finding>>,
    state: watch::Sender<Arc<State>>,
    mutations: Mutex<()>,
    refusals: std::sync::Mutex<Refusals>,
}

/// How many refusals were written down in this hour.
#[derive(Debug, Default)]
struct Refusals {
    hour: i64,
    all: u32,
    by_actor: BTreeMap<String, u32>,
}

impl Refusals {
    /// Entries in an hour about one actor and action, and about all.
    const EACH: u32 = 10;
    const ALL: u32 = 1_000;

    /// Whether one more is written down.
    fn count(&mut self, actor: &str, action: &str) -> bool {
        let hour = clock::now_ns() / clock::seconds_ns(3_600);
        if hour != self.hour {
            *self = Self {
                hour,
                ..Self::default()
            };
        }
        if self.all >= Self::ALL {
            return false;
        }
        let count = self
            .by_actor
            .entry(format!("{actor} {action}"))
            .or_default();
        *count += 1;
        let written = *count <= Self::EACH;
        self.all += u32::from(written);
        written
    }
}

/// Why the heart does not start or a mutation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<CoreError> for Status {
    fn from(error: CoreError) -> Self {
        match error {
            CoreError::Store(error) => store_status(&error),
            CoreError::State(error) => Self::internal(error.to_string()),
        }
    }
}

/// What a caller hears of a database that fails.
#[must_use]
pub fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::Stale { .. } => Status::aborted(error.to_string()),
        StoreError::Compacted { .. } => Status::out_of_range(error.to_string()),
        StoreError::Sql(error) => sql_status(error),
    }
}

/// What a caller hears of a database that fails.
#[must_use]
pub fn sql_status(error: &SqlError) -> Status {
    match error {
        SqlError::DiskFull => Status::resource_exhausted(error.to_string()),
        SqlError::Closed => Status::unavailable("the controller is stopping"),
        SqlError::Format { .. }
        | SqlError::Private { .. }
        | SqlError::Sqlite(_)
        | SqlError::Damaged(_) => {
            tracing::error!(%error, "database");
            Status::internal(error.to_string())
        }
    }
}

impl Core {
    /// Reads the state.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub async fn open(
        config: Config,
        store: SqliteStore,
        authority: Arc<Authority>,
        flows: FlowDb,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, CoreError> {
        let (revision, items) = store.list("").await?;
        let mut state = State::load(revision, &items)?;
        if let Some(pending) = state.pending.clone() {
            let texts = read_content(&store, &pending.previous).await?;
            state.previous = Some(Arc::new(parse_texts(&texts)?));
        }
        metrics.revision.set(revision);
        Ok(Arc::new(Self {
            config,
            store,
            authority,
            flows,
            hub: Hub::default(),
            metrics,
            findings: broadcast::Sender::new(256),
            state: watch::Sender::new(Arc::new(state)),
            mutations: Mutex::new(()),
            refusals: std::sync::Mutex::default(),
        }))
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Follows the state; a slow follower sees the newest only.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Begins a change: nobody else changes anything until it is committed or dropped.
    pub async fn change(&self) -> Change<'_> {
        let guard = self.mutations.lock().await;
        Change {
            core: self,
            state: self.state(),
            ops: Vec::new(),
            audit: Vec::new(),
            _guard: guard,
        }
    }

    /// Begins a change that somebody asked for, or finds the answer to an earlier, equal request.
    ///
    /// # Errors
    /// When the key is missing or was used for something else.
    pub async fn begin<Q: Message, A: Message + Default>(
        &self,
        caller: &Caller,
        options: Option<&proto::v1::MutationOptions>,
        request: &Q,
    ) -> Result<Begun<'_, A>, Status> {
        let options = options.cloned().unwrap_or_default();
        let change = self.change().await;
        if options.dry_run {
            return Ok(Begun::Fresh(change, Answer::default()));
        }
        let given = &options.idempotency_key;
        if given.is_empty() || given.len() > 128 {
            return Err(Status::invalid_argument(
                "options.idempotency_key: a unique text of 1 to 128 bytes is needed",
            ));
        }
        let slot = Answer {
            key: Some(format!("{}{}/{given}", key::ANSWER, caller.identity)),
            request_sha256: hex::encode(Sha256::digest(request.encode_to_vec())),
        };
        let stored = match &slot.key {
            Some(key) => self
                .store
                .get(key)
                .await
                .map_err(|error| store_status(&error))?,
            None => None,
        };
        let Some(stored) = stored else {
            return Ok(Begun::Fresh(change, slot));
        };
        let unreadable = || Status::internal("the stored answer is damaged");
        let record: AnswerRecord =
            serde_json::from_slice(&stored.value).map_err(|_| unreadable())?;
        if record.request_sha256 != slot.request_sha256 {
            return Err(Status::invalid_argument(
                "options.idempotency_key was used for another request",
            ));
        }
        let bytes = hex::decode(&record.answer).map_err(|_| unreadable())?;
        let answer = A::decode(bytes.as_slice()).map_err(|_| unreadable())?;
        Ok(Begun::Repeated(answer))
    }

    /// Writes an audit entry about a refusal. A caller that is refused again and again gets few
    /// entries, so that it cannot fill the log; the metrics count all of them.
    pub async fn audit_refusal(&self, actor: &str, action: &str, subject: &str, reason: &str) {
        if !self
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(actor, action)
        {
            return;
        }
        tracing::warn!(actor, action, subject, reason, "refused");
        let mut change = self.change().await;
        change.audit(actor, action, subject, reason);
        if let Err(error) = change.commit().await {
            tracing::error!(%error, "the refusal is not in the audit log");
        }
    }

    /// Forgets answers that nobody will ask for again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_answers(&self, before: i64) -> Result<(), CoreError> {
        let (_, answers) = self.store.list(key::ANSWER).await?;
        let old = answers.into_iter().filter(|item| {
            serde_json::from_slice::<AnswerRecord>(&item.value)
                .is_ok_and(|answer| answer.at < before)
        });
        let mut change = self.change().await;
        for item in old {
            change.op(Op::Delete(item.key));
        }
        change.commit().await?;
        Ok(())
    }

    /// Texts of a set of objects.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn texts(&self, content: &state::Content) -> Result<Texts, CoreError> {
        Ok(read_content(&self.store, content).await?)
    }
}

/// Objects with their text and who applied them.
pub type Texts = BTreeMap<state::ObjectKey, state::ObjectRecord>;

async fn read_content(store: &SqliteStore, content: &state::Content) -> Result<Texts, StoreError> {
    let mut texts = Texts::new();
    for object in &content.0 {
        let item = store
            .get(&format!("{}{}", key::TEXT, object.sha256))
            .await?;
        let text = item
            .and_then(|item| String::from_utf8(item.value).ok())
            .ok_or_else(|| SqlError::Damaged(format!("text {} is missing", object.sha256)))?;
        let record = state::ObjectRecord {
            text,
            actor: object.actor.clone(),
        };
        texts.insert((object.kind.clone(), object.name.clone()), record);
    }
    Ok(texts)
}

/// Understands a set of texts.
///
/// # Errors
/// When this version does not.
pub fn parse_texts(texts: &Texts) -> Result<policy::set::PolicySet, StateError> {
    state::parse(
        texts
            .iter()
            .map(|((kind, name), record)| (kind.as_str(), name.as_str(), record.text.as_str())),
    )
}

/// A mutation that somebody asked for.
#[derive(Debug)]
pub enum Begun<'a, A> {
    /// To be done.
    Fresh(Change<'a>, Answer),
    /// Was done before; this was the answer.
    Repeated(A),
}

/// Where the answer of a mutation is kept.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    key: Option<String>,
    request_sha256: String,
}

/// A change under way; dropped without a commit, nothing happens.
#[derive(Debug)]
pub struct Change<'a> {
    core: &'a Core,
    /// Before the change.
    pub state: Arc<State>,
    ops: Vec<Op>,
    audit: Vec<AuditEntry>,
    _guard: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// The revision that the change will have.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.state.revision + 1
    }

    /// Adds an operation.
    pub fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Adds an audit entry.
    pub fn audit(&mut self, actor: &str, action: &str, subject: &str, detail: &str) {
        self.audit.push(AuditEntry {
            at: clock::now_ns(),
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            detail: detail.to_owned(),
        });
    }

    /// Keeps the answer for whoever asks the same again.
    pub fn answer<A: Message>(&mut self, slot: Answer, answer: &A) {
        if let Some(key) = slot.key {
            let record = AnswerRecord {
                request_sha256: slot.request_sha256,
                answer: hex::encode(answer.encode_to_vec()),
                at: clock::now_ns(),
            };
            self.op(state::put(key, &record));
        }
    }

    /// Commits everything or nothing, and shows the new state to all.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed.
    pub async fn commit(self) -> Result<Arc<State>, CoreError> {
        // What a state has before it knows the previous content is worked out before the commit, so
        // that the commit itself is followed by nothing that can fail.
        let mut next = self.state.after(self.revision(), &self.ops)?;
        if let Some(pending) = &next.pending
            && next.previous.is_none()
        {
            let texts = read_content(&self.core.store, &pending.previous).await?;
            next.previous = Some(Arc::new(parse_texts(&texts)?));
        }
        let changed = !self.ops.is_empty();
        let txn = Txn {
            preconditions: vec![Precondition::UnchangedSince(
                String::new(),
                self.state.revision,
            )],
            ops: self.ops,
            audit: self.audit,
        };
        let committed = self.core.store.txn(txn).await;
        if matches!(committed, Err(StoreError::Sql(SqlError::DiskFull))) {
            self.core.metrics.disk_full.inc();
        }
        committed?;
        if !changed {
            return Ok(self.state);
        }
        next.committed = Some(Instant::now());
        let next = Arc::new(next);
        self.core.metrics.revision.set(next.revision);
        self.core.state.send_replace(next.clone());
        Ok(next)
    }
}
