//! Sends what the spool holds, as fast as the controller gives credit, and forgets what it has made durable.

use std::sync::{Arc, PoisonError};

use prost::Message;
use proto::v1::flow_ingest_client::FlowIngestClient;
use proto::v1::{FlowAck, FlowBatch};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tracing::warn;

use super::ControlError;
use crate::daemon::Host;
use crate::flows::spool::Batch;

/// Batches that may be under way before the controller has said how many it takes.
const FIRST_CREDIT: u64 = 1;
const READ_AHEAD: usize = 64;

/// Where the stream is.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    /// The next batch to send.
    next: u64,
    /// The last batch that may be sent.
    limit: u64,
}

impl Window {
    const fn resume(acked: u64) -> Self {
        Self {
            next: acked + 1,
            limit: acked + FIRST_CREDIT,
        }
    }

    /// How many batches may be sent now.
    const fn room(&self) -> u64 {
        (self.limit + 1).saturating_sub(self.next)
    }

    /// Takes an answer in: `credit` counts from what is acknowledged.
    fn answered(&mut self, ack: &FlowAck) {
        self.limit = self.limit.max(ack.sequence + u64::from(ack.credit));
        self.next = self.next.max(ack.sequence + 1);
    }
}

/// Runs until the stream ends.
pub(super) async fn run(host: Arc<Host>, channel: Channel) -> Result<(), ControlError> {
    let (batches, queue) = mpsc::channel::<FlowBatch>(READ_AHEAD);
    let mut window = Window::resume(acked(&host));
    let mut client = FlowIngestClient::new(channel).send_compressed(CompressionEncoding::Zstd);
    let call = client.export(ReceiverStream::new(queue));
    tokio::pin!(call);
    // The controller may answer the call only when it has seen a batch.
    let mut answers = loop {
        fill(&host, &batches, &mut window).await?;
        tokio::select! {
            answer = &mut call => break answer.map_err(ControlError::call("flow stream"))?.into_inner(),
            () = host.spooled.notified() => {}
        }
    };
    loop {
        fill(&host, &batches, &mut window).await?;
        tokio::select! {
            answer = answers.message() => {
                let ack = answer.map_err(ControlError::call("flow stream"))?.ok_or(ControlError::Closed)?;
                if !ack.refused.is_empty() {
                    warn!(sequence = ack.sequence, why = %ack.refused, "the controller refused a batch of records");
                }
                let stored = host.spool.lock().unwrap_or_else(PoisonError::into_inner).acknowledge(ack.sequence);
                if let Err(error) = stored {
                    host.report_error(&format!("remembering what was exported: {error}"));
                }
                window.answered(&ack);
            }
            () = host.spooled.notified() => {}
        }
    }
}

fn acked(host: &Host) -> u64 {
    host.spool
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .acked()
}

async fn fill(
    host: &Arc<Host>,
    batches: &mpsc::Sender<FlowBatch>,
    window: &mut Window,
) -> Result<(), ControlError> {
    while window.room() > 0 {
        let count = usize::try_from(window.room())
            .unwrap_or(READ_AHEAD)
            .min(READ_AHEAD);
        let (from, reader) = (window.next, Arc::clone(host));
        let read = tokio::task::spawn_blocking(move || {
            reader
                .spool
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read_from(from, count)
        })
        .await;
        let read: Vec<Batch> = match read {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                host.report_error(&format!("reading the spool: {error}"));
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        if read.is_empty() {
            return Ok(());
        }
        for batch in read {
            match FlowBatch::decode(batch.payload.as_slice()) {
                Ok(message) => batches
                    .send(message)
                    .await
                    .map_err(|_| ControlError::Closed)?,
                // Its checksum was right: an older agent wrote it in another form.
                Err(error) => {
                    warn!(sequence = batch.sequence, %error, "a spooled batch is not understood")
                }
            }
            // Batches that were given up for want of room leave a gap, which the next one's losses name.
            window.next = batch.sequence + 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_counts_from_what_is_acknowledged() {
        let mut window = Window::resume(7);
        assert_eq!((window.next, window.room()), (8, 1));
        window.next = 9;
        assert_eq!(window.room(), 0);
        let ack = |sequence, credit| FlowAck {
            sequence,
            credit,
            refused: String::new(),
        };
        window.answered(&ack(8, 16));
        assert_eq!(window.room(), 16);
        window.next = 20;
        window.answered(&ack(10, 16));
        assert_eq!((window.next, window.room()), (20, 7));
        // The controller knows of more than this agent: it answers from where it is.
        window.answered(&ack(30, 4));
        assert_eq!((window.next, window.room()), (31, 4));
    }
}
