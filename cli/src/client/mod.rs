//! The connection to the controller.

mod config;
mod interrupt;
mod remote;
mod resolve;

pub(crate) use config::{Context, ContextFile, config_path};
pub(crate) use remote::{MAX_ANSWER, Remote};
pub(crate) use resolve::{Environment, Target};
