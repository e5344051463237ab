//! Which process owns a socket: hooks of the root cgroup that run when a socket is made, connected or bound, and when
//! a connection was accepted. No packet passes here; what a packet's flow carries is the socket's cookie.
//!
//! `sendmsg` hooks are not among them: they run for every datagram, and the socket's maker is known already.
//! A program here only learns: it lets everything go on, whatever it could not find out.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_map_type, bpf_sock_ops,
};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
    bpf_map_update_elem, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, cgroup_sock, cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};
use datapath::owner::{self, AcceptKey, Accepted, Bound, Owner, how};

/// The operation goes on.
const PROCEED: i32 = 1;
/// `SOCK_STREAM` (include/linux/net.h).
const STREAM: u32 = 1;
/// `AF_INET` (include/linux/socket.h).
const INET: u32 = 2;

/// Socket cookie → who made, bound or connected it.
#[btf_map]
pub static SOCKETS: LruHashMap<u64, Owner, { owner::SOCKETS }> = LruHashMap::new();

/// Accepted connections by their ends: what a packet that comes in can be found by.
#[btf_map]
pub static ACCEPTED: LruHashMap<AcceptKey, Accepted, { owner::ACCEPTED }> = LruHashMap::new();

/// Socket storage that an accepted socket inherits. aya's own type cannot say `BPF_F_CLONE`.
#[repr(C)]
pub struct Inherited<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields describe the map to the loader; nobody reads through them.
unsafe impl<T> Sync for Inherited<T> {}

/// Who bound a stream socket.
#[btf_map]
pub static BOUND: Inherited<Bound> = Inherited {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// The current process. Only in hooks that run in its context.
#[inline(always)]
fn current(how: u32) -> Owner {
    // SAFETY: helpers without arguments, but for a buffer of the length that is passed.
    unsafe {
        let mut comm = [0u8; 16];
        bpf_get_current_comm(comm.as_mut_ptr().cast(), 16);
        Owner {
            cgroup: bpf_get_current_cgroup_id(),
            learnt_ns: bpf_ktime_get_boot_ns(),
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            uid: bpf_get_current_uid_gid() as u32,
            comm,
            how,
            pad: 0,
        }
    }
}

#[inline(always)]
fn remember(cookie: u64, owner: &Owner) {
    // SAFETY: key and value are the map's types and live through the call. A full table displaces its oldest entry.
    unsafe {
        bpf_map_update_elem(
            (&raw const SOCKETS).cast_mut().cast(),
            (&raw const cookie).cast_mut().cast(),
            ptr::from_ref(owner).cast_mut().cast(),
            u64::from(BPF_ANY),
        );
    }
}

#[inline(always)]
fn learn(ctx: *mut c_void, how: u32) -> Owner {
    let owner = current(how);
    // SAFETY: the hook's own context.
    remember(unsafe { bpf_get_socket_cookie(ctx) }, &owner);
    owner
}

/// A socket is made.
#[cgroup_sock(sock_create)]
pub fn cofferdam_create(ctx: SockContext) -> i32 {
    learn(ctx.as_ptr(), how::CREATE);
    PROCEED
}

/// A socket is connected, which need not be by its maker.
#[cgroup_sock_addr(connect4)]
pub fn cofferdam_connect4(ctx: SockAddrContext) -> i32 {
    learn(ctx.as_ptr(), how::CONNECT);
    PROCEED
}

/// A socket is connected, IPv6.
#[cgroup_sock_addr(connect6)]
pub fn cofferdam_connect6(ctx: SockAddrContext) -> i32 {
    learn(ctx.as_ptr(), how::CONNECT);
    PROCEED
}

/// A socket was bound.
#[cgroup_sock(post_bind4)]
pub fn cofferdam_bind4(ctx: SockContext) -> i32 {
    bound(&ctx);
    PROCEED
}

/// A socket was bound, IPv6.
#[cgroup_sock(post_bind6)]
pub fn cofferdam_bind6(ctx: SockContext) -> i32 {
    bound(&ctx);
    PROCEED
}

#[inline(always)]
fn bound(ctx: &SockContext) {
    let owner = learn(ctx.as_ptr(), how::BIND);
    // SAFETY: the hook's own context, and a value of the map's type that lives through the call; the storage is
    // written as a whole value.
    unsafe {
        if (*ctx.sock).type_ != STREAM {
            return;
        }
        let mut value = Bound {
            owner,
            netns: bpf_get_netns_cookie(ctx.as_ptr()),
        };
        let stored: *mut Bound = bpf_sk_storage_get(
            (&raw const BOUND).cast_mut().cast(),
            ctx.as_ptr(),
            (&raw mut value).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast();
        if !stored.is_null() {
            *stored = value;
        }
    }
}

/// TCP's own moments; of all of them only the one at which a connection was accepted counts.
#[sock_ops]
pub fn cofferdam_accept(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        accepted(ctx.ops);
    }
    PROCEED as u32
}

/// Puts a connection where its ends lead to its owner. This runs in whichever process was interrupted, so who owns it
/// comes from the listening socket alone.
#[inline(always)]
fn accepted(ops: *mut bpf_sock_ops) {
    // SAFETY: the context is valid while the program runs; a socket without storage gives a null pointer.
    let (stored, cookie) = unsafe {
        let sk = (*ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return;
        }
        let stored: *const Bound = bpf_sk_storage_get(
            (&raw const BOUND).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            0,
        )
        .cast();
        if stored.is_null() {
            return;
        }
        (&*stored, bpf_get_socket_cookie(ops.cast()))
    };
    let value = Accepted {
        owner: stored.owner,
        cookie,
    };
    let mut key = MaybeUninit::<AcceptKey>::uninit();
    // SAFETY: every field of the key is written; the update copies key and value.
    unsafe {
        ends(ops, stored.netns, key.as_mut_ptr());
        bpf_map_update_elem(
            (&raw const ACCEPTED).cast_mut().cast(),
            key.as_mut_ptr().cast(),
            (&raw const value).cast_mut().cast(),
            u64::from(BPF_ANY),
        );
    }
}

/// Writes both ends of a connection. The families are read in functions of their own, and word by word: merged loads
/// would have an offset that the verifier does not take from a context.
///
/// # Safety
/// `ops` is the hook's context, `key` is writable.
#[inline(always)]
unsafe fn ends(ops: *mut bpf_sock_ops, netns: u64, key: *mut AcceptKey) {
    // SAFETY: as the caller promises.
    unsafe {
        if ptr::read_volatile(&raw const (*ops).family) == INET {
            ends4(ops, key);
        } else {
            ends6(ops, key);
        }
        (*key).netns = netns;
        (*key).local_port = ptr::read_volatile(&raw const (*ops).local_port) as u16;
        // Network byte order, in the whole word (include/uapi/linux/bpf.h).
        (*key).remote_port = u32::from_be(ptr::read_volatile(&raw const (*ops).remote_port)) as u16;
        (*key).pad = 0;
    }
}

/// The IPv4 ends, v4-mapped.
///
/// # Safety
/// As for [`ends`].
// SAFETY: nothing but the caller's promise.
#[inline(never)]
unsafe fn ends4(ops: *mut bpf_sock_ops, key: *mut AcceptKey) {
    // SAFETY: as the caller promises; the words are those of the key's addresses, which are aligned to 8.
    unsafe {
        let words: *mut u32 = (&raw mut (*key).local).cast();
        words.write(0);
        words.add(1).write(0);
        words.add(2).write(0xffff_0000_u32.to_le());
        words
            .add(3)
            .write(ptr::read_volatile(&raw const (*ops).local_ip4));
        words.add(4).write(0);
        words.add(5).write(0);
        words.add(6).write(0xffff_0000_u32.to_le());
        words
            .add(7)
            .write(ptr::read_volatile(&raw const (*ops).remote_ip4));
    }
}

/// The IPv6 ends.
///
/// # Safety
/// As for [`ends`].
// SAFETY: nothing but the caller's promise.
#[inline(never)]
unsafe fn ends6(ops: *mut bpf_sock_ops, key: *mut AcceptKey) {
    // SAFETY: as the caller promises; the words are those of the key's addresses, which are aligned to 8.
    unsafe {
        let words: *mut u32 = (&raw mut (*key).local).cast();
        let local: *const u32 = (&raw const (*ops).local_ip6).cast();
        words.write(ptr::read_volatile(local));
        words.add(1).write(ptr::read_volatile(local.add(1)));
        words.add(2).write(ptr::read_volatile(local.add(2)));
        words.add(3).write(ptr::read_volatile(local.add(3)));
        let remote: *const u32 = (&raw const (*ops).remote_ip6).cast();
        words.add(4).write(ptr::read_volatile(remote));
        words.add(5).write(ptr::read_volatile(remote.add(1)));
        words.add(6).write(ptr::read_volatile(remote.add(2)));
        words.add(7).write(ptr::read_volatile(remote.add(3)));
    }
}
