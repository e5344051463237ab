//! The verbs, one file each.

mod apply;
mod completions;
mod confirm;
mod context;
mod current;
mod diff;
mod edges;
mod explain;
mod findings;
mod flows;
mod get;
mod history;
mod isolate;
mod past;
mod plan;
mod policy;
mod reach;
mod recommend;
mod revoke;
mod rollback;
mod session;
mod status;
mod token;
mod workloads;

use clap::Subcommand;

use crate::Outcome;
use crate::options::Cli;
use crate::output::Screen;
use session::Session;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Apply(apply::Apply),
    Diff(diff::Diff),
    Plan(plan::Plan),
    Recommend(recommend::Recommend),
    Confirm(confirm::Confirm),
    Rollback(rollback::Rollback),
    History(history::History),
    Get(get::Get),
    Explain(explain::Explain),
    Status(status::Status),
    Workloads(workloads::Workloads),
    Flows(flows::Flows),
    Edges(edges::Edges),
    Findings(findings::Findings),
    Isolate(isolate::Isolate),
    Restore(isolate::Restore),
    Token(token::Token),
    Revoke(revoke::Revoke),
    Policy(policy::Policy),
    Context(context::ContextVerb),
    Completions(completions::Completions),
}

/// Runs the verb.
pub(crate) async fn run(cli: Cli, screen: &mut Screen) -> anyhow::Result<Outcome> {
    let session = Session::new(cli.global.connection);
    match cli.verb {
        Verb::Apply(verb) => verb.run(&session, screen).await,
        Verb::Diff(verb) => verb.run(&session, screen).await,
        Verb::Plan(verb) => verb.run(&session, screen).await,
        Verb::Recommend(verb) => verb.run(&session, screen).await,
        Verb::Confirm(verb) => verb.run(&session, screen).await,
        Verb::Rollback(verb) => verb.run(&session, screen).await,
        Verb::History(verb) => verb.run(&session, screen).await,
        Verb::Get(verb) => verb.run(&session, screen).await,
        Verb::Explain(verb) => verb.run(&session, screen).await,
        Verb::Status(verb) => verb.run(&session, screen).await,
        Verb::Workloads(verb) => verb.run(&session, screen).await,
        Verb::Flows(verb) => verb.run(&session, screen).await,
        Verb::Edges(verb) => verb.run(&session, screen).await,
        Verb::Findings(verb) => verb.run(&session, screen).await,
        Verb::Isolate(verb) => verb.run(&session, screen).await,
        Verb::Restore(verb) => verb.run(&session, screen).await,
        Verb::Token(verb) => verb.run(&session, screen).await,
        Verb::Revoke(verb) => verb.run(&session, screen).await,
        Verb::Policy(verb) => verb.run(screen),
        Verb::Context(verb) => verb.run(&session, screen),
        Verb::Completions(verb) => verb.run(screen),
    }
}
