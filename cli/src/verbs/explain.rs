//! `explain`: why a flow passes or not.

use std::str::FromStr;

use clap::Args;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::Session;
use crate::Outcome;
use crate::error::Failure;
use crate::model::Explanation;
use crate::output::{self, Screen};

/// Explain why a flow passes or not: both ends, every tier, which rule
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Workload or address that opens the flow
    from: String,
    /// Workload or address that answers
    to: String,
    /// 5432, 53/udp, 8/icmp or 3:4/icmp (type:code), 0/47 (a protocol without ports)
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: String,
}

impl Explain {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let spec: PortSpec = self.port.parse()?;
        let remote = session.connect().await?;
        let mut client = PoliciesClient::new(remote.channel());
        let request = v1::ExplainRequest {
            from: self.from.clone(),
            to: self.to.clone(),
            protocol: spec.protocol,
            port: spec.port,
        };
        let response = remote.read(client.explain(request)).await?;
        screen.show(&Explanation::new(
            self.from,
            self.to,
            output::port(spec.protocol, spec.port),
            response,
        ))?;
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
