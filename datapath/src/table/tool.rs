//! Changes that the agent asks for: made by programs in the kernel, under the set's lock.

use crate::abi::tool;
use crate::flow::{FlowRef, Meta, slot};

use super::{
    Memory, Spot, Tabled, WAYS, bucket_of, bucket_word, count, find, has_spilled, lock,
    spilled_one_less, spilled_one_more, spot, unlock, way,
};

/// Answers of the programs that the agent runs to change a table; the numbers are [`crate::abi::tool`]'s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Tool {
    /// Done.
    Done = tool::DONE,
    /// The table says otherwise.
    Declined = tool::DECLINED,
    /// No room.
    Full = tool::FULL,
    /// No lock, or no table.
    Failed = tool::FAILED,
}

/// Puts `entry` into the table unless its flow is there: into a free way, else into the spill map. For connections that
/// were there before the programs.
#[inline(always)]
pub fn seed<F: Tabled, M: Memory<F>>(
    memory: M,
    key: &F::Key,
    words: &F::Words,
    entry: FlowRef<F>,
) -> Tool {
    let Some(tables) = memory.tables() else {
        return Tool::Failed;
    };
    let spot = spot::<F>(tables, words);
    if !lock::<F, M>(memory, spot.set) {
        return Tool::Failed;
    }
    let done = put(memory, spot, key, words, entry);
    unlock::<F, M>(memory, spot.set);
    if let Tool::Done = done {
        let mut change = bucket_word::ENTRY;
        if !entry.line(true).flags().is_proven() {
            change += bucket_word::UNPROVEN;
        }
        count::<F, M>(memory, bucket_of(tables, entry), change);
    }
    done
}

#[inline(always)]
fn put<F: Tabled, M: Memory<F>>(
    memory: M,
    spot: Spot,
    key: &F::Key,
    words: &F::Words,
    entry: FlowRef<F>,
) -> Tool {
    if find::<F, M>(memory, spot, words).is_some()
        || (has_spilled::<F, M>(memory, spot.set) && memory.spilled(key).is_some())
    {
        return Tool::Declined;
    }
    let Some(set) = memory.set(spot.set) else {
        return Tool::Failed;
    };
    let mut index = 0;
    while index < WAYS {
        // SAFETY: a whole set of the table.
        let free: FlowRef<F> = unsafe { way(set, spot.start + index) };
        if free.meta().slot() == slot::FREE {
            let meta = entry.meta();
            free.set_meta(Meta::new(0, meta.sequence(), slot::BUSY));
            // SAFETY: BUSY, and the lock is ours.
            unsafe { free.copy_behind_meta(entry) };
            free.set_meta(meta);
            return Tool::Done;
        }
        index += 1;
    }
    spilled_one_more::<F, M>(memory, spot.set);
    // SAFETY: memory of this CPU until it is in the map.
    if memory.spill(key, |copy| unsafe { copy.copy_whole(entry) }) {
        return Tool::Done;
    }
    spilled_one_less::<F, M>(memory, spot.set);
    Tool::Full
}

/// Takes a spilled entry out if it still is the instance that `seen` is a copy of, and nothing was counted since.
#[inline(always)]
pub fn reap<F: Tabled, M: Memory<F>>(
    memory: M,
    key: &F::Key,
    words: &F::Words,
    seen: FlowRef<F>,
) -> Tool {
    let Some(tables) = memory.tables() else {
        return Tool::Failed;
    };
    let spot = spot::<F>(tables, words);
    if !lock::<F, M>(memory, spot.set) {
        return Tool::Failed;
    }
    let mut done = Tool::Declined;
    if let Some(entry) = memory.spilled(key) {
        let (mine, theirs) = (entry.line(true), seen.line(true));
        let (mine_back, theirs_back) = (entry.line(false), seen.line(false));
        if entry.meta().sequence() == seen.meta().sequence()
            && mine.packets() == theirs.packets()
            && mine_back.packets() == theirs_back.packets()
        {
            let mut change = bucket_word::ENTRY;
            if !mine.flags().is_proven() {
                change += bucket_word::UNPROVEN;
            }
            count::<F, M>(memory, bucket_of(tables, entry), change.wrapping_neg());
            if memory.unspill(key) {
                spilled_one_less::<F, M>(memory, spot.set);
                done = Tool::Done;
            }
        }
    }
    unlock::<F, M>(memory, spot.set);
    done
}
