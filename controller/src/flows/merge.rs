//! Putting two records of one flow together: counters are totals, so that the higher ones win.

use proto::v1::FlowRecord;

/// What a record adds to its edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub flows: i64,
    pub packets: i64,
    pub bytes: i64,
    pub allowed: i64,
    pub denied: i64,
}

/// The flow after a further record of it, and what the edge gains.
pub(super) fn merge(old: Option<&FlowRecord>, new: FlowRecord) -> (FlowRecord, Delta) {
    let Some(old) = old else {
        let delta = Delta {
            flows: 1,
            packets: packets(&new),
            bytes: bytes(&new),
            allowed: i64::from(new.allowed),
            denied: i64::from(!new.allowed),
        };
        return (new, delta);
    };
    // The later of the two tells state and verdict; each counter is the higher of both.
    let mut merged = if progress(&new) >= progress(old) {
        new.clone()
    } else {
        old.clone()
    };
    merged.packets_out = old.packets_out.max(new.packets_out);
    merged.packets_in = old.packets_in.max(new.packets_in);
    merged.bytes_out = old.bytes_out.max(new.bytes_out);
    merged.bytes_in = old.bytes_in.max(new.bytes_in);
    merged.tcp_flags = old.tcp_flags | new.tcp_flags;
    merged.closed = old.closed || new.closed;
    merged.opening = old.opening || new.opening;
    merged.first_seen = earlier(old, &new);
    if !merged.initiator_workload.is_empty() || !merged.responder_workload.is_empty() {
        // Names as they were when the flow was first heard of: its edge has them.
        merged
            .initiator_workload
            .clone_from(&old.initiator_workload);
        merged
            .responder_workload
            .clone_from(&old.responder_workload);
    }
    let delta = Delta {
        flows: 0,
        packets: packets(&merged) - packets(old),
        bytes: bytes(&merged) - bytes(old),
        allowed: i64::from(merged.allowed) - i64::from(old.allowed),
        denied: i64::from(!merged.allowed) - i64::from(!old.allowed),
    };
    (merged, delta)
}

fn progress(record: &FlowRecord) -> (bool, u64, i64, i32) {
    let last = record.last_seen.unwrap_or_default();
    (
        record.closed,
        record.packets_out.saturating_add(record.packets_in),
        last.seconds,
        last.nanos,
    )
}

fn earlier(old: &FlowRecord, new: &FlowRecord) -> Option<prost_types::Timestamp> {
    match (old.first_seen, new.first_seen) {
        (Some(old), Some(new)) if (new.seconds, new.nanos) < (old.seconds, old.nanos) => Some(new),
        (old, new) => old.or(new),
    }
}

fn packets(record: &FlowRecord) -> i64 {
    clamp(record.packets_out.saturating_add(record.packets_in))
}

fn bytes(record: &FlowRecord) -> i64 {
    clamp(record.bytes_out.saturating_add(record.bytes_in))
}

/// A liar's counters must not overflow a sum: no real flow comes near this.
fn clamp(counter: u64) -> i64 {
    i64::try_from(counter).unwrap_or(i64::MAX).min(1 << 56)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(packets: u64, allowed: bool, closed: bool) -> FlowRecord {
        FlowRecord {
            packets_out: packets,
            bytes_out: packets * 100,
            allowed,
            closed,
            ..FlowRecord::default()
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        let records = [
            record(1, true, false),
            record(5, true, false),
            record(9, false, true),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 2, 2]] {
            let (mut known, mut sum) = (None, Delta::default());
            for index in order {
                let (merged, delta) = merge(known.as_ref(), records[index].clone());
                known = Some(merged);
                sum.flows += delta.flows;
                sum.packets += delta.packets;
                sum.bytes += delta.bytes;
                sum.allowed += delta.allowed;
                sum.denied += delta.denied;
            }
            let expected = Delta {
                flows: 1,
                packets: 9,
                bytes: 900,
                allowed: 0,
                denied: 1,
            };
            assert_eq!(sum, expected, "{order:?}");
        }
    }

    #[test]
    fn absurd_counters_do_not_overflow() {
        let (merged, _) = merge(None, record(1, true, false));
        let huge = FlowRecord {
            packets_out: u64::MAX,
            packets_in: u64::MAX,
            ..FlowRecord::default()
        };
        let (_, delta) = merge(Some(&merged), huge);
        assert!(delta.packets > 0);
    }
}
