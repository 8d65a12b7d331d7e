"""Measures runtimes by their command line; see scripts/bench-runtime, which runs it in a sandbox.

usage: bench-runtime.py ROUNDS NAME=COMMAND...
"""
import copy
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

BUSYBOX = "/bin/busybox"
WORK = "/var/tmp/bench-runtime"
# busybox's time takes the kernel's KiB for pages.
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
LIMIT_SECONDS = 10  # a runtime that takes longer hangs
CAPABILITIES = ["CAP_" + name for name in (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
    "SYS_CHROOT KILL AUDIT_WRITE").split()]
MASKED = ("/proc/asound /proc/acpi /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list "
          "/proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware").split()
READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()
# What docker's profile denies is less than what it allows; the length of the list is what costs.
ALLOWED = """accept accept4 access adjtimex alarm bind brk capget capset chdir chmod chown chown32
 clock_adjtime clock_getres clock_gettime clock_nanosleep clone close close_range connect copy_file_range creat
 dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
 epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate
 fanotify_mark fchdir fchmod fchmodat fchown fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork
 fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate futex futimesat getcpu getcwd
 getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid
 getpriority getrandom getresgid getresuid getrlimit get_robust_list getrusage getsid getsockname getsockopt
 get_thread_area gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1
 inotify_rm_watch io_cancel ioctl io_destroy io_getevents ioprio_get ioprio_set io_setup io_submit kill lchown
 lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier
 memfd_create mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify
 mq_open mq_timedreceive mq_timedsend mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall
 munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 poll ppoll prctl
 pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
 recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq
 rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
 sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
 sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg
 sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid
 setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setxattr shmat
 shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink
 symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
 timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname
 unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev arch_prctl modify_ldt
 chroot""".split()


def config(program):
    devices = [{"allow": False, "access": "rwm"}] + [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (5, 0), (1, 9), (1, 8))]
    plain = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": program, "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {name: CAPABILITIES for name in ("bounding", "effective", "permitted")},
        },
        "root": {"path": "rootfs"}, "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": plain},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": plain + ["ro"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": plain},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": plain + ["mode=1777", "size=65536k"]},
        ],
        "linux": {
            "cgroupsPath": "/bench-runtime", "resources": {"devices": devices},
            "namespaces": [{"type": t} for t in ("mount", "network", "uts", "pid", "ipc")],
            "maskedPaths": MASKED, "readonlyPaths": READ_ONLY,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ALLOWED, "action": "SCMP_ACT_ALLOW"},
                    {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                ],
            },
        },
    }


def make_bundle(name, program, network, cgroups):
    path = os.path.join(WORK, name)
    root = os.path.join(path, "rootfs")
    for sub in "bin dev etc proc sys tmp".split():
        os.makedirs(os.path.join(root, sub), exist_ok=True)
    shutil.copy(BUSYBOX, os.path.join(root, "bin/busybox"))
    for applet in ("true", "sleep", "sh"):
        link = os.path.join(root, "bin", applet)
        if not os.path.lexists(link):
            os.symlink("busybox", link)
    spec = copy.deepcopy(config(program))
    if not network:
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "network"]
    if not cgroups:
        del spec["linux"]["cgroupsPath"]
        del spec["linux"]["resources"]
    with open(os.path.join(path, "config.json"), "w") as out:
        json.dump(spec, out)
    return path


class Runtime:
    def __init__(self, name, command):
        self.name = name
        self.argv = command.split()
        self.root = os.path.join(WORK, "state-" + name)
        self.figures = {}
        self.peaks = {}
        self.failures = 0

    def command(self, *words, cgroups=True):
        argv = list(self.argv)
        if not cgroups and self.name == "crun":
            argv.append("--cgroup-manager=disabled")
        return argv + ["--root", self.root, *words]

    def measured(self, what, *words, cgroups=True):
        """One run, kept under the name `what`: wall and cpu; whether it ended well, which is told once."""
        argv = self.command(*words, cgroups=cgroups)
        null = os.open("/dev/null", os.O_RDWR)
        err = open(os.path.join(WORK, "err"), "w+")
        begin = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[
            (os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1),
            (os.POSIX_SPAWN_DUP2, err.fileno(), 2)])
        watchdog = threading.Timer(LIMIT_SECONDS, os.kill, (pid, signal.SIGKILL))
        watchdog.start()
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - begin
        watchdog.cancel()
        os.close(null)
        if status != 0:
            self.failures += 1
            err.seek(0)
            if what is not None and what not in self.figures:
                print(f"{self.name} {what}: {err.read().strip()[:200]}", file=sys.stderr)
            return False
        cpu = usage.ru_utime + usage.ru_stime
        if what is not None:
            self.figures.setdefault(what, []).append((wall * 1e3, cpu * 1e3))
        return True

    def memory(self, what, *words):
        """Peak memory of the runtime and what it waits for, in MB. What is counted begins with the process
        that starts it, so that this is a small one."""
        out = os.path.join(WORK, "time")
        argv = [BUSYBOX, "time", "-f", "%M", "-o", out, *self.command(*words)]
        null = subprocess.DEVNULL
        try:
            done = subprocess.run(argv, stdin=null, stdout=null, stderr=null, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.failures += 1
            return
        if done.returncode == 0:
            with open(out) as text:
                self.peaks[what] = max(self.peaks.get(what, 0), int(text.read().split()[-1]) / PAGE_KIB / 1024)

    def quiet(self, *words, cgroups=True):
        return self.measured(None, *words, cgroups=cgroups)


def one_round(runtime):
    for what, bundle, cgroups in (
            ("run", "true", True), ("run, host network", "true-hostnet", True),
            ("run, -cgroups", "true-nocg", False),
            ("run, host network, -cgroups", "true-hostnet-nocg", False)):
        name = "bench-" + runtime.name
        if not runtime.measured(what, "run", "--bundle", f"{WORK}/{bundle}", name, cgroups=cgroups):
            runtime.quiet("delete", "--force", name, cgroups=cgroups)
    for suffix, bundle, cgroups in (("", "sleep", True), (", -cgroups", "sleep-nocg", False)):
        name = "bench-held-" + runtime.name
        if not runtime.measured("create" + suffix, "create", "--bundle", f"{WORK}/{bundle}", name,
                                cgroups=cgroups):
            runtime.quiet("delete", "--force", name, cgroups=cgroups)
            continue
        runtime.measured("start" + suffix, "start", name, cgroups=cgroups)
        runtime.measured("exec" + suffix, "exec", name, "/bin/true", cgroups=cgroups)
        runtime.measured("state" + suffix, "state", name, cgroups=cgroups)
        runtime.quiet("kill", name, "KILL", cgroups=cgroups)
        wait_stopped(runtime, name, cgroups)
        if not runtime.measured("delete" + suffix, "delete", name, cgroups=cgroups):
            runtime.quiet("delete", "--force", name, cgroups=cgroups)


def memory_round(runtime):
    runtime.memory("run", "run", "--bundle", f"{WORK}/true", "bench-" + runtime.name)
    name = "bench-held-" + runtime.name
    # create's outputs would be held open by the container: it has /dev/null from `quiet`.
    if runtime.quiet("create", "--bundle", f"{WORK}/sleep", name) and runtime.quiet("start", name):
        runtime.memory("exec", "exec", name, "/bin/true")
        runtime.memory("state", "state", name)
    runtime.quiet("delete", "--force", name)


def wait_stopped(runtime, name, cgroups):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        got = subprocess.run(runtime.command("state", name, cgroups=cgroups), capture_output=True, text=True,
                             timeout=LIMIT_SECONDS)
        if '"stopped"' in got.stdout:
            return
        time.sleep(0.002)


def shown(figures):
    wall, cpu = [f[0] for f in figures], [f[1] for f in figures]
    return (f"{min(cpu):6.1f} {statistics.median(cpu):6.1f}  "
            f"{min(wall):6.1f} {statistics.median(wall):6.1f}")


def report(runtimes):
    ours = runtimes[0]
    print(f"{'':<28} {'':<8} {'cpu best, median':>13}  {'wall':>13}   ours / it: cpu, wall")
    for what in ours.figures:
        mine = ours.figures[what]
        for runtime in runtimes:
            theirs = runtime.figures.get(what)
            if not theirs:
                print(f"{what:<28} {runtime.name:<8} does not do it here")
                continue
            ratios = ""
            if runtime is not ours:
                pair = [statistics.median(f[i] for f in mine) / max(statistics.median(f[i] for f in theirs), 1e-3)
                        for i in (1, 0)]
                ratios = f"   {pair[0]:.2f}, {pair[1]:.2f}"
            print(f"{what:<28} {runtime.name:<8} {shown(theirs)}{ratios}")
    for what, mine in ours.peaks.items():
        for runtime in runtimes:
            peak = runtime.peaks.get(what)
            if peak:
                print(f"{what + ', peak memory, MB':<28} {runtime.name:<8} {peak:6.1f}   {mine / peak:.2f}")


def main():
    rounds = int(sys.argv[1])
    runtimes = [Runtime(*pair.split("=", 1)) for pair in sys.argv[2:]]
    os.makedirs(WORK)
    for name, program, network, cgroups in (
            ("true", ["/bin/true"], True, True), ("true-hostnet", ["/bin/true"], False, True),
            ("true-nocg", ["/bin/true"], True, False),
            ("true-hostnet-nocg", ["/bin/true"], False, False),
            ("sleep", ["/bin/sleep", "100000"], True, True),
            ("sleep-nocg", ["/bin/sleep", "100000"], True, False)):
        make_bundle(name, program, network, cgroups)
    for number in range(rounds + 1):
        for runtime in runtimes:
            one_round(runtime)
            if number == 0:  # the first is for caches
                runtime.figures.clear()
            elif number <= 3:
                memory_round(runtime)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report(runtimes)
    for runtime in runtimes:
        if runtime.failures:
            print(f"{runtime.name}: {runtime.failures} commands failed or hung")
    shutil.rmtree(WORK)


main()
