//! Flags of the container commands.
//!
//! Names, letters, kinds and defaults are docker's; `tests/flags.rs` holds them against its list.

use super::{Flag, Kind};

pub(crate) static CONTAINER_ATTACH: &[Flag] = &[
    Flag::new("detach-keys", Kind::Str, "Key sequence that detaches"),
    Flag::new("no-stdin", Kind::Bool, "Do not attach STDIN"),
    Flag::new("sig-proxy", Kind::Bool, "Pass signals on to the process").default("true"),
];

pub(crate) static CONTAINER_COMMIT: &[Flag] = &[
    Flag::new("author", Kind::Str, "Author, such as \"Ada <ada@example.com>\"").short('a'),
    Flag::new("change", Kind::List, "Apply a Dockerfile instruction to the new image").short('c'),
    Flag::new("message", Kind::Str, "Message of the commit").short('m'),
    Flag::new("no-pause", Kind::Bool, "Do not pause the container during the commit"),
    Flag::new("pause", Kind::Bool, "Pause the container during the commit")
        .short('p')
        .default("true")
        .hidden()
        .deprecated(),
];

pub(crate) static CONTAINER_CP: &[Flag] = &[
    Flag::new("archive", Kind::Bool, "Keep user and group IDs").short('a'),
    Flag::new("follow-link", Kind::Bool, "Follow symbolic links in SRC_PATH").short('L'),
    Flag::new("quiet", Kind::Bool, "Do not show progress").short('q'),
];

pub(crate) static CONTAINER_CREATE: &[Flag] = &[
    Flag::new("add-host", Kind::List, "Add a host-to-IP mapping to /etc/hosts (host:ip)"),
    Flag::new("annotation", Kind::Map, "Add an annotation for the OCI runtime").api(43),
    Flag::new("attach", Kind::List, "Attach to STDIN, STDOUT or STDERR").short('a'),
    Flag::new("blkio-weight", Kind::Uint16, "Block I/O weight, 10 to 1000, or 0 to disable"),
    Flag::new("blkio-weight-device", Kind::List, "Block I/O weight for one device"),
    Flag::new("cap-add", Kind::List, "Add Linux capabilities"),
    Flag::new("cap-drop", Kind::List, "Drop Linux capabilities"),
    Flag::new("cgroup-parent", Kind::Str, "Parent cgroup of the container"),
    Flag::new(
        "cgroupns",
        Kind::Str,
        "Cgroup namespace: \"host\" or \"private\"; empty is the daemon's default",
    )
    .api(41),
    Flag::new("cidfile", Kind::Str, "Write the container ID to this file"),
    Flag::new("cpu-count", Kind::Int, "Number of CPUs (Windows only)").windows(),
    Flag::new("cpu-percent", Kind::Int, "Share of the CPUs in percent (Windows only)").windows(),
    Flag::new("cpu-period", Kind::Int, "CPU CFS period in microseconds"),
    Flag::new("cpu-quota", Kind::Int, "CPU CFS quota in microseconds"),
    Flag::new("cpu-rt-period", Kind::Int, "CPU real-time period in microseconds"),
    Flag::new("cpu-rt-runtime", Kind::Int, "CPU real-time runtime in microseconds"),
    Flag::new("cpu-shares", Kind::Int, "Relative CPU weight").short('c'),
    Flag::new("cpus", Kind::Decimal, "Number of CPUs"),
    Flag::new("cpuset-cpus", Kind::Str, "CPUs that may be used (0-3, 0,1)"),
    Flag::new("cpuset-mems", Kind::Str, "Memory nodes that may be used (0-3, 0,1)"),
    Flag::new("device", Kind::List, "Add a host device"),
    Flag::new("device-cgroup-rule", Kind::List, "Add a rule to the allowed devices"),
    Flag::new("device-read-bps", Kind::List, "Limit reads from a device (bytes per second)"),
    Flag::new("device-read-iops", Kind::List, "Limit reads from a device (operations per second)"),
    Flag::new("device-write-bps", Kind::List, "Limit writes to a device (bytes per second)"),
    Flag::new("device-write-iops", Kind::List, "Limit writes to a device (operations per second)"),
    Flag::new("disable-content-trust", Kind::Bool, "Skip image verification")
        .default("true")
        .hidden()
        .deprecated(),
    Flag::new("dns", Kind::List, "DNS servers"),
    Flag::new("dns-opt", Kind::List, "DNS resolver options").hidden(),
    Flag::new("dns-option", Kind::List, "DNS resolver options"),
    Flag::new("dns-search", Kind::List, "DNS search domains"),
    Flag::new("domainname", Kind::Str, "NIS domain name of the container"),
    Flag::new("entrypoint", Kind::Str, "Replace the entrypoint of the image"),
    Flag::new("env", Kind::List, "Set environment variables").short('e'),
    Flag::new("env-file", Kind::List, "Read environment variables from a file"),
    Flag::new("expose", Kind::List, "Expose a port or a range of ports"),
    Flag::new("gpus", Kind::Gpus, "GPUs to add (\"all\" for all of them)"),
    Flag::new("group-add", Kind::List, "Additional groups"),
    Flag::new("health-cmd", Kind::Str, "Command that checks health"),
    Flag::new("health-interval", Kind::Duration, "Time between checks (ms|s|m|h)"),
    Flag::new("health-retries", Kind::Int, "Failures in a row that mean unhealthy"),
    Flag::new(
        "health-start-interval",
        Kind::Duration,
        "Time between checks while starting (ms|s|m|h)",
    )
    .api(44),
    Flag::new(
        "health-start-period",
        Kind::Duration,
        "Time to start in which failures do not count (ms|s|m|h)",
    ),
    Flag::new("health-timeout", Kind::Duration, "Longest time of one check (ms|s|m|h)"),
    Flag::new("hostname", Kind::Str, "Host name of the container").short('h'),
    Flag::new(
        "init",
        Kind::Bool,
        "Run an init inside the container that forwards signals and reaps processes",
    ),
    Flag::new("interactive", Kind::Bool, "Keep STDIN open").short('i'),
    Flag::new(
        "io-maxbandwidth",
        Kind::Bytes,
        "Largest I/O bandwidth of the system drive (Windows only)",
    )
    .windows(),
    Flag::new("io-maxiops", Kind::Uint64, "Most I/O operations of the system drive (Windows only)")
        .windows(),
    Flag::new("ip", Kind::Ip, "IPv4 address (172.30.100.104)"),
    Flag::new("ip6", Kind::Ip, "IPv6 address (2001:db8::33)"),
    Flag::new("ipc", Kind::Str, "IPC mode"),
    Flag::new("isolation", Kind::Str, "Isolation technology"),
    Flag::new("kernel-memory", Kind::Bytes, "Kernel memory limit").hidden().deprecated(),
    Flag::new("label", Kind::List, "Set metadata").short('l'),
    Flag::new("label-file", Kind::List, "Read labels from a file"),
    Flag::new("link", Kind::List, "Link to another container"),
    Flag::new("link-local-ip", Kind::List, "Link-local address (IPv4 or IPv6)"),
    Flag::new("log-driver", Kind::Str, "Log driver"),
    Flag::new("log-opt", Kind::List, "Log driver options"),
    Flag::new("mac-address", Kind::Str, "MAC address (92:d0:c6:0a:29:33)"),
    Flag::new("memory", Kind::Bytes, "Memory limit").short('m'),
    Flag::new("memory-reservation", Kind::Bytes, "Soft memory limit"),
    Flag::new(
        "memory-swap",
        Kind::Bytes,
        "Limit of memory and swap together; -1 for unlimited swap",
    ),
    Flag::new("memory-swappiness", Kind::Int, "Swappiness of the memory (0 to 100)").default("-1"),
    Flag::new("mount", Kind::Mount, "Mount a filesystem"),
    Flag::new("name", Kind::Str, "Name to give to the container"),
    Flag::new("net", Kind::Network, "Connect to a network").hidden(),
    Flag::new("net-alias", Kind::List, "Further name of the container in the network").hidden(),
    Flag::new("network", Kind::Network, "Connect to a network"),
    Flag::new("network-alias", Kind::List, "Further name of the container in the network"),
    Flag::new("no-healthcheck", Kind::Bool, "Disable the health check of the image"),
    Flag::new("oom-kill-disable", Kind::Bool, "Disable the OOM killer"),
    Flag::new("oom-score-adj", Kind::Int, "OOM preference of the host (-1000 to 1000)"),
    Flag::new("pid", Kind::Str, "PID namespace"),
    Flag::new("pids-limit", Kind::Int, "Most processes (-1 for no limit)"),
    Flag::new("platform", Kind::Str, "Platform to use, if the image has several"),
    Flag::new("privileged", Kind::Bool, "Give extended privileges"),
    Flag::new("publish", Kind::List, "Publish ports of the container to the host").short('p'),
    Flag::new("publish-all", Kind::Bool, "Publish all exposed ports to random host ports")
        .short('P'),
    Flag::new("pull", Kind::Str, "When to pull the image (\"always\", \"missing\", \"never\")")
        .default("missing"),
    Flag::new("quiet", Kind::Bool, "Do not show the pull").short('q'),
    Flag::new("read-only", Kind::Bool, "Mount the root filesystem read-only"),
    Flag::new(
        "restart",
        Kind::Str,
        "Restart policy (\"no\", \"on-failure[:n]\", \"always\", \"unless-stopped\")",
    )
    .default("no"),
    Flag::new("rm", Kind::Bool, "Remove the container and its anonymous volumes when it exits"),
    Flag::new("runtime", Kind::Str, "OCI runtime to use"),
    Flag::new("security-opt", Kind::List, "Security options"),
    Flag::new("shm-size", Kind::Bytes, "Size of /dev/shm"),
    Flag::new("stop-signal", Kind::Str, "Signal that stops the container"),
    Flag::new("stop-timeout", Kind::Int, "Seconds to wait for the stop before killing"),
    Flag::new("storage-opt", Kind::List, "Storage driver options"),
    Flag::new("sysctl", Kind::Map, "Kernel parameters"),
    Flag::new("tmpfs", Kind::List, "Mount a tmpfs directory"),
    Flag::new("tty", Kind::Bool, "Allocate a pseudo-TTY").short('t'),
    Flag::new("ulimit", Kind::Ulimit, "Resource limits"),
    Flag::new(
        "use-api-socket",
        Kind::Bool,
        "Give the container the API socket and the credentials",
    ),
    Flag::new("user", Kind::Str, "User name or UID (name|uid[:group|gid])").short('u'),
    Flag::new("userns", Kind::Str, "User namespace"),
    Flag::new("uts", Kind::Str, "UTS namespace"),
    Flag::new("volume", Kind::List, "Mount a volume or a host directory").short('v'),
    Flag::new("volume-driver", Kind::Str, "Volume driver of the container"),
    Flag::new("volumes-from", Kind::List, "Mount the volumes of another container"),
    Flag::new("workdir", Kind::Str, "Working directory inside the container").short('w'),
];

pub(crate) static CONTAINER_EXEC: &[Flag] = &[
    Flag::new("detach", Kind::Bool, "Run the command in the background").short('d'),
    Flag::new("detach-keys", Kind::Str, "Key sequence that detaches"),
    Flag::new("env", Kind::List, "Set environment variables").short('e'),
    Flag::new("env-file", Kind::List, "Read environment variables from a file"),
    Flag::new("interactive", Kind::Bool, "Keep STDIN open").short('i'),
    Flag::new("privileged", Kind::Bool, "Give extended privileges"),
    Flag::new("tty", Kind::Bool, "Allocate a pseudo-TTY").short('t'),
    Flag::new("user", Kind::Str, "User name or UID (name|uid[:group|gid])").short('u'),
    Flag::new("workdir", Kind::Str, "Working directory of the command").short('w'),
];

pub(crate) static CONTAINER_EXPORT: &[Flag] =
    &[Flag::new("output", Kind::Str, "Write to a file instead of STDOUT").short('o')];

pub(crate) static CONTAINER_INSPECT: &[Flag] = &[
    Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f'),
    Flag::new("size", Kind::Bool, "Show total file sizes").short('s'),
];

pub(crate) static CONTAINER_KILL: &[Flag] =
    &[Flag::new("signal", Kind::Str, "Signal to send").short('s')];

pub(crate) static CONTAINER_LOGS: &[Flag] = &[
    Flag::new("details", Kind::Bool, "Show the extra attributes given to the log"),
    Flag::new("follow", Kind::Bool, "Follow the log").short('f'),
    Flag::new(
        "since",
        Kind::Str,
        "Show what happened since a time (2013-01-02T13:23:37Z) or a duration back (42m)",
    ),
    Flag::new("tail", Kind::Str, "Number of lines from the end").short('n').default("all"),
    Flag::new("timestamps", Kind::Bool, "Show timestamps").short('t'),
    Flag::new(
        "until",
        Kind::Str,
        "Show what happened before a time (2013-01-02T13:23:37Z) or a duration back (42m)",
    ),
];

pub(crate) static CONTAINER_LS: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Show all containers (default shows only running ones)")
        .short('a'),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition").short('f'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("last", Kind::Int, "Show the n containers created last (all states)")
        .short('n')
        .default("-1"),
    Flag::new("latest", Kind::Bool, "Show the container created last (all states)").short('l'),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
    Flag::new("quiet", Kind::Bool, "Show only container IDs").short('q'),
    Flag::new("size", Kind::Bool, "Show total file sizes").short('s'),
];

pub(crate) static CONTAINER_PRUNE: &[Flag] = &[
    Flag::new("filter", Kind::Filter, "Show only what matches the condition"),
    Flag::new("force", Kind::Bool, "Do not ask").short('f'),
];

pub(crate) static CONTAINER_RESTART: &[Flag] = &[
    Flag::new("signal", Kind::Str, "Signal that stops the container").short('s'),
    Flag::new("time", Kind::Int, "Seconds to wait before killing").hidden().deprecated(),
    Flag::new("timeout", Kind::Int, "Seconds to wait before killing").short('t'),
];

pub(crate) static CONTAINER_RM: &[Flag] = &[
    Flag::new("force", Kind::Bool, "Kill running containers first").short('f'),
    Flag::new("link", Kind::Bool, "Remove the link only").short('l'),
    Flag::new("volumes", Kind::Bool, "Remove anonymous volumes too").short('v'),
];

pub(crate) static CONTAINER_START: &[Flag] = &[
    Flag::new("attach", Kind::Bool, "Attach STDOUT and STDERR and pass signals on").short('a'),
    Flag::new("checkpoint", Kind::Str, "Restore from this checkpoint"),
    Flag::new("checkpoint-dir", Kind::Str, "Directory of checkpoints"),
    Flag::new("detach-keys", Kind::Str, "Key sequence that detaches"),
    Flag::new("interactive", Kind::Bool, "Attach STDIN").short('i'),
];

pub(crate) static CONTAINER_STATS: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Show all containers (default shows only running ones)")
        .short('a'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("no-stream", Kind::Bool, "Print one sample and end"),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
];

pub(crate) static CONTAINER_STOP: &[Flag] = &[
    Flag::new("signal", Kind::Str, "Signal to send").short('s'),
    Flag::new("time", Kind::Int, "Seconds to wait before killing").hidden().deprecated(),
    Flag::new("timeout", Kind::Int, "Seconds to wait before killing").short('t'),
];

pub(crate) static CONTAINER_UPDATE: &[Flag] = &[
    Flag::new("blkio-weight", Kind::Uint16, "Block I/O weight, 10 to 1000, or 0 to disable"),
    Flag::new("cpu-period", Kind::Int, "CPU CFS period in microseconds"),
    Flag::new("cpu-quota", Kind::Int, "CPU CFS quota in microseconds"),
    Flag::new("cpu-rt-period", Kind::Int, "CPU real-time period in microseconds"),
    Flag::new("cpu-rt-runtime", Kind::Int, "CPU real-time runtime in microseconds"),
    Flag::new("cpu-shares", Kind::Int, "Relative CPU weight").short('c'),
    Flag::new("cpus", Kind::Decimal, "Number of CPUs"),
    Flag::new("cpuset-cpus", Kind::Str, "CPUs that may be used (0-3, 0,1)"),
    Flag::new("cpuset-mems", Kind::Str, "Memory nodes that may be used (0-3, 0,1)"),
    Flag::new("kernel-memory", Kind::Bytes, "Kernel memory limit").hidden().deprecated(),
    Flag::new("memory", Kind::Bytes, "Memory limit").short('m'),
    Flag::new("memory-reservation", Kind::Bytes, "Soft memory limit"),
    Flag::new(
        "memory-swap",
        Kind::Bytes,
        "Limit of memory and swap together; -1 for unlimited swap",
    ),
    Flag::new("pids-limit", Kind::Int, "Most processes (-1 for no limit)"),
    Flag::new("restart", Kind::Str, "Restart policy to apply when it exits"),
];

pub(crate) static CONTAINER_RUN: &[Flag] = &[
    Flag::new("detach", Kind::Bool, "Run in the background and print the container ID").short('d'),
    Flag::new("detach-keys", Kind::Str, "Key sequence that detaches"),
    Flag::new("sig-proxy", Kind::Bool, "Pass signals on to the process").default("true"),
];
