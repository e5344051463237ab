//! Bytes of a packet: direct access first, a helper where the linear part ends.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use datapath::packet::PacketRead;
use datapath::pipeline::Direct;

/// Headers begin below this offset.
const DIRECT: u32 = 0x8000;

/// A frame at a TC hook.
#[derive(Clone, Copy)]
pub struct Frame {
    skb: *mut __sk_buff,
}

impl Frame {
    /// The frame of a context.
    #[inline(always)]
    pub const fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }
}

impl Frame {
    /// What lies beyond the linear part, or nowhere.
    #[inline(always)]
    fn read_beyond<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes N bytes to the array or fails; it also reaches non-linear data.
        let result = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        if result == 0 { Some(bytes) } else { None }
    }
}

impl PacketRead for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        // The verifier believes in direct access below its MAX_PACKET_OFF (0xffff) only, and no header lies beyond.
        let start = data + offset as usize;
        if offset < DIRECT && start + N <= end {
            // SAFETY: the N bytes lie before `data_end`, as the verifier demands to see; bytes need no alignment.
            return Some(unsafe { *(start as *const [u8; N]) });
        }
        self.read_beyond(offset)
    }

    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).gso_segs }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).gso_size }
    }
}

impl Direct for Frame {
    #[inline(always)]
    fn direct(&self, length: u32) -> Option<*const u8> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        if data + length as usize <= end {
            Some(data as *const u8)
        } else {
            None
        }
    }
}
