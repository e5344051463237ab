//! `get`: the stored objects.

use clap::Args;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::{Session, pages};
use crate::Outcome;
use crate::error::Failure;
use crate::model::ObjectList;
use crate::output::{Format, Screen};

/// Every kind of object, with what people type for it.
const KINDS: [(&str, &[&str]); 8] = [
    ("Policy", &["policy", "policies", "pol"]),
    ("Filter", &["filter", "filters"]),
    ("Mode", &["mode", "modes"]),
    ("Grant", &["grant", "grants"]),
    ("Guardrail", &["guardrail", "guardrails"]),
    ("AddressGroup", &["addressgroup", "addressgroups", "ag"]),
    ("Service", &["service", "services", "svc"]),
    ("Invariant", &["invariant", "invariants", "inv"]),
];

/// Show stored objects; `-o yaml` prints them as they were applied
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// policy, filter, mode, grant, guardrail, workload, addressgroup, service or invariant [default: all]
    kind: Option<String>,
    /// Only the object of this name
    name: Option<String>,
}

impl Get {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        // `KIND/NAME`, as `-o name` prints it, is understood too.
        let (kind, name) = match (&self.kind, &self.name) {
            (Some(both), None) => match both.split_once('/') {
                Some((kind, name)) => (kind, name),
                None => (both.as_str(), ""),
            },
            (kind, name) => (
                kind.as_deref().unwrap_or_default(),
                name.as_deref().unwrap_or_default(),
            ),
        };
        let kind = kind_of(kind)?;
        let remote = session.connect().await?;
        let revision = std::cell::Cell::new(0);
        let found = pages(usize::MAX, |page_size, page_token| {
            let (remote, revision) = (remote.clone(), &revision);
            let request = v1::ListObjectsRequest {
                kind: kind.to_owned(),
                name: name.to_owned(),
                page_size,
                page_token,
            };
            async move {
                let mut client = PoliciesClient::new(remote.channel());
                let page = remote.read(client.list(request)).await?;
                revision.set(page.revision);
                Ok((page.objects, page.next_page_token))
            }
        })
        .await?;
        if found.rows.is_empty() && !name.is_empty() {
            return Err(Failure::new(
                format!("there is no {kind} named {name}"),
                format!("`cofferdam get {kind}` lists what there is"),
            )
            .into());
        }
        let list = ObjectList {
            revision: revision.get(),
            objects: found.rows.into_iter().map(Into::into).collect(),
        };
        if screen.format() == Format::Yaml {
            for object in &list.objects {
                screen.raw("---\n")?;
                let text = object.text.trim_start_matches("---\n");
                screen.raw(text.trim_end())?;
                screen.raw("\n")?;
            }
            screen.flush()?;
        } else {
            screen.show(&list)?;
        }
        Ok(Outcome::Done)
    }
}

fn kind_of(word: &str) -> Result<&'static str, Failure> {
    let lower = word.to_ascii_lowercase();
    if lower.is_empty() || lower == "all" {
        return Ok("");
    }
    if matches!(lower.as_str(), "workload" | "workloads") {
        return Ok("Workload");
    }
    KINDS
        .iter()
        .find(|(_, words)| words.contains(&lower.as_str()))
        .map(|(kind, _)| *kind)
        .ok_or_else(|| {
            Failure::new(
                format!("there is no kind {word:?}"),
                "kinds: policy, filter, mode, grant, guardrail, workload, addressgroup, service, invariant",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::kind_of;

    #[test]
    fn kinds_are_found_by_what_people_type() {
        assert_eq!(kind_of("Policies").unwrap(), "Policy");
        assert_eq!(kind_of("AddressGroup").unwrap(), "AddressGroup");
        assert_eq!(kind_of("").unwrap(), "");
        assert!(kind_of("polcy").is_err());
    }
}
