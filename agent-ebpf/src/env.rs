//! The kernel's side of `datapath::pipeline::Env`: maps, clocks, the ring.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem,
};
use datapath::abi::{
    ActiveWord, AddrValue, Config, DenyKey, EndpointValue, Event, Flow4, Flow6, Key4, Key6, Loss,
    Negative, Tables, mode,
};
use datapath::drop_reason::DropReason;
use datapath::flow::FlowRef;
use datapath::lines;
use datapath::negative::fold_now;
use datapath::packet::{Family, V4, V6};
use datapath::pipeline::{
    Aggregated, Denial, Env, Existing, Workspace, claim_now, decide_now, deny_now, follow_now,
    opened_now,
};
use datapath::table::{self, Memory};

use crate::content::{Content, bound4, bound6};
use crate::denials::aggregate;
use crate::{clock, maps};

/// Everything that a program reaches beside its packet.
#[derive(Clone, Copy)]
pub struct Kernel {
    skb: *mut __sk_buff,
}

/// The value behind a key in a map given by address.
#[inline(always)]
pub fn lookup<K, V>(map: *mut c_void, key: &K) -> Option<NonNull<V>> {
    // SAFETY: the map's key type is `K` (its declaration says so) and the verifier checks both sizes.
    NonNull::new(unsafe { bpf_map_lookup_elem(map, ptr::from_ref(key).cast()) }.cast())
}

/// A value copied at once: a hash slot may be reused at any time.
#[inline(always)]
pub fn copied<V: Copy>(value: Option<NonNull<V>>) -> Option<V> {
    // SAFETY: a whole map value that stays readable under RCU while the program runs.
    value.map(|value| unsafe { *value.as_ptr() })
}

/// The value in the inner map of a slot, where it lies.
macro_rules! found {
    ($map:ident, $slot:expr, $key:expr) => {
        match maps::$map.get($slot) {
            Some(inner) => lookup(ptr::from_ref(inner).cast_mut().cast(), $key),
            None => None,
        }
    };
}

/// The value in the inner map of a slot.
macro_rules! inner {
    ($map:ident, $slot:expr, $key:expr) => {
        copied(found!($map, $slot, $key))
    };
}

pub(crate) use {found, inner};

impl Kernel {
    /// For the packet of a context.
    #[inline(always)]
    pub const fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Length of the packet, link layer included.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).len }
    }

    /// Wire segments of a merged packet; 0 when it is none.
    #[inline(always)]
    pub fn segments(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).gso_segs }
    }

    /// Counts by drop reason.
    #[inline(always)]
    pub fn tally(&self, reason: DropReason, packets: u64, bytes: u64) {
        if let Some(counter) = maps::REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own slot.
            unsafe {
                (*counter).packets += packets;
                (*counter).bytes += bytes;
            }
        }
    }

    /// Whether the active content enforces nothing at all (observe mode, learning, opened by an operator).
    #[inline(always)]
    pub fn nothing_enforced(&self) -> bool {
        let Some(config) = maps::CONFIG.get(0) else {
            return false;
        };
        let word = active_word();
        if word.is_learning() || config.panic == datapath::abi::panic::OPEN {
            return true;
        }
        let (_, slot, _) = word.effective(clock::boot_ns() / 1_000_000_000);
        let endpoint: Option<EndpointValue> = inner!(ENDPOINTS, slot, &config.endpoint);
        match endpoint {
            Some(endpoint) => {
                endpoint.mode == mode::OBSERVE && config.panic == datapath::abi::panic::NONE
            }
            None => false,
        }
    }

    /// This CPU's scratch memory.
    #[inline(always)]
    pub fn scratch(&self) -> Option<&'static mut maps::Scratch> {
        // SAFETY: this CPU's own slot, and no two references to one part of it live at once.
        maps::SCRATCH
            .get_ptr_mut(0)
            .map(|scratch| unsafe { &mut *scratch })
    }
}

#[inline(always)]
fn active_word() -> ActiveWord {
    match maps::ACTIVE.get_ptr(0) {
        // SAFETY: an aligned word of a map value; user space writes it in one store.
        Some(word) => ActiveWord(unsafe { ptr::read_volatile(word) }),
        None => ActiveWord(0),
    }
}

/// Uses the context, so that callers do hand it over: the compiler passes nothing for an argument that nobody reads,
/// and the verifier wants a context there.
#[inline(always)]
fn keep(skb: *mut __sk_buff) {
    // SAFETY: the context is valid while the program runs.
    let _ = unsafe { ptr::read_volatile(&raw const (*skb).len) };
}

#[inline(always)]
fn bound_v4(slot: u32, addr: &[u8; 4]) -> u64 {
    bound4(slot, u32::from_ne_bytes(*addr))
}

#[inline(always)]
fn bound_v6(slot: u32, _: &[u8; 16]) -> u64 {
    bound6(slot)
}

/// What differs between the families: which maps.
macro_rules! env {
    ($family:ident, $bound:ident, $cidr_map:ident, $cidr:ident, $bits:literal, $flows:ident, $locks:ident, $spill:ident, $key:ident, $flow:ident, $scratch:ident, $decide:ident, $denied:ident, $opened:ident, $lock:ident, $claim:ident, $follow:ident) => {
        impl Memory<$family> for Kernel {
            #[inline(always)]
            fn tables(&self) -> Option<&Tables> {
                maps::TABLES.get(0)
            }

            #[inline(always)]
            fn set(&self, index: u32) -> Option<*mut u8> {
                maps::$flows.get_ptr_mut(index).map(|set| set.cast())
            }

            #[inline(always)]
            fn lock_word(&self, index: u32) -> Option<*mut u64> {
                maps::$locks.get_ptr_mut(index)
            }

            #[inline(always)]
            fn bucket(&self, index: u32) -> Option<*mut u64> {
                maps::BUCKETS.get_ptr_mut(index)
            }

            #[inline(always)]
            fn spilled(&self, key: &$key) -> Option<FlowRef<$family>> {
                lookup((&raw const maps::$spill).cast_mut().cast(), key)
                    // SAFETY: a whole entry; nobody takes it out but under the lock that the caller holds.
                    .map(|flow: NonNull<$flow>| unsafe { FlowRef::new(flow.as_ptr()) })
            }

            #[inline(always)]
            fn spill(&self, key: &$key, fill: impl FnOnce(FlowRef<$family>)) -> bool {
                let Some(scratch) = self.scratch() else {
                    return false;
                };
                let flow = &raw mut scratch.$scratch;
                // SAFETY: this CPU's own memory.
                fill(unsafe { FlowRef::new(flow) });
                // SAFETY: key and value are the map's types and live through the call.
                let result = unsafe {
                    bpf_map_update_elem(
                        (&raw const maps::$spill).cast_mut().cast(),
                        ptr::from_ref(key).cast(),
                        flow.cast(),
                        u64::from(BPF_NOEXIST),
                    )
                };
                result == 0
            }

            #[inline(always)]
            fn unspill(&self, key: &$key) -> bool {
                // SAFETY: the map's key type.
                let result = unsafe {
                    bpf_map_delete_elem(
                        (&raw const maps::$spill).cast_mut().cast(),
                        ptr::from_ref(key).cast(),
                    )
                };
                result == 0
            }
        }

        impl Env<$family> for Kernel {
            type Policy = Content;

            #[inline(always)]
            fn config(&self) -> Option<&Config> {
                maps::CONFIG.get(0)
            }

            #[inline(always)]
            fn active(&self) -> ActiveWord {
                active_word()
            }

            #[inline(always)]
            fn jiffies(&self) -> u32 {
                clock::jiffies() as u32
            }

            #[inline(always)]
            fn boot_ns(&self) -> u64 {
                clock::boot_ns()
            }

            #[inline(always)]
            fn policy(&self, slot: u32) -> Content {
                Content { slot }
            }

            #[inline(always)]
            fn binding(&self, slot: u32, addr: &<$family as Family>::Addr) -> AddrValue {
                let Some(scratch) = self.scratch() else {
                    return AddrValue::default();
                };
                // Linux 6.1 takes no key from memory that a global function was given, only from a map or the stack.
                let key = &mut scratch.$cidr;
                key.addr = *addr;
                if let Some(value) = lines::binding($bound(slot, addr)) {
                    return value;
                }
                key.prefix_len = $bits;
                let prefix: Option<AddrValue> = inner!($cidr_map, slot, &*key);
                prefix.unwrap_or_default()
            }

            #[inline(always)]
            fn emit(&self, fill: impl FnOnce(&mut Event)) -> bool {
                emit(fill)
            }

            #[inline(always)]
            fn deny(&self, key: &DenyKey, denial: &Denial, told: &mut Aggregated) {
                aggregate(key, denial, told);
            }

            #[inline(always)]
            fn negative(&self, slot: u32) -> Option<*mut Negative> {
                maps::NEGATIVES.get_ptr_mut(slot)
            }

            #[inline(always)]
            fn fold(&self, slot: u32) {
                fold(self.skb, slot);
            }

            #[inline(always)]
            fn count(&self, reason: DropReason, packets: u64, bytes: u64) {
                self.tally(reason, packets, bytes);
            }

            #[inline(always)]
            fn lose(&self, cause: Loss) {
                lose(cause);
            }

            #[inline(always)]
            fn ifindex(&self) -> u32 {
                // SAFETY: the context is valid while the program runs.
                unsafe { (*self.skb).ifindex }
            }

            #[inline(always)]
            fn cookie(&self) -> u64 {
                // SAFETY: the context is valid while the program runs.
                unsafe { bpf_get_socket_cookie(self.skb.cast()) }
            }

            #[inline(always)]
            fn decide(&self, w: &mut Workspace<$family>, panic_close: bool) {
                $decide(self.skb, w, panic_close as u32);
            }

            #[inline(always)]
            fn tell_denied(&self, w: &mut Workspace<$family>, opening: bool) {
                $denied(self.skb, w, opening as u32);
            }

            #[inline(always)]
            fn tell_opened(&self, w: &mut Workspace<$family>) {
                $opened(self.skb, w);
            }

            #[inline(always)]
            fn lock(&self, set: u32) -> bool {
                $lock(self.skb, set) != 0
            }

            #[inline(always)]
            fn claim(&self, w: &mut Workspace<$family>) -> u32 {
                $claim(self.skb, w) as u32
            }

            #[inline(always)]
            fn follow(&self, w: &mut Workspace<$family>, entry: FlowRef<$family>) -> Existing {
                match $follow(self.skb, w, entry.as_ptr().cast()) as u32 {
                    0 => Existing::Pass,
                    1 => Existing::Drop,
                    _ => Existing::Replace,
                }
            }
        }

        /// A set's lock. Global: see below.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $lock(skb: *mut __sk_buff, set: u32) -> i32 {
            keep(skb);
            i32::from(table::lock::<$family, _>(Kernel::new(skb), set))
        }

        /// Room in a set. Global: see below.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(skb: *mut __sk_buff, w: *mut Workspace<$family>) -> i32 {
            keep(skb);
            // SAFETY: the callers above hand over their only reference for as long as the call takes.
            match unsafe { w.as_mut() } {
                Some(w) => claim_now(Kernel::new(skb), w) as i32,
                None => table::WAYS as i32,
            }
        }

        /// An entry, moved by a packet. Global: see below.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $follow(
            skb: *mut __sk_buff,
            w: *mut Workspace<$family>,
            entry: *mut $flow,
        ) -> i32 {
            keep(skb);
            if entry.is_null() {
                return Existing::Drop as i32;
            }
            // SAFETY: as above; `entry` is a whole entry, and not null.
            match unsafe { (w.as_mut(), FlowRef::new(entry)) } {
                (Some(w), entry) => follow_now(Kernel::new(skb), w, entry) as i32,
                (None, _) => Existing::Drop as i32,
            }
        }

        /// The verdict. Global: the verifier looks at it once, by its types alone (which is why `w` may be null here).
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $decide(
            skb: *mut __sk_buff,
            w: *mut Workspace<$family>,
            panic_close: u32,
        ) -> i32 {
            keep(skb);
            // SAFETY: the callers above hand over their only reference for as long as the call takes.
            match unsafe { w.as_mut() } {
                Some(w) => decide_now(Kernel::new(skb), w, panic_close != 0),
                None => return 1,
            }
            0
        }

        /// A denial, counted and told. Global: see above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $denied(
            skb: *mut __sk_buff,
            w: *mut Workspace<$family>,
            opening: u32,
        ) -> i32 {
            keep(skb);
            // SAFETY: as above.
            match unsafe { w.as_mut() } {
                Some(w) => deny_now(Kernel::new(skb), w, opening != 0),
                None => return 1,
            }
            0
        }

        /// A new flow, told. Global: see above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $opened(skb: *mut __sk_buff, w: *mut Workspace<$family>) -> i32 {
            keep(skb);
            // SAFETY: as above.
            match unsafe { w.as_mut() } {
                Some(w) => opened_now(Kernel::new(skb), w),
                None => return 1,
            }
            0
        }
    };
}

env!(
    V4, bound_v4, CIDR4, cidr4, 32, FLOWS4, LOCKS4, SPILL4, Key4, Flow4, flow4, decide4, denied4,
    opened4, lock4, claim4, follow4
);
env!(
    V6, bound_v6, CIDR6, cidr6, 128, FLOWS6, LOCKS6, SPILL6, Key6, Flow6, flow6, decide6, denied6,
    opened6, lock6, claim6, follow6
);

#[inline(always)]
pub fn lose(cause: Loss) {
    if let Some(count) = maps::LOSSES.get_ptr_mut(cause as u32) {
        // SAFETY: this CPU's own slot.
        unsafe { *count += 1 };
    }
}

/// Sends a notice without waking anybody: a wake-up costs microseconds, the agent looks every few milliseconds.
#[inline(always)]
fn emit(fill: impl FnOnce(&mut Event)) -> bool {
    let Some(mut entry) = maps::EVENTS.reserve_untyped::<Event>(0) else {
        lose(Loss::RingFull);
        return false;
    };
    // SAFETY: the reservation is a whole, aligned `Event`, and `fill` writes every field of it.
    fill(unsafe { &mut *entry.as_mut_ptr() });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

/// What a slot of the negative entries has counted, moved. Global: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fold(skb: *mut __sk_buff, slot: u32) -> i32 {
    keep(skb);
    fold_now::<V4, _>(Kernel::new(skb), slot);
    0
}
