//! The tables of one class: verdicts for blocks of protocols and ports.

use std::collections::{BTreeMap, BTreeSet};

use datapath::drop_reason::DropReason;
use time::OffsetDateTime;

use super::names::Names;
use super::prefixes::{Interval, prefixes};
use super::program::{Matched, Outcome, Point, Program, View};
use crate::ports::PortBlock;
use crate::snapshot::{CellVerdict, PortPrefix};

/// A rule cell without its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Cell {
    pub(super) enforced: CellVerdict,
    pub(super) draft: CellVerdict,
    pub(super) expires: Option<i64>,
    pub(super) after: Option<CellVerdict>,
    pub(super) mode_enforced: bool,
    pub(super) keep: bool,
    pub(super) audit: bool,
    pub(super) hard: bool,
}

/// A filter cell without its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FilterCellValue {
    pub(super) allow: Option<bool>,
    pub(super) rule: u32,
    pub(super) mode_enforced: bool,
}

/// A table: prefixes and what they hold, sorted.
pub(super) type Table<T> = Vec<(PortPrefix, T)>;

/// The policies' table. Its first entry covers everything.
pub(super) fn rule_table(
    program: &Program<'_>,
    matched: &Matched,
    at: OffsetDateTime,
    names: &mut Names,
) -> Table<Cell> {
    let deadlines = program.deadlines();
    let mut value = |point| cell(program, matched, point, at, &deadlines, names);
    let any = value((None, 0));
    let mut table = table(&program.borders(matched), any, value);
    table.push((PortPrefix::ANY, any));
    table.sort();
    table
}

/// The filters' table; empty when no filter speaks.
pub(super) fn filter_table(program: &Program<'_>, matched: &Matched) -> Table<FilterCellValue> {
    const NOTHING: FilterCellValue = FilterCellValue {
        allow: None,
        rule: 0,
        mode_enforced: false,
    };
    let value = |point: Point| match program.filter(matched, point) {
        None => NOTHING,
        Some((rule, allow)) => FilterCellValue {
            allow: Some(allow),
            rule,
            mode_enforced: !allow && program.enforces(point),
        },
    };
    let any = value((None, 0));
    let mut table = table(&program.filter_borders(matched), any, value);
    if any != NOTHING {
        table.push((PortPrefix::ANY, any));
    }
    table.sort();
    table
}

/// Prefixes of every protocol that some block names; `any` holds for all the others.
fn table<T: Copy + Ord>(
    borders: &[PortBlock],
    any: T,
    mut value: impl FnMut(Point) -> T,
) -> Table<T> {
    let mut starts: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for block in borders {
        let Some(protocol) = block.protocol else {
            continue;
        };
        let starts = starts.entry(protocol).or_insert_with(|| [0].into());
        starts.insert(block.low);
        starts.extend(block.high.checked_add(1));
    }
    let mut table = Vec::new();
    for (protocol, starts) in starts {
        let mut values: Vec<T> = vec![any];
        let mut numbers: BTreeMap<T, usize> = [(any, 0)].into();
        let mut intervals = Vec::with_capacity(starts.len());
        for low in starts {
            let value = value((Some(protocol), low));
            let number = *numbers.entry(value).or_insert_with(|| {
                values.push(value);
                values.len() - 1
            });
            intervals.push(Interval { low, value: number });
        }
        table.extend(prefixes(&intervals, 0).into_iter().filter_map(|prefix| {
            let ports = PortPrefix {
                protocol: Some(protocol),
                port: prefix.port,
                port_bits: prefix.bits,
            };
            values.get(prefix.value).map(|value| (ports, *value))
        }));
    }
    table
}

fn cell(
    program: &Program<'_>,
    matched: &Matched,
    point: Point,
    at: OffsetDateTime,
    deadlines: &[OffsetDateTime],
    names: &mut Names,
) -> Cell {
    let now = program.outcome(matched, point, View::Enforced(at), names);
    let draft = program.outcome(matched, point, View::Draft, names);
    let change = change(program, matched, point, now, deadlines, names);
    Cell {
        enforced: now.verdict,
        draft: draft.verdict,
        expires: change.map(|(moment, _)| nanoseconds(moment)),
        after: change.map(|(_, after)| after),
        mode_enforced: program.enforces(point),
        keep: now.keep,
        audit: now.audit,
        hard: now.hard,
    }
}

/// When the verdict changes first, and what follows. Segments with the same verdict are one. What
/// follows allows only if it allows for ever: the kernel knows one change, and must not open what a
/// later one closes.
fn change(
    program: &Program<'_>,
    matched: &Matched,
    point: Point,
    now: Outcome,
    deadlines: &[OffsetDateTime],
    names: &mut Names,
) -> Option<(OffsetDateTime, CellVerdict)> {
    let mut first: Option<(OffsetDateTime, CellVerdict)> = None;
    for deadline in deadlines {
        let next = program
            .outcome(matched, point, View::Enforced(*deadline), names)
            .verdict;
        match first {
            None if next.allow != now.verdict.allow => first = Some((*deadline, next)),
            Some((moment, after)) if after.allow && !next.allow => {
                first = Some((moment, next));
            }
            _ => {}
        }
    }
    first.map(|(moment, mut after)| {
        if now.verdict.allow && !after.allow {
            // Whatever denies now, the flow is cut because what allowed it has ended.
            after.reason = DropReason::Expired as u8;
        }
        (moment, after)
    })
}

/// Nanoseconds since the epoch, clamped to what the field holds (the years 1678 to 2262).
fn nanoseconds(moment: OffsetDateTime) -> i64 {
    let nanoseconds = moment.unix_timestamp_nanos();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}
