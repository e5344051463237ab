//! Ends a process before the n-th call by which it changes anything outside itself.
//!
//! What a process does to the rest of the world it does by system calls, or by the one atomic store into the mapped
//! active word between two of them. So death before each call that leaves a trace stands for death at every
//! instruction: calls that only read, and calls that make what dies with the process, change nothing in between; and
//! what was written is there for the next process, synced or not.
//! What is under way inside a call when the signal comes is tried with a clock instead ([`killed_after`]).

use std::ffi::c_int;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Killed before this call.
    Killed(String),
    /// It was done before that many calls.
    Done(c_int),
}

/// Commands of bpf(2) that only read, or whose result dies with its descriptor (include/uapi/linux/bpf.h): map
/// create, look-ups, next key, program load, object get, the walks over ids, info, query, BTF load, freeze (of maps
/// that are not shared), bind map.
const BPF_WITHOUT_TRACE: [u64; 18] = [
    0, 1, 4, 5, 7, 11, 12, 13, 14, 15, 16, 18, 19, 22, 24, 30, 31, 35,
];

/// Whether a message to the kernel only asks for a list (`NLM_F_DUMP`, include/uapi/linux/netlink.h).
fn asks(pid: Pid, message: u64) -> bool {
    const FLAGS: u64 = 6;
    const DUMP: u16 = 0x300;
    let mut flags = [0; 2];
    std::fs::File::open(format!("/proc/{pid}/mem"))
        .and_then(|memory| memory.read_exact_at(&mut flags, message + FLAGS))
        .is_ok()
        && u16::from_ne_bytes(flags) & DUMP == DUMP
}

/// The call's name if it leaves something behind.
fn trace_of(pid: Pid, number: i64, args: &[u64; 6]) -> Option<String> {
    let created = libc::O_CREAT | libc::O_TRUNC;
    let opens = |flags: u64| flags & u64::from(created.cast_unsigned()) != 0;
    Some(match number {
        libc::SYS_bpf if BPF_WITHOUT_TRACE.contains(&args[0]) => return None,
        libc::SYS_bpf => format!("bpf({})", args[0]),
        libc::SYS_openat if opens(args[2]) => "open".into(),
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => {
            let file = std::fs::read_link(format!("/proc/{pid}/fd/{}", args[0])).ok()?;
            // Pipes and event counters of the process itself, and its log.
            if !file.starts_with("/") || args[0] <= 2 {
                return None;
            }
            format!("write {}", file.file_name()?.display())
        }
        libc::SYS_sendto if asks(pid, args[1]) => return None,
        libc::SYS_sendto | libc::SYS_sendmsg => "send".into(),
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename".into(),
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => "unlink".into(),
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir".into(),
        libc::SYS_ftruncate => "truncate".into(),
        libc::SYS_chmod | libc::SYS_fchmod | libc::SYS_fchmodat => "chmod".into(),
        libc::SYS_membarrier => "membarrier".into(),
        _ => return None,
    })
}

/// Runs `work` in a child process, which dies before its `nth` call that leaves a trace (0 is the first).
pub(crate) fn killed_before(nth: usize, work: impl FnOnce() -> Result<(), String>) -> End {
    let child = in_child(true, work);
    // It stops itself first.
    assert!(matches!(
        wait(child),
        WaitStatus::Stopped(_, Signal::SIGSTOP)
    ));
    follow(child, nth)
}

/// Starts a program that dies before its `nth` call that leaves a trace, and waits for its end. `done` is asked
/// between its calls: a program that has reached what it was started for is killed too.
pub(crate) fn program_killed_before(
    mut command: Command,
    nth: usize,
    mut done: impl FnMut() -> bool,
) -> End {
    #[expect(
        clippy::zombie_processes,
        reason = "waited for by its number, as all that is traced"
    )]
    // SAFETY: between fork and exec, one system call.
    let child: Child = unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) }
        .spawn()
        .expect("the program starts");
    let child = Pid::from_raw(c_int::try_from(child.id()).expect("a process number"));
    assert!(matches!(
        wait(child),
        WaitStatus::Stopped(_, Signal::SIGTRAP)
    ));
    follow_until(child, nth, &mut done)
}

/// Runs `work` in a child process, which is killed after a time.
pub(crate) fn killed_after(time: Duration, work: impl FnOnce() -> Result<(), String>) -> End {
    let child = in_child(false, work);
    let began = std::time::Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
    kill(child, Signal::SIGKILL).expect("a child");
    match wait(child) {
        WaitStatus::Exited(_, code) => End::Done(code),
        _ => End::Killed("at some time".into()),
    }
}

fn in_child(traced: bool, work: impl FnOnce() -> Result<(), String>) -> Pid {
    // SAFETY: the child has this thread alone; what it goes on to use (the allocator, threads of its own, files)
    // glibc keeps usable over fork(), and it leaves by `_exit`.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if traced {
                    ptrace::traceme().map_err(|error| error.to_string())?;
                    raise(Signal::SIGSTOP).map_err(|error| error.to_string())?;
                }
                work()
            }));
            let code = match code {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    let text = format!("child: {error}\n");
                    // SAFETY: a live buffer and its length.
                    let _ = unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
                    1
                }
                Err(_) => 2,
            };
            // SAFETY: ends this process and runs nothing of the test harness.
            unsafe { libc::_exit(code) }
        }
    }
}

/// The next report of a child of this thread.
fn wait(pid: impl Into<Option<Pid>> + Copy) -> WaitStatus {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        match waitpid(pid.into(), Some(flags)) {
            Err(Errno::EINTR) => {}
            status => return status.expect("a child"),
        }
    }
}

fn follow(child: Pid, nth: usize) -> End {
    follow_until(child, nth, &mut || false)
}

fn follow_until(child: Pid, nth: usize, done: &mut dyn FnMut() -> bool) -> End {
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options).expect("a stopped child");
    go_on(child, None);
    let (mut seen, mut ended) = (0, None);
    loop {
        let (pid, signal) = match wait(None) {
            WaitStatus::Exited(pid, code) if pid == child => {
                return ended.unwrap_or(End::Done(code));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == child => {
                return ended.unwrap_or_else(|| panic!("it died by itself of {signal}"));
            }
            WaitStatus::PtraceSyscall(pid) => {
                if ended.is_none()
                    && let Some((number, args)) = entered(pid)
                {
                    if let Some(call) = trace_of(pid, number, &args) {
                        if seen == nth {
                            ended = Some(End::Killed(call));
                        }
                        seen += 1;
                    }
                    if ended.is_none() && done() {
                        ended = Some(End::Done(0));
                    }
                    if ended.is_some() {
                        kill(child, Signal::SIGKILL).expect("a child");
                        continue;
                    }
                }
                (pid, None)
            }
            // A new thread begins with a stop that nobody sent.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            _ => continue,
        };
        go_on(pid, signal);
    }
}

/// Number and arguments of the call that a stopped thread is about to make; `None` on its way back from one.
fn entered(pid: Pid) -> Option<(i64, [u64; 6])> {
    // SAFETY: integers; all zeroes are a value.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // nix 0.30 has this request, but gives no size with it, so that nothing is written.
    // SAFETY: a live structure and its size.
    let written = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            pid.as_raw(),
            size_of_val(&info),
            &raw mut info,
        )
    };
    if written <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that this member of the union was written.
    let entry = unsafe { info.u.entry };
    Some((i64::try_from(entry.nr).ok()?, entry.args))
}

fn go_on(pid: Pid, signal: Option<Signal>) {
    match ptrace::syscall(pid, signal) {
        // Killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("{pid}: {errno}"),
    }
}
