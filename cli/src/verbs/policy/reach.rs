//! `policy reach`: exact reachability, without a controller.

use std::path::PathBuf;

use clap::Args;
use policy::api::Scenario;
use policy::reach::{Reach as Engine, Request};

use super::{Moment, refuse};
use crate::Outcome;
use crate::output::Screen;
use crate::sources;
use crate::verbs::reach::{Answer, Asked};

/// Answer exactly who can reach whom: no, or a counter-example and everything that passes
///
/// Not sampled: workloads that policy cannot tell apart are one class, and every pair of classes is
/// compared on all protocols and ports. What passes must pass both ends. Without --to it lists
/// everything that --from may reach, without --from everybody who may reach --to.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 not reachable (or a list was asked for), 1 the question is wrong or means nobody, 2 reachable."
)]
pub(super) struct Reach {
    /// Managed networks and workloads, besides Workload objects in the files
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    /// File or directory; may be repeated
    #[arg(long, value_name = "FILE|DIR", required = true, num_args = 1..)]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    moment: Moment,
}

impl Reach {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let inventory = self
            .inventory
            .as_deref()
            .map(sources::read_file)
            .transpose()?;
        let policies = sources::read(&self.policy)?;
        let scenario = match Scenario::parse(inventory.as_ref(), &policies) {
            Ok(scenario) => scenario,
            Err(problems) => return refuse(problems, screen),
        };
        let request: Request = self.asked.request();
        let mut engine = Engine::new(&scenario.world, &scenario.set, self.moment.get());
        let answer = Answer(engine.report(&request)?);
        screen.show(&answer)?;
        Ok(self.asked.outcome(answer.0.reachable))
    }
}
