//! The kernel's side of `datapath::fragment`: an LRU map, so that an unfinished packet leaves by itself.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_map_update_elem};
use datapath::abi::{FragmentKey, FragmentValue};
use datapath::fragment::{FragmentRef, Fragments};

use crate::env::{Kernel, lookup};
use crate::maps;

#[inline(always)]
fn map() -> *mut c_void {
    (&raw const maps::FRAGMENTS).cast_mut().cast()
}

impl Fragments for Kernel {
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRef> {
        // SAFETY: a whole map value. The map may give its memory to another key meanwhile, as every LRU map does: then a
        // fragment is judged under that key's ports, by policy like any packet, or a foreign identification is poisoned.
        lookup(map(), key).map(|value| unsafe { FragmentRef::new(value) })
    }

    #[inline(always)]
    fn remember(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        // SAFETY: key and value are the map's types and live through the call.
        let result = unsafe {
            bpf_map_update_elem(
                map(),
                ptr::from_ref(key).cast(),
                ptr::from_ref(value).cast(),
                u64::from(BPF_ANY),
            )
        };
        result == 0
    }

    #[inline(always)]
    fn forget(&self, key: &FragmentKey) {
        // SAFETY: the key is the map's type and lives through the call. Gone already is as good.
        unsafe { bpf_map_delete_elem(map(), ptr::from_ref(key).cast()) };
    }
}
