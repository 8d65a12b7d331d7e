//! Calls on the calling process that rustix lacks: keyrings, signal dispositions, close_range,
//! scheduling and I/O priority, personality, securebits-free bits of prctl.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

/// Makes a new session keyring named `name` (with the kernel's possessor rights) and joins it;
/// the keyring's id.
///
/// # Errors
/// The errno of keyctl(2): `ENOSYS` without keyrings, `EDQUOT` at the user's quota.
pub fn join_session_keyring(name: &CStr) -> Result<i32, Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: name is a C string that lives across the call.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    crate::check(rc)
}

/// Lets the keyring's user (not only possessors) search it, as runc does.
///
/// # Errors
/// The errno of keyctl(2).
pub fn keyring_allow_user_search(id: i32) -> Result<(), Errno> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    const POSSESSOR_ALL: u32 = 0x3f00_0000;
    const USER_VIEW_READ_SEARCH: u32 = 0x000b_0000;
    // SAFETY: no pointers.
    let rc = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, id, POSSESSOR_ALL | USER_VIEW_READ_SEARCH)
    };
    crate::check(rc).map(drop)
}

/// Sets every signal to its default action and unblocks all, as a program expects to be started.
/// (Rust's runtime ignores SIGPIPE; an event loop blocks what it reads from a signalfd.)
pub fn reset_signals() {
    // SAFETY: plain struct; SIG_DFL with an empty mask is valid for every signal; the kernel
    // refuses KILL, STOP and the two that libc keeps, which is as it should be.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Has these signals end the process at once with the exit code 2, until it executes a program: the kernel
/// gives the first process of a pid namespace only those that it has a handler for.
pub fn exit_on(signals: &[i32]) {
    extern "C" fn exit(_: libc::c_int) {
        /// What a Go program ends with, such as runc's.
        const CODE: libc::c_int = 2;
        // SAFETY: _exit(2) takes no pointers and may be called in a signal handler.
        unsafe { libc::_exit(CODE) }
    }
    let handler: extern "C" fn(libc::c_int) = exit;
    for signal in signals {
        // SAFETY: the handler has the form that signal(2) asks for, lives as long as the program, and
        // calls nothing but _exit(2).
        unsafe {
            libc::signal(*signal, handler as libc::sighandler_t);
        }
    }
}

/// Has a program start with no signal blocked. What the caller blocks, for a signalfd, would else stay blocked
/// in it and in every program that it starts: Rust's `Command` passes the mask on (since 1.66).
pub fn unblock_signals_in(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec; sigemptyset and sigprocmask are async-signal-safe,
    // nothing is allocated, and the set is initialised before use.
    unsafe {
        command.pre_exec(|| {
            let mut empty: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut empty);
            match libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Blocks these signals and gives a non-blocking signalfd (close-on-exec) that reads them.
///
/// # Errors
/// The errno of signalfd4(2).
pub fn signal_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
    // SAFETY: the set is initialised by sigemptyset before use and lives across the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        crate::check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Reads one signal number; `None` if none waits.
///
/// # Errors
/// The errno of read(2).
pub fn read_signal(fd: &OwnedFd) -> Result<Option<i32>, Errno> {
    // SAFETY: signalfd_siginfo is plain data; the kernel writes at most its size.
    let (n, info) = unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        (libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size), info)
    };
    match crate::check(n as libc::c_long) {
        Ok(0) | Err(Errno::AGAIN) => Ok(None),
        Ok(_) => Ok(i32::try_from(info.ssi_signo).ok()),
        Err(e) => Err(e),
    }
}

/// Sets close-on-exec on every descriptor from `first` on.
///
/// # Errors
/// The errno of close_range(2); without it (before 5.11) each descriptor is set by itself.
pub fn cloexec_from(first: u32) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no memory is touched; no descriptor is closed.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    match crate::check(rc) {
        Ok(_) => Ok(()),
        Err(Errno::NOSYS | Errno::INVAL) => {
            // SAFETY: F_SETFD on a number that is no descriptor gives EBADF and nothing else.
            unsafe {
                let limit = libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20);
                let limit = RawFd::try_from(limit).unwrap_or(1024);
                for fd in RawFd::try_from(first).unwrap_or(3)..limit {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// Clears close-on-exec on the descriptors `first..first + count` that are open.
pub fn keep_on_exec(first: i32, count: u32) {
    for fd in first..first.saturating_add(i32::try_from(count).unwrap_or(i32::MAX)) {
        // SAFETY: F_SETFD on a number that is no descriptor gives EBADF and nothing else.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
            return;
        }
    }
}

/// Whether the descriptor number is open.
pub fn is_open(fd: i32) -> bool {
    // SAFETY: F_GETFD changes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// personality(2).
///
/// # Errors
/// Its errno.
pub fn set_personality(persona: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    crate::check(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(persona)) })
        .map(drop)
}

/// ioprio_set(2) for the calling thread; `class` 1 real-time, 2 best effort, 3 idle.
///
/// # Errors
/// Its errno.
pub fn set_io_priority(class: u32, priority: u32) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: no pointers.
    let rc = unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, (class << CLASS_SHIFT) | priority)
    };
    crate::check(rc).map(drop)
}

/// Values for sched_setattr(2); times in nanoseconds.
#[derive(Debug, Default, Clone, Copy)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`; the clamps that `SCHED_FLAG_UTIL_CLAMP_*` set are 0.
    pub flags: u64,
    /// For OTHER and BATCH.
    pub nice: i32,
    /// For FIFO and RR.
    pub priority: u32,
    /// For DEADLINE.
    pub runtime_ns: u64,
    /// For DEADLINE.
    pub deadline_ns: u64,
    /// For DEADLINE.
    pub period_ns: u64,
}

/// sched_setattr(2) for a process of one thread; 0 is the calling thread.
///
/// # Errors
/// Its errno.
pub fn set_scheduler(pid: i32, attr: &SchedAttr) -> Result<(), Errno> {
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        util_min: u32,
        util_max: u32,
    }
    // SCHED_ATTR_SIZE_VER1 (Linux 5.3): with the shorter form the kernel refuses the flags for the
    // clamps of utilization. Where a kernel knows only that one, the rest has to be zero, and is.
    const RAW_SIZE: u32 = 56;
    let raw = Raw {
        size: RAW_SIZE,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime_ns,
        deadline: attr.deadline_ns,
        period: attr.period_ns,
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: raw is 56 bytes with C layout, as its size field says.
    crate::check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const raw, 0) })
        .map(drop)
}

/// Takes a variable out of the environment, which programs started from now on inherit.
///
/// # Errors
/// `EBUSY` if the process has more than one thread, `EINVAL` for what cannot be a name, the errno of
/// reading /proc/self/task.
#[allow(clippy::disallowed_methods)] // safe here: the threads are counted
pub fn unset_env(name: &str) -> Result<(), Errno> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tasks = rustix::fs::open("/proc/self/task", flags, Mode::empty())?;
    let mut threads = 0;
    for entry in Dir::read_from(&tasks)? {
        threads += u32::from(!entry?.file_name().to_bytes().starts_with(b"."));
    }
    if threads != 1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: no other thread reads or writes the environment: there is none, as was just counted,
    // and only this one could have made one since.
    unsafe { std::env::remove_var(name) };
    Ok(())
}

/// The calling process's descriptor with this number, taken over from whoever left it open.
///
/// The caller must be the only user of the number: for descriptors that were passed to the
/// program by its parent. `None` if it is not open.
pub fn adopt_fd(fd: i32) -> Option<OwnedFd> {
    // SAFETY: the number is open; ownership is the caller's word (see above), and a second owner
    // could at worst see EBADF, not memory unsafety.
    is_open(fd).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal by number (real-time ones included) through a pidfd.
///
/// # Errors
/// The errno of pidfd_send_signal(2): `ESRCH` once the process is reaped, `EINVAL` for a number
/// that is no signal.
pub fn pidfd_kill(pidfd: impl std::os::fd::AsFd, signal: i32) -> Result<(), Errno> {
    let fd = pidfd.as_fd().as_raw_fd();
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed and means an ordinary kill.
    crate::check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) })
        .map(drop)
}

/// Sends a signal by number to one process; `pid` must be positive.
///
/// # Errors
/// The errno of kill(2); `ESRCH` for a pid that is not positive.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    if pid <= 0 {
        return Err(Errno::SRCH);
    }
    // SAFETY: no pointers.
    crate::check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// In a forked child: closes its copy of a descriptor whose owner is a value of the parent's,
/// which the child will never drop (it execs or exits).
pub fn close_inherited(fd: impl std::os::fd::AsFd) {
    // SAFETY: the number is open; the borrowed value is not used again in this process, by the
    // contract above.
    unsafe { libc::close(fd.as_fd().as_raw_fd()) };
}

/// In a forked child that will exec or exit: closes every descriptor from `first` on, but those
/// of `keep`.
///
/// # Errors
/// The errno of close_range(2) (kernel 5.9).
pub fn close_from_except(first: i32, keep: &[i32]) -> Result<(), Errno> {
    let mut keep: Vec<u32> =
        keep.iter().filter(|k| **k >= first).map(|k| k.unsigned_abs()).collect();
    keep.sort_unstable();
    let mut next = first.unsigned_abs();
    for end in keep.into_iter().map(Some).chain([None]) {
        let last = end.map_or(u32::MAX, |k| k.wrapping_sub(1));
        if end.is_none_or(|k| k > next) {
            // SAFETY: the values that own these descriptors are copies of the parent's, which
            // this process does not use again, by the contract above.
            crate::check(unsafe { libc::syscall(libc::SYS_close_range, next, last, 0) })?;
        }
        if let Some(k) = end {
            next = k + 1;
        }
    }
    Ok(())
}

/// unshare(2) of namespaces (`CLONE_NEW*`, see the module `clone`) by a process with one thread.
///
/// # Errors
/// Its errno; `EINVAL` for flags that are no namespaces.
pub fn unshare(namespaces: u64) -> Result<(), Errno> {
    const NAMESPACES: u64 = 0x7e02_0080;
    if namespaces & !NAMESPACES != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: namespaces only: no descriptor, memory or signal table is unshared. 0x80 (TIME)
    // affects children only.
    crate::check(unsafe { libc::syscall(libc::SYS_unshare, namespaces) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_not_changed_beside_another_thread() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert_eq!(unset_env("GANTRY_TEST_ABSENT"), Err(Errno::BUSY));
        drop(end);
        assert!(other.join().is_ok_and(|received| received.is_err()));
        for name in ["", "A=B", "A\0"] {
            assert_eq!(unset_env(name), Err(Errno::INVAL));
        }
    }

    /// The kernel may lack them (CONFIG_UCLAMP_TASK), but it must know what is asked for.
    #[test]
    fn the_clamps_of_utilization_are_words_that_the_kernel_knows() {
        for flags in [0x20, 0x40, 0x60] {
            let attr = SchedAttr { flags, ..SchedAttr::default() };
            let set = set_scheduler(0, &attr);
            assert!(matches!(set, Ok(()) | Err(Errno::OPNOTSUPP)), "{flags:#x}: {set:?}");
        }
    }
}
