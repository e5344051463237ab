//! `docs/drop-reasons.md` is made from the enum; `COFFERDAM_CODEGEN=write` writes it anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use datapath::drop_reason::{DropReason, ReasonClass};

fn class(class: ReasonClass) -> &'static str {
    match class {
        ReasonClass::None => "allowed",
        ReasonClass::Policy => "policy",
        ReasonClass::Packet => "packet",
        ReasonClass::State => "state",
        ReasonClass::Resource => "resource",
        ReasonClass::Operator => "operator",
    }
}

fn page() -> String {
    let mut text = String::from(
        "# Drop reasons\n\n\
         Every dropped packet has exactly one reason, and every record, metric and `explain` uses the name below. Numbers\n\
         are part of the record format: they are never reused. This page is generated from `datapath/src/drop_reason.rs`.\n\n\
         Kinds: *policy*: somebody said so (the record names the rule, or the policies that closed the direction).\n\
         *packet*: the packet is broken or not understood. *state*: it belongs to no flow that was allowed.\n\
         *resource*: a limit, or a missing map entry. *operator*: the panic switch.\n\n\
         | number | name | kind | what it means |\n| ---: | --- | --- | --- |\n",
    );
    for reason in DropReason::ALL {
        text.push_str(&format!(
            "| {} | `{}` | {} | {} |\n",
            *reason as u8,
            reason.name(),
            class(reason.class()),
            reason.help()
        ));
    }
    text.push_str(
        "\n## What to do about one\n\n\
         `cofferdam explain FROM TO PORT` walks both ends tier by tier and says what would have to change. On the host itself,\n\
         without a controller, `cofferdam-agent explain` does the same from what the kernel holds.\n\
         `cofferdam flows --denied` lists what was dropped, with reason and rule.\n",
    );
    text
}

#[test]
fn the_page_of_drop_reasons_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/drop-reasons.md");
    if std::env::var("COFFERDAM_CODEGEN").as_deref() == Ok("write") {
        std::fs::write(path, page()).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == page(),
        "docs/drop-reasons.md is stale: run `cargo xtask codegen`"
    );
}
