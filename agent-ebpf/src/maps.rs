//! The maps, declared once; names, keys and values are `datapath::abi`'s.

use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf,
};
use aya_ebpf::macros::btf_map;
use datapath::abi::{
    Addr4Line, Addr6Line, AddrValue, CellLine, Cidr4Key, Cidr6Key, ClassLine, Clock, Config,
    Counter, DenyKey, DenyValue, EndpointValue, FailsafeKey, FailsafeValue, FilterValue, Flow4,
    Flow6, FragmentKey, FragmentValue, Geometry, Key4, Key6, Loss, Negative, RuleValue, Set4, Set6,
    Tables, tails,
};
use datapath::drop_reason::DropReason;
use datapath::negative::SLOTS as NEGATIVE_SLOTS;
use datapath::packet::{V4, V6};
use datapath::pipeline::Workspace;
use datapath::table::{BUCKETS as BUCKET_COUNT, sets, spill_room};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h).
const MMAPABLE: usize = 1 << 10;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): entries lie in the kernel's own memory, which large pages map. A
/// content is written once, before any packet looks at it, so nothing is allocated while packets wait.
const NO_PREALLOC: usize = 1;
/// Flags of the arrays of lines: `BPF_F_MMAPABLE`, because such an array begins at a page and its lines are cache lines, and
/// `BPF_F_INNER_MAP`, because each content has its own length.
const LINES: usize = MMAPABLE | 1 << 12;

/// Capacity of the flow tables in the object; the agent asks for what it was configured with.
const FLOWS: u32 = 1024;
const SETS: usize = sets(FLOWS) as usize;
const SPILL: usize = spill_room(FLOWS) as usize;
/// Capacity of an inner map in the object; the agent makes its own, sized to the content.
const INNER: usize = 16;

/// Data part of a rule key: class, protocol, port, zero.
pub type RuleData = [u8; 8];
/// Data part of a failsafe key: direction, protocol, port, address.
pub type FailsafeData = [u8; 20];

/// Settings.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// The active word; user space writes it through a mapping, in one store.
#[btf_map]
pub static ACTIVE: Array<u64, 1, MMAPABLE> = Array::new();

/// The programs that the hooks go on in.
#[btf_map]
pub static TAILS: ProgramArray<{ tails::COUNT as usize }> = ProgramArray::new();

/// Jiffies against boot time.
#[btf_map]
pub static CLOCK: Array<Clock, 1> = Array::new();

/// Lengths of the arrays of lines by slot.
#[btf_map]
pub static GEOMETRY: ArrayOfMaps<Array<Geometry, 1>, 2> = ArrayOfMaps::new();

/// IPv4 host addresses by slot.
#[btf_map]
pub static ADDR4: ArrayOfMaps<Array<Addr4Line, INNER, LINES>, 2> = ArrayOfMaps::new();

/// IPv6 host addresses by slot.
#[btf_map]
pub static ADDR6: ArrayOfMaps<Array<Addr6Line, INNER, LINES>, 2> = ArrayOfMaps::new();

/// IPv4 prefixes by slot.
#[btf_map]
pub static CIDR4: ArrayOfMaps<LpmTrie<[u8; 4], AddrValue, INNER>, 2> = ArrayOfMaps::new();

/// IPv6 prefixes by slot.
#[btf_map]
pub static CIDR6: ArrayOfMaps<LpmTrie<[u8; 16], AddrValue, INNER>, 2> = ArrayOfMaps::new();

/// Endpoints by slot.
#[btf_map]
pub static ENDPOINTS: ArrayOfMaps<HashMap<u32, EndpointValue, INNER, NO_PREALLOC>, 2> =
    ArrayOfMaps::new();

/// Classes of peers by slot.
#[btf_map]
pub static CLASSES: ArrayOfMaps<Array<ClassLine, INNER, LINES>, 2> = ArrayOfMaps::new();

/// Cells of classes by slot: single ports, whole protocols, and the rest.
#[btf_map]
pub static CELLS: ArrayOfMaps<Array<CellLine, INNER, LINES>, 2> = ArrayOfMaps::new();

/// Cells of port ranges by slot.
#[btf_map]
pub static RULES: ArrayOfMaps<LpmTrie<RuleData, RuleValue, INNER>, 2> = ArrayOfMaps::new();

/// Cells of filter classes by slot.
#[btf_map]
pub static FILTERS: ArrayOfMaps<LpmTrie<RuleData, FilterValue, INNER>, 2> = ArrayOfMaps::new();

/// Configured failsafes.
#[btf_map]
pub static FAILSAFES: LpmTrie<FailsafeData, FailsafeValue, 4096> = LpmTrie::new();

/// Geometry and secret of the flow tables.
#[btf_map]
pub static TABLES: Array<Tables, 1> = Array::new();

/// Flows, IPv4.
#[btf_map]
pub static FLOWS4: Array<Set4, SETS, MMAPABLE> = Array::new();

/// Flows, IPv6.
#[btf_map]
pub static FLOWS6: Array<Set6, SETS, MMAPABLE> = Array::new();

/// Locks of the sets of FLOWS4.
#[btf_map]
pub static LOCKS4: Array<u64, SETS, MMAPABLE> = Array::new();

/// Locks of the sets of FLOWS6.
#[btf_map]
pub static LOCKS6: Array<u64, SETS, MMAPABLE> = Array::new();

/// Flows whose set is full, IPv4.
#[btf_map]
pub static SPILL4: HashMap<Key4, Flow4, SPILL> = HashMap::new();

/// Flows whose set is full, IPv6.
#[btf_map]
pub static SPILL6: HashMap<Key6, Flow6, SPILL> = HashMap::new();

/// Entries by peer address.
#[btf_map]
pub static BUCKETS: Array<u64, { BUCKET_COUNT as usize }, MMAPABLE> = Array::new();

/// SYNs that are denied again.
#[btf_map]
pub static NEGATIVES: Array<Negative, { NEGATIVE_SLOTS as usize }, MMAPABLE> = Array::new();

/// Denials, aggregated.
#[btf_map]
pub static DENIES: HashMap<DenyKey, DenyValue, 65_536> = HashMap::new();

/// Packets that come in fragments, for a few seconds each.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, 8_192> = LruHashMap::new();

/// Notices to the agent. `()`: a typed ring is refused by libbpf and bpftool.
#[btf_map]
pub static EVENTS: RingBuf<(), 4_194_304> = RingBuf::new();

/// Packets and bytes by drop reason.
#[btf_map]
pub static REASONS: PerCpuArray<Counter, { DropReason::SLOTS }> = PerCpuArray::new();

/// Lost records by cause.
#[btf_map]
pub static LOSSES: PerCpuArray<u64, { Loss::SLOTS }> = PerCpuArray::new();

/// What is too large for the 512-byte stack.
#[repr(C)]
pub struct Scratch {
    /// An IPv4 packet on its way.
    pub work4: Workspace<V4>,
    /// An IPv6 packet on its way.
    pub work6: Workspace<V6>,
    /// An IPv4 entry being made.
    pub flow4: Flow4,
    /// An IPv6 entry being made.
    pub flow6: Flow6,
    /// A denial's key.
    pub deny_key: DenyKey,
    /// Zero.
    pub pad: u32,
    /// A denial's value.
    pub deny_value: DenyValue,
    /// An IPv4 address that is looked up.
    pub cidr4: Cidr4Key,
    /// An IPv6 address that is looked up.
    pub cidr6: Cidr6Key,
    /// A failsafe's key.
    pub failsafe_key: FailsafeKey,
}

/// One a CPU. Hooks run with bottom halves off, so no other packet uses it before this one is done.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
