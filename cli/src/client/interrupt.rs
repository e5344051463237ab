//! Ctrl-C, remembered: it counts also when nobody happens to wait for it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Exit code of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Whether the user pressed Ctrl-C since [`Interrupt::listen`].
#[derive(Clone)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// From now on Ctrl-C no longer ends the program by itself; the second one does.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut interrupts = signal(SignalKind::interrupt())?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            interrupts.recv().await;
            sender.send_replace(true);
            interrupts.recv().await;
            std::process::exit(INTERRUPTED);
        });
        Ok(Self(receiver))
    }

    /// Waits for it.
    pub(crate) async fn pressed(&self) {
        if self.0.clone().wait_for(|pressed| *pressed).await.is_err() {
            // The listener is gone with the runtime; then nobody waits any more either.
            std::future::pending::<()>().await;
        }
    }
}
