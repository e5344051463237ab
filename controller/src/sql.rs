//! One SQLite database on one thread of its own.
//!
//! All access goes through [`Database::call`], in order: SQLite has one writer anyway, and whoever
//! waits here does not block the asynchronous part.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

/// Calls that may wait; more of them wait in front of the queue.
const QUEUE: usize = 256;

/// Why the database did not do it. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// No space is left. Everything acknowledged is safe; it goes on when there is space again.
    #[error("the disk that holds the data directory is full: nothing was changed, free some space")]
    DiskFull,
    /// The database was written by a newer version.
    #[error("the database has format {found}, this version knows {known}: use a newer controller")]
    Format {
        /// In the file.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The thread is gone.
    #[error("the database is closed")]
    Closed,
    /// The file cannot be made its owner's alone.
    #[error("{path}: {source}")]
    Private {
        /// Of the database.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error("database: {0}")]
    Sqlite(rusqlite::Error),
    /// The file holds something that cannot be read.
    #[error("database: damaged content: {0}")]
    Damaged(String),
}

impl From<rusqlite::Error> for SqlError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            _ => Self::Sqlite(error),
        }
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Handle to the thread that owns the connection.
#[derive(Clone, Debug)]
pub struct Database {
    jobs: mpsc::Sender<Job>,
}

impl Database {
    /// Opens or creates the file, with write-ahead log and full synchronisation, and brings it to
    /// the format whose steps `migrations` are.
    ///
    /// # Errors
    /// When the file cannot be opened or was written by a newer version.
    pub fn open(path: &Path, migrations: &'static [&'static str]) -> Result<Self, SqlError> {
        keep_private(path).map_err(|source| SqlError::Private {
            path: path.to_owned(),
            source,
        })?;
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        connection.set_prepared_statement_cache_capacity(64);
        migrate(&mut connection, migrations)?;

        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let name = path.file_stem().map_or_else(
            || "database".to_owned(),
            |stem| format!("db-{}", stem.to_string_lossy()),
        );
        thread::Builder::new()
            .name(name)
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(|_| SqlError::Closed)?;
        Ok(Self { jobs })
    }

    /// Runs `work` on the database's thread.
    ///
    /// # Errors
    /// What `work` returns, or [`SqlError::Closed`].
    pub async fn call<T, E>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<SqlError> + Send + 'static,
    {
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more when the caller hung up; the work is done all the same.
            let _unheard = answer.send(work(connection));
        });
        self.jobs.send(job).await.map_err(|_| SqlError::Closed)?;
        wait.await.map_err(|_| SqlError::Closed)?
    }
}

/// Only its owner reads a database, whatever the umask; `SQLite` gives its other files the mode of the first.
fn keep_private(path: &Path) -> io::Result<()> {
    const OWNER: u32 = 0o600;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(OWNER)
        .open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match fs::set_permissions(&file, Permissions::from_mode(OWNER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), SqlError> {
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    let transaction = connection.transaction()?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(SqlError::Format { found, known });
    }
    for step in migrations
        .iter()
        .skip(usize::try_from(found).unwrap_or(usize::MAX))
    {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}
