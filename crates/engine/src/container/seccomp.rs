//! Docker's default system call policy, as a table of our own: everything is refused with EPERM but what
//! stands here (docs.docker.com "Seccomp security profiles for Docker"; moby `profiles/seccomp`).

use serde_json::{Value, json};

/// Calls that any container may make.
const ALWAYS: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate
fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt
get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents
io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount
listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause
pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64
prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev
pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe
rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64
sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32
setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask
uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid
waitpid write writev
";

/// Calls that come with a capability.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    (
        "CAP_SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Flags of clone(2) that make namespaces.
const CLONE_NEW_MASK: u64 = 0x7E02_0000;
/// errno(3) ENOSYS: programs fall back from clone3 to clone when they see it.
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;
/// The domains of socket(2) that are offered, as masks of 32 bits and what is left under them: 0 to 47
/// without 38 (AF_ALG) and 40 (AF_VSOCK), which reach outside every namespace. The kernel looks at the
/// lower half of the argument only, so a comparison of the whole could be led past the two.
const SOCKET_DOMAINS: [(u64, u64); 7] = [
    (0xFFFF_FFE0, 0),
    (0xFFFF_FFFC, 32),
    (0xFFFF_FFFE, 36),
    (0xFFFF_FFFF, 39),
    (0xFFFF_FFFF, 41),
    (0xFFFF_FFFE, 42),
    (0xFFFF_FFFC, 44),
];
/// personality(2): PER_LINUX, PER_LINUX32, UNAME26, both, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

fn words(list: &str) -> Vec<&str> {
    list.split_ascii_whitespace().collect()
}

fn allow(names: &[&str]) -> Value {
    json!({ "names": names, "action": "SCMP_ACT_ALLOW" })
}

fn when(name: &str, index: u32, value: u64, value_two: u64, op: &str) -> Value {
    json!({
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": index, "value": value, "valueTwo": value_two, "op": op }],
    })
}

/// `linux.seccomp` for a container with these bounding capabilities.
pub(crate) fn default_profile(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|cap| cap == name);
    let mut calls = vec![allow(&words(ALWAYS))];
    // ptrace is safe with seccomp since Linux 4.8, which is older than every kernel supported.
    calls.push(allow(&["process_vm_readv", "process_vm_writev", "ptrace"]));
    for value in PERSONALITIES {
        calls.push(when("personality", 0, value, 0, "SCMP_CMP_EQ"));
    }
    for (mask, domain) in SOCKET_DOMAINS {
        calls.push(when("socket", 0, mask, domain, "SCMP_CMP_MASKED_EQ"));
    }
    for (capability, names) in BY_CAPABILITY {
        if has(capability) {
            calls.push(allow(&words(names)));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        calls.push(when("clone", 0, CLONE_NEW_MASK, 0, "SCMP_CMP_MASKED_EQ"));
        calls.push(json!({
            "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS,
        }));
    }
    let (architectures, extra) = architecture();
    calls.push(allow(extra));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": calls,
    })
}

fn architecture() -> (&'static [&'static str], &'static [&'static str]) {
    if cfg!(target_arch = "aarch64") {
        (
            &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            &[
                "arm_fadvise64_64",
                "arm_sync_file_range",
                "sync_file_range2",
                "breakpoint",
                "cacheflush",
                "set_tls",
            ],
        )
    } else {
        (&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], &["arch_prctl", "modify_ldt"])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn verdicts(profile: &Value, name: &str) -> Vec<String> {
        let calls = profile["syscalls"].as_array().unwrap();
        let named = |call: &&Value| call["names"].as_array().unwrap().iter().any(|n| n == name);
        calls.iter().filter(named).map(|c| c["action"].as_str().unwrap().to_string()).collect()
    }

    #[test]
    fn two_domains_of_sockets_are_not_offered() {
        // Whatever stands in the upper half.
        let is_offered = |domain: u64| {
            let argument = domain | 7 << 32;
            SOCKET_DOMAINS.iter().any(|(mask, left)| argument & mask == *left)
        };
        let refused: Vec<u64> = (0..64).filter(|domain| !is_offered(*domain)).take(2).collect();
        assert_eq!(refused, [38, 40]);
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = default_profile(&[]);
        for name in [
            "mount",
            "bpf",
            "unshare",
            "keyctl",
            "add_key",
            "kexec_load",
            "init_module",
            "reboot",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "setns",
        ] {
            assert!(verdicts(&plain, name).is_empty(), "{name}");
        }
        assert_eq!(verdicts(&plain, "clone3"), ["SCMP_ACT_ERRNO"]);
        let admin = default_profile(&["CAP_SYS_ADMIN".into()]);
        assert_eq!(verdicts(&admin, "mount"), ["SCMP_ACT_ALLOW"]);
        assert_eq!(verdicts(&admin, "clone3"), ["SCMP_ACT_ALLOW"]);
    }
}
