//! The local operator's socket: one JSON object a line, each way. Root only (0600).
//!
//! [`client`] speaks it; [`offline`] does what can be done when no daemon answers.

pub mod client;
pub mod explain;
pub mod offline;
mod server;

use serde::{Deserialize, Serialize};

pub use offline::release;
pub use server::{listen, serve};

use crate::kernel::PanicMode;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What is enforced.
    Status,
    /// Records.
    Flows {
        /// And those to come, until the client hangs up.
        #[serde(default)]
        follow: bool,
        /// At most so many of those that were.
        #[serde(default)]
        limit: Option<usize>,
    },
    /// What this host would do with a flow.
    Explain {
        /// Address or name.
        from: String,
        /// Address or name.
        to: String,
        /// Name or number.
        #[serde(default)]
        protocol: Option<String>,
        /// Port; ICMP: type × 256 + code.
        port: u16,
    },
    /// Makes the waiting change final.
    Confirm {
        /// 0 = whichever waits.
        #[serde(default)]
        revision: u64,
    },
    /// Reads the policy directory again.
    Apply {
        /// Seconds; 0 = final at once, absent = as configured.
        #[serde(default)]
        confirm_within: Option<u64>,
    },
    /// Throws the panic switch.
    Panic {
        /// Which way.
        mode: PanicMode,
    },
    /// Stops the agent.
    Detach {
        /// What is left.
        leave: Leave,
    },
}

/// What `detach` leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leave {
    /// Enforcement goes on.
    Enforcing,
    /// Hooks and pins are gone: everything passes.
    Open,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It worked.
    Ok(serde_json::Value),
    /// It did not.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_a_documented_form() {
        let text = r#"{"verb":"explain","from":"10.0.0.1","to":"db","port":5432}"#;
        let request: Request = serde_json::from_str(text).expect("request");
        assert!(matches!(request, Request::Explain { port: 5432, .. }));
        let panic: Request =
            serde_json::from_str(r#"{"verb":"panic","mode":"close"}"#).expect("request");
        assert_eq!(
            panic,
            Request::Panic {
                mode: PanicMode::Close
            }
        );
        assert_eq!(
            serde_json::to_string(&Answer::Error("no".into())).expect("answer"),
            r#"{"error":"no"}"#
        );
    }
}
