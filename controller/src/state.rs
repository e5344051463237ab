//! What the controller knows, in memory, as the store has it.
//!
//! The same code reads the store at a start and follows each commit, so that both give the same
//! picture. A [`State`] is immutable; who holds one sees one revision.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use policy::compile::IdentityAllocator;
use policy::set::PolicySet;
use policy::source::Source;
use serde::{Deserialize, Serialize};

use crate::auth::Token;
use crate::store::{Item, Op, Revision};

/// A workload that has enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// Labels of the token that it enrolled with.
    pub labels: BTreeMap<String, String>,
    /// What its agent may claim.
    pub scope: Vec<IpNet>,
    /// What its agent claims.
    pub addresses: Vec<IpAddr>,
    /// As the agent says.
    pub hostname: String,
    /// Grows with every enrolment; certificates of an older one are refused.
    pub enrolment: u32,
    /// Nobody may speak for it until it enrols again.
    pub revoked: bool,
    /// UTC nanoseconds.
    pub enrolled_at: i64,
}

/// A workload that is cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationRecord {
    /// UTC nanoseconds at which it ends by itself.
    pub until: Option<i64>,
    /// Why.
    pub reason: String,
    /// Who did it.
    pub actor: String,
    /// UTC nanoseconds.
    pub at: i64,
}

/// A policy object as it was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// YAML of this object alone.
    pub text: String,
    /// Who applied it.
    pub actor: String,
}

/// Kind and name of an object.
pub type ObjectKey = (String, String);

/// Every object of the policy language, with the revision that wrote it.
pub type Objects = BTreeMap<ObjectKey, (ObjectRecord, Revision)>;

/// A change that waits for its confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRecord {
    /// Of the change.
    pub revision: Revision,
    /// UTC nanoseconds.
    pub deadline: i64,
    /// The content before, to which everything returns without a confirmation.
    pub previous: Content,
}

/// One line of history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// UTC nanoseconds.
    pub at: i64,
    /// Who.
    pub actor: String,
    /// `apply`, `rollback`, `fall-back`.
    pub action: String,
    /// For people.
    pub summary: String,
    /// `confirmed`, `pending`, `rolled-back`, `final`.
    pub state: String,
    /// What held from then on.
    pub content: Content,
}

/// A whole set of objects, by reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content(pub Vec<ContentRef>);

/// One object of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRef {
    /// Of the object.
    pub kind: String,
    /// Of the object.
    pub name: String,
    /// SHA-256 of its text, hex: key of the stored text.
    pub sha256: String,
    /// Who applied it.
    pub actor: String,
}

/// The answer to a mutation, for whoever repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRecord {
    /// Of the request, hex.
    pub request_sha256: String,
    /// The encoded answer, hex.
    pub answer: String,
    /// UTC nanoseconds.
    pub at: i64,
}

/// Keys of the store.
pub mod key {
    /// Objects: `object/<kind>/<name>`.
    pub const OBJECT: &str = "object/";
    /// Enrolled workloads.
    pub const WORKLOAD: &str = "workload/";
    /// Isolations, by workload.
    pub const ISOLATION: &str = "isolation/";
    /// Join tokens, by id.
    pub const TOKEN: &str = "token/";
    /// The unconfirmed change.
    pub const PENDING: &str = "pending";
    /// History, by revision with leading zeros.
    pub const HISTORY: &str = "history/";
    /// Texts of objects, by SHA-256.
    pub const TEXT: &str = "text/";
    /// Numbers of identities.
    pub const IDENTITIES: &str = "identities";
    /// Answers, by actor and idempotency key.
    pub const ANSWER: &str = "answer/";

    /// Key of a line of history.
    #[must_use]
    pub fn history(revision: u64) -> String {
        format!("{HISTORY}{revision:020}")
    }

    /// Key of an object.
    #[must_use]
    pub fn object((kind, name): &super::ObjectKey) -> String {
        format!("{OBJECT}{kind}/{name}")
    }
}

/// A put of a record.
#[must_use]
pub fn put<T: Serialize>(key: String, record: &T) -> Op {
    // Records have string keys only: this cannot fail.
    Op::Put(key, serde_json::to_vec(record).unwrap_or_default())
}

/// A record of the store that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not the JSON that belongs there.
    #[error("record {key}: {source}")]
    Record {
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Stored policy that this version does not understand.
    #[error("the stored policy is not understood by this version: {0}")]
    Policy(String),
}

/// What the controller knows at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Of the store.
    pub revision: Revision,
    /// When it was durable; `None` for what was read at a start.
    pub committed: Option<Instant>,
    /// Last revision that changed an object.
    pub policy_revision: Revision,
    /// Last revision that changed an isolation.
    pub isolation_revision: Revision,
    /// Objects of the policy language.
    pub objects: Arc<Objects>,
    /// The same, understood.
    pub policies: Arc<PolicySet>,
    /// Enrolled workloads by name.
    pub workloads: Arc<BTreeMap<String, WorkloadRecord>>,
    /// Isolations by workload, with the revision that wrote them.
    pub isolations: Arc<BTreeMap<String, (IsolationRecord, Revision)>>,
    /// Join tokens by id.
    pub tokens: Arc<BTreeMap<String, Token>>,
    /// The unconfirmed change.
    pub pending: Option<Arc<PendingRecord>>,
    /// The objects that held before the unconfirmed change, understood.
    pub previous: Option<Arc<PolicySet>>,
    /// Numbers of identities; never given to another content.
    pub identities: Arc<IdentityAllocator>,
    /// Owners of addresses.
    pub owners: Arc<HashMap<IpAddr, String>>,
}

impl State {
    /// Reads everything at a start.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn load(revision: Revision, items: &[Item]) -> Result<Self, StateError> {
        let mut state = Self {
            revision,
            ..Self::default()
        };
        for item in items {
            state.set(&item.key, Some(&item.value), item.revision)?;
        }
        state.derive()?;
        Ok(state)
    }

    /// The state after a commit.
    ///
    /// # Errors
    /// When what was committed cannot be read, which would be a mistake in this program.
    pub fn after(&self, revision: Revision, ops: &[Op]) -> Result<Self, StateError> {
        let mut next = self.clone();
        next.revision = revision;
        for op in ops {
            match op {
                Op::Put(key, value) => next.set(key, Some(value), revision)?,
                Op::Delete(key) => next.set(key, None, revision)?,
            }
        }
        if !Arc::ptr_eq(&next.objects, &self.objects) {
            next.derive()?;
        } else if !Arc::ptr_eq(&next.workloads, &self.workloads) {
            next.derive_owners();
        }
        Ok(next)
    }

    fn set(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        revision: Revision,
    ) -> Result<(), StateError> {
        if let Some(rest) = key.strip_prefix(key::OBJECT) {
            if let Some((kind, name)) = rest.split_once('/') {
                let record = decode::<ObjectRecord>(key, value)?.map(|record| (record, revision));
                let key = (kind.to_owned(), name.to_owned());
                change(Arc::make_mut(&mut self.objects), key, record);
            }
            self.policy_revision = self.policy_revision.max(revision);
        } else if let Some(name) = key.strip_prefix(key::WORKLOAD) {
            let record = decode(key, value)?;
            change(Arc::make_mut(&mut self.workloads), name.to_owned(), record);
        } else if let Some(name) = key.strip_prefix(key::ISOLATION) {
            let record = decode::<IsolationRecord>(key, value)?.map(|record| (record, revision));
            change(Arc::make_mut(&mut self.isolations), name.to_owned(), record);
            self.isolation_revision = self.isolation_revision.max(revision);
        } else if let Some(id) = key.strip_prefix(key::TOKEN) {
            let record = decode(key, value)?;
            change(Arc::make_mut(&mut self.tokens), id.to_owned(), record);
        } else if key == key::IDENTITIES {
            self.identities = Arc::new(decode(key, value)?.unwrap_or_default());
        } else if key == key::PENDING {
            self.pending = decode(key, value)?.map(Arc::new);
            if self.pending.is_none() {
                self.previous = None;
            }
        }
        Ok(())
    }

    fn derive(&mut self) -> Result<(), StateError> {
        let texts = self.objects.iter().map(|((kind, name), (object, _))| {
            (kind.as_str(), name.as_str(), object.text.as_str())
        });
        self.policies = Arc::new(parse(texts)?);
        self.derive_owners();
        Ok(())
    }

    fn derive_owners(&mut self) {
        let mut owners = HashMap::new();
        for object in self.policies.workloads() {
            let workload = policy::world::Workload::from(object);
            let name = workload.full_name();
            for address in &workload.addresses {
                owners.insert(address.to_canonical(), name.clone());
            }
        }
        for (name, workload) in self.workloads.iter() {
            for address in &workload.addresses {
                owners.insert(address.to_canonical(), name.clone());
            }
        }
        self.owners = Arc::new(owners);
    }

    /// Whether another state gives every agent the same content.
    #[must_use]
    pub fn plans_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policies, &other.policies)
            && Arc::ptr_eq(&self.workloads, &other.workloads)
            && Arc::ptr_eq(&self.isolations, &other.isolations)
            && self.pending == other.pending
    }

    /// The workload that owns an address.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.owners.get(&address.to_canonical()).map(String::as_str)
    }
}

/// Understands stored objects.
///
/// # Errors
/// When a version understood them that this one is not.
pub fn parse<'a>(
    objects: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
) -> Result<PolicySet, StateError> {
    let sources: Vec<_> = objects
        .map(|(kind, name, text)| Source::new(format!("{kind}/{name}"), text))
        .collect();
    PolicySet::parse(&sources).map_err(|problems| StateError::Policy(problems.to_string()))
}

fn decode<T: for<'de> Deserialize<'de>>(
    key: &str,
    value: Option<&[u8]>,
) -> Result<Option<T>, StateError> {
    value
        .map(|value| {
            serde_json::from_slice(value).map_err(|source| StateError::Record {
                key: key.to_owned(),
                source,
            })
        })
        .transpose()
}

fn change<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
