//! What every store must keep to, shown for SQLite.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says so by failing"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use controller::sql::SqlError;
use controller::store::{
    AuditEntry, Event, Op, Precondition, SqliteStore, Store, StoreError, Txn, Watch as _,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

fn put(key: &str, value: impl AsRef<[u8]>) -> Op {
    Op::Put(key.into(), value.as_ref().to_vec())
}

fn txn(preconditions: Vec<Precondition>, ops: Vec<Op>) -> Txn {
    Txn {
        preconditions,
        ops,
        audit: Vec::new(),
    }
}

fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(&dir.join("state.db")).expect("it opens")
}

async fn number<S: Store>(store: &S, key: &str) -> (u64, u64) {
    match store.get(key).await.expect("it answers") {
        Some(item) => {
            let text = String::from_utf8(item.value).expect("text");
            (text.parse().expect("a number"), item.revision)
        }
        None => (0, 0),
    }
}

/// Adds one, however often somebody else is faster.
async fn increment<S: Store>(store: &S, key: &str) -> u64 {
    loop {
        let (value, revision) = number(store, key).await;
        let next = txn(
            vec![Precondition::At(key.into(), revision)],
            vec![put(key, (value + 1).to_string())],
        );
        match store.txn(next).await {
            Ok(revision) => return revision,
            Err(StoreError::Stale { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_lose_nothing_and_a_watcher_sees_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let mut watch = store.watch("", 0);
    let watcher = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 8 * 25 * 2 {
            seen.push(watch.next().await.expect("an event"));
        }
        seen
    });
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for _ in 0..25 {
                increment(&store, "shared").await;
                increment(&store, &format!("own/{writer}")).await;
            }
        });
    }
    timeout(LIMIT, writers.join_all()).await.expect("in time");
    assert_eq!(number(&store, "shared").await.0, 200);
    let seen = timeout(LIMIT, watcher)
        .await
        .expect("in time")
        .expect("no panic");
    // Every revision once and in order: no gap, no repetition.
    let revisions: Vec<u64> = seen.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (1..=400).collect::<Vec<u64>>());
    let shared = seen.iter().filter(|event| event.key == "shared");
    let values: Vec<_> = shared
        .map(|event| event.value.clone().expect("a put"))
        .collect();
    let expected: Vec<_> = (1..=200).map(|n: u64| n.to_string().into_bytes()).collect();
    assert_eq!(values, expected);
}

#[tokio::test]
async fn a_stale_precondition_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let first = store
        .txn(txn(vec![], vec![put("a/x", "1")]))
        .await
        .expect("put");
    let fresh = Precondition::At("a/x".into(), 0);
    let refused = store
        .txn(txn(vec![fresh], vec![put("a/x", "2"), put("a/y", "2")]))
        .await;
    assert!(matches!(refused, Err(StoreError::Stale { found, .. }) if found == first));
    let (revision, items) = store.list("a/").await.expect("a list");
    assert_eq!(
        (revision, items.len(), items[0].value.as_slice()),
        (first, 1, &b"1"[..])
    );

    let unchanged = |since| Precondition::UnchangedSince("a/".into(), since);
    store
        .txn(txn(vec![unchanged(first)], vec![Op::Delete("a/x".into())]))
        .await
        .expect("unchanged");
    // A deletion is a change, although nothing is left of it.
    let refused = store
        .txn(txn(vec![unchanged(first)], vec![put("b", "1")]))
        .await;
    assert!(matches!(refused, Err(StoreError::Stale { .. })));
    assert!(store.get("b").await.expect("it answers").is_none());
}

#[tokio::test]
async fn a_watcher_sees_parts_deletions_and_only_its_prefix() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    store
        .txn(txn(
            vec![],
            vec![put("a/1", "x"), put("b/1", "y"), put("a/2", "z")],
        ))
        .await
        .expect("put");
    store
        .txn(txn(vec![], vec![Op::Delete("a/1".into())]))
        .await
        .expect("deleted");
    let mut watch = store.watch("a/", 0);
    let mut next = async || {
        timeout(LIMIT, watch.next())
            .await
            .expect("in time")
            .expect("an event")
    };
    let event = |revision, key: &str, value: Option<&str>| Event {
        revision,
        key: key.into(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    assert_eq!(next().await, event(1, "a/1", Some("x")));
    assert_eq!(next().await, event(1, "a/2", Some("z")));
    assert_eq!(next().await, event(2, "a/1", None));
}

#[tokio::test]
async fn pages_of_a_watcher_fit_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    for round in 0..30 {
        let ops = (0..100)
            .map(|n| put(&format!("{round}/{n}"), "v"))
            .collect();
        store.txn(txn(vec![], ops)).await.expect("put");
    }
    let mut watch = store.watch("", 0);
    for round in 0..30 {
        for n in 0..100 {
            let event = timeout(LIMIT, watch.next())
                .await
                .expect("in time")
                .expect("an event");
            assert_eq!(event.key, format!("{round}/{n}"));
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    for n in 0..20 {
        store
            .txn(txn(vec![], vec![put(&format!("k/{n}"), "v")]))
            .await
            .expect("put");
    }
    // What a power cut leaves: the files as they are, nothing closed.
    for name in ["state.db", "state.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).expect("copied");
    }
    let after = open(copy.path());
    let (revision, items) = after.list("k/").await.expect("a list");
    assert_eq!((revision, items.len()), (20, 20));
    assert_eq!(
        after
            .txn(txn(vec![], vec![put("k/x", "v")]))
            .await
            .expect("put"),
        21
    );
}

#[tokio::test]
async fn the_audit_chain_shows_tampering() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    for n in 0..5 {
        let entry = AuditEntry {
            at: n,
            actor: "somebody".into(),
            action: "test".into(),
            subject: n.to_string(),
            detail: String::new(),
        };
        let change = Txn {
            audit: vec![entry],
            ..txn(vec![], vec![put("k", n.to_string())])
        };
        store.txn(change).await.expect("put");
    }
    assert_eq!(store.verify_audit().await.expect("it answers"), Ok(5));
    assert_eq!(store.audit(2).await.expect("it answers")[0].subject, "4");
    let raw = rusqlite::Connection::open(dir.path().join("state.db")).expect("it opens");
    let edit = "UPDATE audit SET actor = 'nobody' WHERE seq = 3";
    assert!(raw.execute(edit, []).is_err(), "append-only");
    raw.execute_batch("DROP TRIGGER audit_keeps")
        .expect("root may");
    raw.execute(edit, []).expect("edited");
    assert_eq!(store.verify_audit().await.expect("it answers"), Err(3));
}

/// A small file system that goes when the test does.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None` when this user may not mount.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_loses_nothing() {
    let Some(tmpfs) = Tmpfs::mount("2m") else {
        eprintln!("skipped: may not mount a tmpfs");
        return;
    };
    let store = open(tmpfs.0.path());
    let ballast = tmpfs.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).expect("written");
    let mut acknowledged = 0;
    let full = loop {
        let ops = vec![put(&format!("k/{acknowledged:05}"), vec![7; 20_000])];
        match store.txn(txn(vec![], ops)).await {
            Ok(revision) => {
                acknowledged += 1;
                assert_eq!(revision, acknowledged);
            }
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the disk never fills");
    };
    assert!(
        matches!(full, StoreError::Sql(SqlError::DiskFull)),
        "{full:?}"
    );
    // Reading goes on, nothing acknowledged is lost, nothing half done is there.
    let (revision, items) = store.list("k/").await.expect("a list");
    assert_eq!((revision, items.len() as u64), (acknowledged, acknowledged));
    // With space it goes on by itself.
    std::fs::remove_file(&ballast).expect("removed");
    let next = store
        .txn(txn(vec![], vec![put("k/x", vec![7; 20_000])]))
        .await;
    assert_eq!(next.expect("it goes on"), acknowledged + 1);
    drop(store);
}
