//! Looking at flows, edges and findings.

use prost::Message as _;
use proto::v1;
use rusqlite::params;
use rusqlite::types::ToSql;

use super::{Flow, FlowDb};
use crate::sql::SqlError;

/// Which flows or edges are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Name or address at either end.
    pub workload: Option<String>,
    /// Name or address at the other end.
    pub peer: Option<String>,
    /// Of the responder.
    pub port: Option<u16>,
    /// Only what did not pass.
    pub denied_only: bool,
    /// IANA protocol number.
    pub protocol: Option<u8>,
}

impl Filter {
    /// Whether a live record is wanted.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let ends = [
            [flow.from(), flow.initiator.to_string()],
            [flow.to(), flow.responder.to_string()],
        ];
        let wanted = |name: &Option<String>, end: &[String; 2]| {
            name.as_ref().is_none_or(|name| end.contains(name))
        };
        let [from, to] = &ends;
        let around = wanted(&self.workload, from) && wanted(&self.peer, to)
            || wanted(&self.workload, to) && wanted(&self.peer, from);
        around
            && self.port.is_none_or(|port| port == flow.port)
            && self
                .protocol
                .is_none_or(|protocol| protocol == flow.protocol)
            && !(self.denied_only && flow.record.allowed)
    }
}

impl FlowDb {
    /// Flows that were last heard of before `before` (0 = the newest), newest first, with the
    /// position of each.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(
        &self,
        filter: Filter,
        before: i64,
        limit: u32,
    ) -> Result<Vec<(i64, v1::FlowRecord)>, SqlError> {
        self.database
            .call(move |connection| {
                let mut sql = Sql::new("SELECT updated, record FROM flows WHERE 1");
                sql.filter(&filter);
                if filter.denied_only {
                    sql.text.push_str(" AND denied = 1");
                }
                if let (Some(workload), _) | (None, Some(workload)) =
                    (&filter.workload, &filter.peer)
                {
                    sql.ends(
                        workload,
                        filter.workload.as_ref().and(filter.peer.as_ref()),
                        true,
                    );
                }
                if before > 0 {
                    sql.and("updated < ?", before);
                }
                sql.text.push_str(" ORDER BY updated DESC");
                sql.limit(limit);
                let mut statement = connection.prepare(&sql.text)?;
                let mut rows = statement.query(sql.values().as_slice())?;
                let mut flows = Vec::new();
                while let Some(row) = rows.next()? {
                    let bytes: Vec<u8> = row.get(1)?;
                    let record = v1::FlowRecord::decode(bytes.as_slice())
                        .map_err(|error| SqlError::Damaged(error.to_string()))?;
                    flows.push((row.get(0)?, record));
                }
                Ok(flows)
            })
            .await
    }

    /// Who talked to whom, in the order of names, after a position.
    ///
    /// Both ends may have told of one edge: then its counters are those of the side that saw more,
    /// and what one side let out and the other denied is denied.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn edges(
        &self,
        filter: Filter,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<v1::Edge>, SqlError> {
        self.database
            .call(move |connection| {
                let mut sql = Sql::new(
                    "SELECT source, destination, protocol, port, min(first), max(last), max(flows), max(packets),
                     max(bytes), min(allowed), sum(denied) FROM edges WHERE 1",
                );
                sql.filter(&filter);
                if let (Some(workload), _) | (None, Some(workload)) = (&filter.workload, &filter.peer) {
                    sql.ends(workload, filter.workload.as_ref().and(filter.peer.as_ref()), false);
                }
                sql.text.push_str(" GROUP BY source, destination, protocol, port");
                if filter.denied_only {
                    sql.text.push_str(" HAVING sum(denied) > 0");
                }
                sql.text.push_str(" ORDER BY source, destination, protocol, port");
                sql.limit(limit);
                sql.text.push_str(" OFFSET ?");
                sql.values.push(Box::new(offset));
                let mut statement = connection.prepare(&sql.text)?;
                let edges = statement.query_map(sql.values().as_slice(), edge)?;
                Ok(edges.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// Findings older than a position (0 = the newest), newest first, with the position of each.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn findings(
        &self,
        before: i64,
        limit: u32,
    ) -> Result<Vec<(i64, v1::Finding)>, SqlError> {
        self.database
            .call(move |connection| {
                let before = if before > 0 { before } else { i64::MAX };
                let mut statement = connection.prepare_cached(
                    "SELECT seq, finding FROM findings WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2",
                )?;
                let mut rows = statement.query(params![before, limit])?;
                let mut findings = Vec::new();
                while let Some(row) = rows.next()? {
                    let bytes: Vec<u8> = row.get(1)?;
                    let finding = v1::Finding::decode(bytes.as_slice())
                        .map_err(|error| SqlError::Damaged(error.to_string()))?;
                    findings.push((row.get(0)?, finding));
                }
                Ok(findings)
            })
            .await
    }
}

/// A statement that grows with its values.
struct Sql {
    text: String,
    values: Vec<Box<dyn ToSql>>,
}

impl Sql {
    fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            values: Vec::new(),
        }
    }

    fn and(&mut self, condition: &str, value: impl ToSql + 'static) {
        self.text.push_str(" AND ");
        self.text.push_str(condition);
        self.values.push(Box::new(value));
    }

    fn filter(&mut self, filter: &Filter) {
        if let Some(port) = filter.port {
            self.and("port = ?", port);
        }
        if let Some(protocol) = filter.protocol {
            self.and("protocol = ?", protocol);
        }
    }

    /// One name at either end, and perhaps another at the other end.
    fn ends(&mut self, one: &str, other: Option<&String>, addresses: bool) {
        let mut end = |column: &str, name: &str| {
            self.values.push(Box::new(name.to_owned()));
            if addresses {
                self.values.push(Box::new(name.to_owned()));
                format!("({column} = ? OR {column}_address = ?)")
            } else {
                format!("{column} = ?")
            }
        };
        let condition = match other {
            None => format!("{} OR {}", end("source", one), end("destination", one)),
            Some(other) => {
                let there = format!("{} AND {}", end("source", one), end("destination", other));
                let back = format!("{} AND {}", end("source", other), end("destination", one));
                format!("({there}) OR ({back})")
            }
        };
        self.text.push_str(&format!(" AND ({condition})"));
    }

    fn limit(&mut self, limit: u32) {
        self.text.push_str(" LIMIT ?");
        self.values.push(Box::new(limit));
    }

    fn values(&self) -> Vec<&dyn ToSql> {
        self.values.iter().map(|value| &**value).collect()
    }
}

fn edge(row: &rusqlite::Row<'_>) -> rusqlite::Result<v1::Edge> {
    let number =
        |index| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0));
    let (flows, denied) = (number(6)?, number(10)?);
    Ok(v1::Edge {
        from: row.get(0)?,
        to: row.get(1)?,
        protocol: row.get(2)?,
        port: row.get(3)?,
        first_seen: Some(proto::convert::from_unix_ns(row.get(4)?)),
        last_seen: Some(proto::convert::from_unix_ns(row.get(5)?)),
        flows: flows.max(denied),
        packets: number(7)?,
        bytes: number(8)?,
        allowed: number(9)?,
        denied,
    })
}
