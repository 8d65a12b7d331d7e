"""Compiles seccomp profiles with libseccomp, adding the rules as runc does.

Argument: the library's path. First prints one line: the numbers of all calls that it knows, by
architecture. Then answers each line of JSON on stdin with a line: the program, as hex, or the word
"contradiction" where a rule says something else for what another covers already, or "endless"
where libseccomp does not come to an end.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback

lib = ctypes.CDLL(sys.argv[1], use_errno=True)
ARCHS = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X32": 0x4000003E}
ERROR = -1  # __NR_SCMP_ERROR
OPS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE
CPU_SECONDS = 1  # the usual is a millisecond
LAST = 700  # above every number that there is
X32_BIT = 0x40000000


class ArgCmp(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


lib.seccomp_init.restype = ctypes.c_void_p
lib.seccomp_init.argtypes = [ctypes.c_uint32]
lib.seccomp_release.argtypes = [ctypes.c_void_p]
lib.seccomp_arch_exist.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
lib.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(ArgCmp),
]
lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
lib.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
lib.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
libc = ctypes.CDLL(None)
libc.free.argtypes = [ctypes.c_void_p]


def table(arch):
    """Names and numbers; x32's with its bit."""
    out = {}
    bit = X32_BIT if arch == "SCMP_ARCH_X32" else 0
    for number in range(bit, bit + LAST):
        text = lib.seccomp_syscall_resolve_num_arch(ARCHS[arch], number)
        if text:
            out[ctypes.string_at(text).decode()] = number
            libc.free(text)
    return out


def must(rc, what):
    if rc < 0:
        raise OSError(-rc, f"{what}: {os.strerror(-rc)}")


def add(ctx, number, action, args):
    array = (ArgCmp * max(len(args), 1))()
    for slot, arg in zip(array, args):
        slot.arg, slot.op = arg["index"], OPS[arg["op"].removeprefix("SCMP_CMP_")]
        slot.a, slot.b = arg["value"], arg["valueTwo"]
    must(lib.seccomp_rule_add_array(ctx, action, number, len(args), array), f"rule for {number}")


def compile_profile(profile):
    ctx = lib.seccomp_init(profile["default"])
    if not ctx:
        raise OSError("seccomp_init")
    try:
        must(lib.seccomp_attr_set(ctx, OPTIMIZE, profile["optimize"]), "optimize")
        for arch in profile["architectures"]:
            if lib.seccomp_arch_exist(ctx, ARCHS[arch]) != 0:
                must(lib.seccomp_arch_add(ctx, ARCHS[arch]), arch)
        for rule in profile["rules"]:
            if rule["action"] == profile["default"]:
                continue
            indexes = [arg["index"] for arg in rule["args"]]
            for name in rule["names"]:
                number = lib.seccomp_syscall_resolve_name(name.encode())
                if number == ERROR:
                    continue
                if len(set(indexes)) < len(indexes):
                    for arg in rule["args"]:
                        add(ctx, number, rule["action"], [arg])
                else:
                    add(ctx, number, rule["action"], rule["args"])
        with tempfile.TemporaryFile() as file:
            must(lib.seccomp_export_bpf(ctx, file.fileno()), "export")
            file.seek(0)
            return file.read().hex()
    finally:
        lib.seccomp_release(ctx)


print(json.dumps({arch: table(arch) for arch in ARCHS}), flush=True)
for line in sys.stdin:
    # A process for each: libseccomp takes more than minutes for some rules that meet each other.
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            answer = compile_profile(json.loads(line))
        except FileExistsError:
            answer = "contradiction"
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        print(answer, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        print("endless", flush=True)
    elif status != 0:
        sys.exit(f"libseccomp: status {status}")
