//! A question as people ask it, and its whole answer: what `cofferdam policy reach` prints.

use serde::Serialize;

use super::ask::Example;
use super::blast::{Direction, Reached, Step};
use super::pieces::{Group, Piece};
use super::{End, EndError, Lens, PortSet, Question, Reach, Wanted};

/// Pairs of classes that one answer takes apart at most.
const MOST_PAIRS: usize = 100_000;

/// What somebody wants to know.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who opens the flow, as [`End::parse`] reads it; none = anybody.
    pub from: Vec<String>,
    /// Who answers; none = anybody.
    pub to: Vec<String>,
    /// Which protocols and ports matter, as [`PortSet::parse`] reads them; none = all.
    pub ports: Vec<String>,
    /// Under which circumstances.
    pub lens: Lens,
    /// Over any number of workloads.
    pub transitive: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// An end is nobody.
    #[error(transparent)]
    End(#[from] EndError),
    /// A port is none.
    #[error("{0:?} is no port; write it like tcp/443, udp/8000-8080, icmp/8, icmp/3:4 or udp")]
    Port(String),
    /// Neither end was given.
    #[error("neither end is given")]
    NoEnd,
    /// "No" would be a wrong answer to a question about nobody.
    #[error("\"{side}\" means nobody that is there ({text})")]
    Nobody {
        /// `from` or `to`.
        side: &'static str,
        /// As given.
        text: String,
    },
    /// No flow is meant.
    #[error("no flow from one side to the other has an end that is managed")]
    NoFlow,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Who opens, as it was asked; `any` where nobody was named.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// On which protocols and ports.
    pub ports: PortSet,
    /// Under which circumstances.
    pub lens: Lens,
    /// Over any number of workloads.
    pub transitive: bool,
    /// Workloads that may open.
    pub sources: usize,
    /// Workloads that may answer.
    pub destinations: usize,
    /// Whether any such flow, or way, is there.
    pub reachable: bool,
    /// The plainest flow.
    pub example: Option<Example>,
    /// The shortest way, where ways were asked for and both ends given.
    pub way: Vec<Step>,
    /// Everybody on a way, where ways were asked for and one end given.
    pub reached: Vec<Reached>,
    /// Everything that passes directly, in disjoint pieces.
    pub pieces: Vec<Piece>,
    /// Pairs of classes that the pieces leave out.
    pub left_out: usize,
}

impl Reach<'_> {
    /// Answers as people ask.
    ///
    /// # Errors
    /// When an end or a port cannot be read, or means nobody.
    pub fn report(&mut self, request: &Request) -> Result<Report, RequestError> {
        if request.from.is_empty() && request.to.is_empty() {
            return Err(RequestError::NoEnd);
        }
        let (from, to) = (ends(&request.from)?, ends(&request.to)?);
        let question = Question {
            ports: ports(&request.ports)?,
            lens: request.lens,
            wanted: Wanted::Passing,
            from,
            to,
        };
        let found = self.ask(&question)?;
        let (from, to) = (texts(&question.from), texts(&question.to));
        for (side, found, text) in [("from", &found.from, &from), ("to", &found.to, &to)] {
            if found.is_empty() {
                let text = text.clone();
                return Err(RequestError::Nobody { side, text });
            }
        }
        if found.compared == 0 {
            return Err(RequestError::NoFlow);
        }
        let example = self.example(&found);
        let pieces = self.pieces(&found, MOST_PAIRS);
        let mut report = Report {
            from,
            to,
            ports: question.ports.clone(),
            lens: request.lens,
            transitive: request.transitive,
            sources: found.from.workloads,
            destinations: found.to.workloads,
            reachable: example.is_some(),
            example,
            way: Vec::new(),
            reached: Vec::new(),
            pieces: pieces.pieces,
            left_out: pieces.left_out,
        };
        if request.transitive {
            self.ways(request, &question, &mut report)?;
        }
        Ok(report)
    }

    fn ways(
        &mut self,
        request: &Request,
        question: &Question,
        report: &mut Report,
    ) -> Result<(), EndError> {
        let (start, direction) = match (request.from.is_empty(), request.to.is_empty()) {
            (false, true) => (&question.from, Direction::From),
            (true, false) => (&question.to, Direction::To),
            _ => {
                let (from, to) = (&question.from, &question.to);
                let way = self.way(from, to, &question.ports, question.lens)?;
                report.reachable |= way.is_some();
                report.way = way.unwrap_or_default();
                return Ok(());
            }
        };
        let spread = self.spread(start, &question.ports, question.lens, direction)?;
        report.reached = self.reached(&spread);
        report.reachable |= !report.reached.is_empty();
        Ok(())
    }
}

fn ends(texts: &[String]) -> Result<Vec<End>, EndError> {
    if texts.is_empty() {
        return Ok(vec![End::parse("any")?]);
    }
    texts.iter().map(|text| End::parse(text)).collect()
}

fn ports(texts: &[String]) -> Result<PortSet, RequestError> {
    if texts.is_empty() {
        return Ok(PortSet::ALL);
    }
    texts.iter().try_fold(PortSet::NONE, |all, text| {
        let one = PortSet::parse(text).ok_or_else(|| RequestError::Port(text.clone()))?;
        Ok(all.union(&one))
    })
}

fn texts(ends: &[End]) -> String {
    let texts: Vec<String> = ends.iter().map(ToString::to_string).collect();
    texts.join(" or ")
}

/// `web-1, web-2 and 8 more`, `world (0.0.0.0/0 but 2 networks)`.
impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 3;
        let workloads = self.workloads.iter().map(|member| member.name.clone());
        let networks = self
            .networks
            .iter()
            .map(|network| match network.except.len() {
                0 => format!("{} {}", network.entity, network.cidr),
                1 => format!("{} {} but one network", network.entity, network.cidr),
                more => format!("{} {} but {more} networks", network.entity, network.cidr),
            });
        let mut all: Vec<String> = workloads.chain(networks).collect();
        let more = all.len().saturating_sub(SHOWN);
        if more > 1 {
            all.truncate(SHOWN);
            return write!(f, "{} and {more} more", all.join(", "));
        }
        f.write_str(&all.join(", "))
    }
}
