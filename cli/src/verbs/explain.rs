//! `explain`: why a flow passes or not.

use std::str::FromStr;

use clap::Args;
use policy::locate::locate;
use policy::plan::record::FlowRecord;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::Session;
use super::{current, past};
use crate::Outcome;
use crate::error::Failure;
use crate::model::{Explanation, Past};
use crate::output::{self, Screen};

/// Explain why a flow passes or not: both ends, every tier, which rule, and what would have to change
///
/// For everything that a workload may reach, see `cofferdam policy reach --from`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    asked: Asked,
    /// A recorded flow by its id, or the beginning of it: what was said then, what now, and why
    #[arg(long, value_name = "ID", group = "past", conflicts_with = "from")]
    record: Option<String>,
}

/// Which flow.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Workload or address that opens the flow
    #[arg(required_unless_present = "past")]
    pub(super) from: Option<String>,
    /// Workload or address that answers
    #[arg(required_unless_present = "past")]
    pub(super) to: Option<String>,
    /// 5432, 53/udp, 8/icmp or 3:4/icmp (type:code), 0/47 (a protocol without ports)
    #[arg(value_name = "PORT[/PROTOCOL]", required_unless_present = "past")]
    pub(super) port: Option<String>,
    /// A recorded flow as `flows -f -o json` prints it, or - for stdin
    #[arg(long, value_name = "JSON", group = "past", conflicts_with = "from")]
    pub(super) flow: Option<String>,
}

/// A question of today, and the record that it comes from.
pub(super) struct Question {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) spec: PortSpec,
    pub(super) record: Option<FlowRecord>,
}

impl Question {
    pub(super) fn of_record(record: FlowRecord) -> Self {
        let (from, to) = past::ends(&record);
        Self {
            from,
            to,
            spec: PortSpec {
                protocol: record.protocol.into(),
                port: record.port.into(),
            },
            record: Some(record),
        }
    }
}

impl Asked {
    /// The question in the arguments.
    pub(super) fn question(self) -> anyhow::Result<Question> {
        if let Some(text) = &self.flow {
            return Ok(Question::of_record(past::given(text)?));
        }
        let (from, to) = (self.from.unwrap_or_default(), self.to.unwrap_or_default());
        Ok(Question {
            from,
            to,
            spec: self.port.unwrap_or_default().parse()?,
            record: None,
        })
    }
}

impl Explain {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        // What is wrong with the arguments is told before anybody is asked.
        let asked = match &self.record {
            Some(_) => None,
            None => Some(self.asked.question()?),
        };
        let remote = session.connect().await?;
        let question = match (asked, &self.record) {
            (Some(question), _) => question,
            (None, id) => {
                let id = id.as_deref().unwrap_or_default();
                Question::of_record(past::stored(&remote, id).await?)
            }
        };
        let spec = question.spec;
        let mut client = PoliciesClient::new(remote.channel());
        let request = v1::ExplainRequest {
            from: question.from.clone(),
            to: question.to.clone(),
            protocol: spec.protocol,
            port: spec.port,
        };
        let response = remote.read(client.explain(request)).await?;
        let port = output::port(spec.protocol, spec.port);
        let mut document = Explanation::new(question.from, question.to, port, response);
        if let Some(record) = &question.record {
            let changes = past::changes(&remote, record.revision).await?;
            let set = current::policies(&remote).await?.unwrap_or_default();
            let exists = |rule: &str| locate(&set, rule).is_some();
            document.past = Some(Past::new(record, &document.walk, &changes, exists));
        }
        screen.show(&document)?;
        Ok(Outcome::Done)
    }
}

/// A port and its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortSpec {
    pub(super) protocol: u32,
    /// ICMP: type × 256 + code.
    pub(super) port: u32,
}

impl FromStr for PortSpec {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::new(
                format!("{text:?} is no port"),
                "write it like 5432, 53/udp, 8/icmp or 3:4/icmp",
            )
        };
        let (number, name) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol(name).map_err(|_| wrong())?;
        let port = match protocol {
            1 | 58 => {
                let (kind, code) = number.split_once(':').unwrap_or((number, "0"));
                let kind: u8 = kind.parse().map_err(|_| wrong())?;
                let code: u8 = code.parse().map_err(|_| wrong())?;
                u32::from(kind) << 8 | u32::from(code)
            }
            _ => u32::from(number.parse::<u16>().map_err(|_| wrong())?),
        };
        Ok(Self { protocol, port })
    }
}

/// An IP protocol by name or number.
pub(super) fn protocol(name: &str) -> Result<u32, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => number
            .parse::<u8>()
            .map(u32::from)
            .map_err(|_| "not one of tcp, udp, sctp, icmp, icmpv6 or a number up to 255".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_their_protocol() {
        let read = |text: &str| text.parse::<PortSpec>().map(|s| (s.protocol, s.port));
        assert_eq!(read("5432").unwrap(), (6, 5432));
        assert_eq!(read("53/UDP").unwrap(), (17, 53));
        assert_eq!(read("8/icmp").unwrap(), (1, 0x0800));
        assert_eq!(read("3:4/icmp").unwrap(), (1, 0x0304));
        assert_eq!(read("0/47").unwrap(), (47, 0));
        for wrong in ["", "65536", "http", "53/upd", "256/icmp", "1:2/tcp", "-1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
