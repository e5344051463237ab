//! Requests and answers of rtnetlink, as bytes: netlink header, the fixed part of a message type, attributes
//! (include/uapi/linux/netlink.h).

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Attribute types have two flag bits on top.
const TYPE_MASK: u16 = 0x3fff;

const HEADER: usize = 16;

/// A request: netlink header, fixed part, attributes.
pub(super) struct Message(Vec<u8>);

/// A message of the kernel.
pub(super) struct Answer {
    /// `RTM_…`.
    pub(super) kind: u16,
    /// Fixed part and attributes.
    pub(super) body: Vec<u8>,
}

impl Message {
    /// `head` is the fixed part of the message type.
    pub(super) fn new(kind: u16, flags: libc::c_int, head: &[u8]) -> Self {
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or(0);
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(0u32.to_ne_bytes()); // the length, when it is known
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(head);
        Self(bytes)
    }

    #[cfg(test)]
    pub(super) fn into_answer(mut self) -> Answer {
        let length = u32::try_from(self.0.len()).expect("length");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let (answer, rest) = next(&self.0).expect("message");
        assert!(rest.is_empty());
        answer
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.0.extend(value);
        self.close(start);
    }

    pub(super) fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend(0u16.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        start
    }

    pub(super) fn close(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).unwrap_or(0);
        if let Some(place) = self.0.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Sends it and reads to the end of the answer.
    pub(super) fn ask(mut self) -> io::Result<Vec<Answer>> {
        let length = u32::try_from(self.0.len()).unwrap_or(0);
        if let Some(place) = self.0.get_mut(..4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.send_to(&self.0, &SocketAddr::new(0, 0), 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some((answer, after)) = next(rest) {
                rest = after;
                let end = i32::from(answer.kind);
                if end == libc::NLMSG_ERROR || end == libc::NLMSG_DONE {
                    let status = word(&answer.body, 0).map_or(0, u32::cast_signed);
                    return if status < 0 {
                        Err(io::Error::from_raw_os_error(status.wrapping_neg()))
                    } else {
                        Ok(answers)
                    };
                }
                answers.push(answer);
            }
            if !rest.is_empty() || bytes.is_empty() {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// The first message of a buffer, and what follows it.
fn next(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let length = word(bytes, 0)? as usize;
    let kind = half(bytes, 4)?;
    let body = bytes.get(HEADER..length)?.to_vec();
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Answer { kind, body }, rest))
}

/// Type and value of each attribute; a malformed one ends it.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_messages_end_the_reading() {
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert!(next(&[255; 15]).is_none() && next(&[0; 16]).is_none());
    }
}
