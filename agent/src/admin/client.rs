//! The command line's end of the socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Answer, Request};

/// Asks a daemon; `Ok(None)` when none answers at that path.
///
/// # Errors
/// When a daemon is there but the exchange fails.
pub fn ask(path: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let Some(mut answers) = open(path, request)? else {
        return Ok(None);
    };
    match answers.next() {
        Some(answer) => answer.map(Some),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Asks a daemon for a stream of answers.
///
/// # Errors
/// When a daemon is there but the question cannot be sent.
pub fn open(
    path: &Path,
    request: &Request,
) -> io::Result<Option<impl Iterator<Item = io::Result<Answer>> + use<>>> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let lines = BufReader::new(stream).lines();
    Ok(Some(lines.map(|line| {
        let line = line?;
        serde_json::from_str(&line).map_err(io::Error::from)
    })))
}
