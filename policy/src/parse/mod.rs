//! Text to objects: strict, bounded, and with every problem at once.

pub(crate) mod document;
pub(crate) mod fields;
mod invariant;
pub(crate) mod inventory;
pub(crate) mod node;
pub(crate) mod peers;
pub(crate) mod policy;
pub(crate) mod ports;

use crate::model::Object;
use crate::problems::Problems;
use crate::source::Source;

/// Every object of some sources, or every problem in them. All or nothing.
pub fn parse(sources: &[Source]) -> Result<Vec<Object>, Problems> {
    let mut problems = Problems::default();
    let mut objects = Vec::new();
    for source in sources {
        match node::documents(source) {
            Ok(documents) => {
                for document in &documents {
                    document::read(document, &mut objects, &mut problems);
                }
            }
            Err(more) => problems.0.extend(more.0),
        }
    }
    crate::kubernetes::settle(&mut objects);
    problems.into_result(objects)
}

/// Every object of documents that were read before.
pub(crate) fn objects_of(documents: &[node::Node]) -> Result<Vec<Object>, Problems> {
    let mut problems = Problems::default();
    let mut objects = Vec::new();
    for document in documents {
        document::read(document, &mut objects, &mut problems);
    }
    problems.into_result(objects)
}
