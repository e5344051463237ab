//! What a verb needs of its surroundings: the connection, fresh keys, pages.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use proto::v1;

use crate::client::{ContextFile, Environment, Remote, Target, config_path};
use crate::options::{ConnectionFlags, MutationFlags};

/// Most rows asked for at once.
const PAGE: u32 = 500;

/// The connection as the user described it.
pub(crate) struct Session {
    flags: ConnectionFlags,
}

impl Session {
    /// Connects to nothing yet.
    pub(crate) const fn new(flags: ConnectionFlags) -> Self {
        Self { flags }
    }

    /// What was given on the command line.
    pub(crate) const fn flags(&self) -> &ConnectionFlags {
        &self.flags
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> anyhow::Result<Remote> {
        let file = match config_path() {
            Some(path) => ContextFile::load(&path)?,
            None => ContextFile::default(),
        };
        let target = Target::resolve(&self.flags, &Environment::read(), &file)?;
        Remote::connect(&target, self.flags.request_timeout).await
    }

    /// `cofferdam VERB` with the connection flags of this call, for the user to copy.
    pub(crate) fn command(&self, verb: &str) -> String {
        let mut command = "cofferdam".to_owned();
        let path = |path: &Option<std::path::PathBuf>| {
            path.as_ref()
                .map(|path| path.to_string_lossy().into_owned())
        };
        for (flag, value) in [
            ("--context", self.flags.context.clone()),
            ("--controller", self.flags.controller.clone()),
            ("--operator-dir", path(&self.flags.operator_dir)),
            ("--ca", path(&self.flags.ca)),
            ("--cert", path(&self.flags.cert)),
            ("--key", path(&self.flags.key)),
        ] {
            if let Some(value) = value {
                command = format!("{command} {flag} {}", quoted(&value));
            }
        }
        format!("{command} {verb}")
    }
}

/// For a POSIX shell.
fn quoted(word: &str) -> String {
    let harmless =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '@' | '=');
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What a mutation sends along; the key is fresh unless the user gave one.
pub(crate) fn mutation(
    flags: &MutationFlags,
    dry_run: bool,
) -> anyhow::Result<v1::MutationOptions> {
    let idempotency_key = match &flags.idempotency_key {
        Some(key) => key.clone(),
        None => fresh_key()?,
    };
    Ok(v1::MutationOptions {
        idempotency_key,
        expected_revision: flags.expect_revision,
        dry_run,
    })
}

fn fresh_key() -> anyhow::Result<String> {
    let mut random = [0u8; 16];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut random)
        .ok()
        .context("the system has no randomness")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Seconds for the wire; a limit that does not fit is an error rather than another limit.
pub(crate) fn whole_seconds(duration: Duration) -> anyhow::Result<u32> {
    // Rounded up: half a second must not turn into "no limit".
    let seconds = duration
        .as_secs()
        .saturating_add(u64::from(duration.subsec_nanos() > 0));
    u32::try_from(seconds).context("the duration is too long")
}

/// Rows gathered over pages.
pub(crate) struct Paged<T> {
    pub(crate) rows: Vec<T>,
    /// The limit was reached before the end.
    pub(crate) truncated: bool,
}

/// Gathers pages until the end or until `limit` rows. `page` takes a size and a token.
pub(crate) async fn pages<T, F>(
    limit: usize,
    mut page: impl FnMut(u32, String) -> F,
) -> anyhow::Result<Paged<T>>
where
    F: Future<Output = anyhow::Result<(Vec<T>, String)>>,
{
    let mut rows = Vec::new();
    let mut token = String::new();
    loop {
        let left = u32::try_from(limit.saturating_sub(rows.len())).unwrap_or(u32::MAX);
        let (mut new, next) = page(left.min(PAGE), token.clone()).await?;
        rows.append(&mut new);
        let truncated = rows.len() > limit || (rows.len() == limit && !next.is_empty());
        // A server that hands out its token again would never end.
        if next.is_empty() || rows.len() >= limit || next == token {
            rows.truncate(limit);
            return Ok(Paged { rows, truncated });
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let session = Session::new(ConnectionFlags {
            controller: Some("https://c:1".into()),
            operator_dir: Some("/it's here".into()),
            ..ConnectionFlags::default()
        });
        assert_eq!(
            session.command("confirm"),
            r"cofferdam --controller https://c:1 --operator-dir '/it'\''s here' confirm"
        );
    }

    #[test]
    fn keys_differ() {
        assert_ne!(fresh_key().unwrap(), fresh_key().unwrap());
        assert_eq!(fresh_key().unwrap().len(), 32);
    }

    #[test]
    fn part_of_a_second_is_a_second() {
        assert_eq!(whole_seconds(Duration::from_millis(1)).unwrap(), 1);
        assert!(whole_seconds(Duration::MAX).is_err());
    }

    #[tokio::test]
    async fn pages_end_at_the_limit_or_the_end() {
        let serve = |size: u32, token: String| async move {
            let from: usize = token.parse().unwrap_or(0);
            let to = (from + size.min(2) as usize).min(5);
            let next = if to < 5 {
                to.to_string()
            } else {
                String::new()
            };
            Ok(((from..to).collect::<Vec<_>>(), next))
        };
        let all = pages(100, serve).await.unwrap();
        assert_eq!((all.rows, all.truncated), (vec![0, 1, 2, 3, 4], false));
        let some = pages(3, serve).await.unwrap();
        assert_eq!((some.rows, some.truncated), (vec![0, 1, 2], true));
        let exact = pages(5, serve).await.unwrap();
        assert!(!exact.truncated);
    }

    #[tokio::test]
    async fn a_server_that_repeats_its_token_does_not_hang() {
        let serve = |_, _| async { Ok((vec![1], "again".to_owned())) };
        assert_eq!(pages(1000, serve).await.unwrap().rows, [1, 1]);
    }
}
