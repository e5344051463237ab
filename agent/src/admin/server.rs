//! The daemon's end of the socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc};

use super::{Answer, Leave, Request, explain};
use crate::daemon::Host;
use crate::daemon::Stop;
use crate::daemon::status::Status;

/// Opens the socket in a directory of its own making, for root only.
///
/// # Errors
/// When the path cannot be used, or another agent answers there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another agent answers on {}", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    // Nobody else may connect between bind and chmod.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(old);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the daemon stops.
pub async fn serve(host: Arc<Host>, listener: UnixListener, stop: mpsc::Sender<Stop>) {
    let mut clients = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(client(Arc::clone(&host), stream, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an operator");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn client(host: Arc<Host>, stream: UnixStream, stop: mpsc::Sender<Stop>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let done = match serde_json::from_str::<Request>(&line) {
            Ok(Request::Flows { follow, limit }) => flows(&host, &mut writer, follow, limit).await,
            Ok(request) => {
                let answer = answer(&host, request, &stop).await;
                write(&mut writer, &answer).await
            }
            Err(error) => write(&mut writer, &Answer::Error(error.to_string())).await,
        };
        if done.is_err() {
            return;
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

fn ok<T: Serialize>(value: &T) -> Answer {
    serde_json::to_value(value).map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok)
}

async fn flows(
    host: &Arc<Host>,
    writer: &mut OwnedWriteHalf,
    follow: bool,
    limit: Option<usize>,
) -> io::Result<()> {
    // Subscribed before the past is read: nothing falls between.
    let mut live = host.records.subscribe();
    let recent = host.recent();
    let skip = limit.map_or(0, |limit| recent.len().saturating_sub(limit));
    for record in recent.iter().skip(skip) {
        write(writer, &ok(&**record)).await?;
    }
    if !follow {
        return write(writer, &Answer::Ok(serde_json::Value::Null)).await;
    }
    loop {
        match live.recv().await {
            Ok(record) => write(writer, &ok(&*record)).await?,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                write(
                    writer,
                    &Answer::Error(format!("{missed} records were too fast for this reader")),
                )
                .await?;
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn answer(host: &Arc<Host>, request: Request, stop: &mpsc::Sender<Stop>) -> Answer {
    if let Request::Detach { leave } = request {
        let open = leave == Leave::Open;
        return match stop.send(Stop::Detach { open }).await {
            Ok(()) => ok(&serde_json::json!({ "stopping": true, "leave": leave })),
            Err(_) => Answer::Error("the agent is stopping already".into()),
        };
    }
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || blocking(&host, request))
        .await
        .unwrap_or_else(|error| Answer::Error(error.to_string()))
}

fn blocking(host: &Host, request: Request) -> Answer {
    let text = |error: &dyn std::fmt::Display| Answer::Error(error.to_string());
    match request {
        Request::Status => match Status::of(host) {
            Ok(status) => ok(&status),
            Err(error) => text(&error),
        },
        Request::Explain {
            from,
            to,
            protocol,
            port,
        } => match explain::explain(host, &from, &to, protocol.as_deref(), port) {
            Ok(explanation) => ok(&explanation),
            Err(error) => text(&error),
        },
        Request::Confirm { revision } => match host.confirm(revision) {
            Ok(revision) => ok(&serde_json::json!({ "confirmed": revision })),
            Err(error) => text(&error),
        },
        Request::Apply { confirm_within } => {
            let within = confirm_within.map_or(host.config.confirm_within, Duration::from_secs);
            let within = (!within.is_zero()).then_some(within);
            let applied = host
                .read_policy()
                .and_then(|policy| Ok(host.apply_asked(policy, within)?));
            match applied {
                Err(error) => {
                    host.report_error(&error);
                    text(&error)
                }
                Ok(applied) => ok(&serde_json::json!({
                    "revision": applied.revision,
                    "digest": hex::encode(applied.digest),
                    "generation": applied.generation,
                    "falls_back_in": applied.deadline.map(|deadline| {
                        deadline.saturating_sub(crate::kernel::clock::boot_ns() / 1_000_000_000)
                    }),
                })),
            }
        }
        Request::Panic { mode } => match host.kernel.set_panic(mode) {
            Ok(()) => ok(&serde_json::json!({ "panic": mode })),
            Err(error) => text(&error),
        },
        // Handled before: they need the connection or the daemon's main loop.
        Request::Flows { .. } | Request::Detach { .. } => Answer::Error("not here".into()),
    }
}
