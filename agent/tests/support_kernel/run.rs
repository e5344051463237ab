//! Frames through a program by its descriptor: any number of threads at once.

use std::os::fd::{AsRawFd, OwnedFd};

/// `struct bpf_attr` of `BPF_PROG_TEST_RUN`, up to what is used (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    fd: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 5],
}

/// Sends a frame through a program; true when it passed. The rig's own way would let one thread in at a time.
pub fn passes(program: &OwnedFd, frame: &[u8]) -> bool {
    const PROG_TEST_RUN: libc::c_long = 10;
    let mut attr = TestRun {
        fd: program.as_raw_fd().cast_unsigned(),
        size_in: u32::try_from(frame.len()).expect("a frame"),
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: a live attribute of the size that is given, whose one pointer is to a live frame.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRun>(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    attr.retval == u32::MAX
}
