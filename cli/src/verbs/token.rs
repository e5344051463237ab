//! `token`: let an agent join.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use proto::v1::{self, inventory_client::InventoryClient};

use super::session::{Session, mutation, whole_seconds};
use crate::Outcome;
use crate::model;
use crate::options::{MutationFlags, duration};
use crate::output::Screen;

/// Make join tokens for agents
#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    Create(Create),
}

/// Make a token with which one agent can join, once
#[derive(Debug, Args)]
struct Create {
    /// Workload that the agent will be
    #[arg(long, value_name = "NAME")]
    workload: String,
    /// Namespace of the workload
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    namespace: String,
    /// Label that the workload gets; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Address or prefix that the agent may claim; may be repeated
    #[arg(long = "address", value_name = "CIDR", required = true, value_parser = prefix)]
    addresses: Vec<IpNet>,
    /// How long the token can be used
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    ttl: Duration,
    #[command(flatten)]
    mutation: MutationFlags,
}

impl Token {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let TokenVerb::Create(create) = self.verb;
        let options = mutation(&create.mutation, false)?;
        let key = options.idempotency_key.clone();
        let request = v1::CreateTokenRequest {
            options: Some(options),
            workload: create.workload.clone(),
            labels: create.labels.into_iter().collect(),
            addresses: create.addresses.into_iter().map(Into::into).collect(),
            ttl_seconds: whole_seconds(create.ttl)?,
            namespace: create.namespace,
        };
        let remote = session.connect().await?;
        let mut client = InventoryClient::new(remote.channel());
        let response = remote
            .mutate(&key, Duration::ZERO, client.create_token(request))
            .await?;
        screen.show(&model::Token {
            workload: create.workload,
            token: response.token,
            expires_at: model::moment(response.expires_at),
            ca_sha256: response.ca_sha256,
        })?;
        Ok(Outcome::Done)
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".into()),
    }
}

/// A prefix; an address alone is a prefix of its full length. Host bits are refused rather than cut.
fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| "must be an address or a prefix, as in 10.0.0.5 or 10.0.0.0/24".to_owned())?;
    if net.trunc() != net {
        return Err(format!("has host bits set; did you mean {}?", net.trunc()));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_prefix() {
        assert_eq!(prefix("10.0.0.5").unwrap().to_string(), "10.0.0.5/32");
        assert_eq!(prefix("fd00::/64").unwrap().to_string(), "fd00::/64");
        assert!(prefix("10.0.0.5/24").unwrap_err().contains("10.0.0.0/24"));
        assert!(prefix("web").is_err());
    }

    #[test]
    fn a_label_may_hold_an_equals_sign() {
        assert_eq!(label("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(label("=b").is_err());
        assert!(label("a").is_err());
    }
}
