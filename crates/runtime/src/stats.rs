//! Figures of a container's cgroup, the same types for v1 and v2.

use std::collections::BTreeMap;

/// cgroup figures, the same for v1 and v2. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes.
    pub pids: PidsStats,
    /// Block devices.
    pub blkio: Vec<BlkioEntry>,
    /// Huge pages by page size (`2MB`).
    pub hugetlb: BTreeMap<String, HugetlbStats>,
    /// Processors and memory nodes (v1).
    pub cpuset: CpusetStats,
    /// Pressure of block devices (v2).
    pub io_psi: Option<Psi>,
    /// The host runs this container under cgroup v2.
    pub v2: bool,
}

/// CPU figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuStats {
    /// Total processor time.
    pub usage_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In kernel mode.
    pub kernel_ns: u64,
    /// Per processor (v1 only).
    pub percpu_ns: Vec<u64>,
    /// In kernel mode, per processor (v1 only).
    pub percpu_kernel_ns: Vec<u64>,
    /// In user mode, per processor (v1 only).
    pub percpu_user_ns: Vec<u64>,
    /// Pressure (v2).
    pub psi: Option<Psi>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Of them, throttled.
    pub throttled_periods: u64,
    /// Time throttled.
    pub throttled_ns: u64,
}

/// Memory figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryStats {
    /// In use now.
    pub usage: u64,
    /// Highest use (0 where the kernel does not say).
    pub max_usage: u64,
    /// The limit; `u64::MAX` for none.
    pub limit: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
    /// Swap (v1: memory and swap together).
    pub swap_usage: u64,
    /// Swap's limit, `u64::MAX` for none.
    pub swap_limit: u64,
    /// Highest use of swap (v1: memory and swap together).
    pub swap_max_usage: u64,
    /// How often swap's limit was hit.
    pub swap_failcnt: u64,
    /// Kernel memory (v1) in use.
    pub kernel_usage: u64,
    /// Kernel memory (v1): limit, use, highest use, failed charges.
    pub kernel: [u64; 4],
    /// TCP buffers (v1), likewise.
    pub kernel_tcp: [u64; 4],
    /// Pressure (v2).
    pub psi: Option<Psi>,
    /// OOM kills so far.
    pub oom_kills: u64,
    /// `memory.stat` as it is.
    pub stat: BTreeMap<String, u64>,
}

/// Process counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// Limit; 0 for none.
    pub limit: u64,
}

/// One line of a blkio table.
#[derive(Debug, Clone, PartialEq)]
pub struct BlkioEntry {
    /// `io_service_bytes_recursive`, `io_serviced_recursive` … (containerd's names).
    pub table: &'static str,
    /// Device.
    pub major: u64,
    /// Device.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`.
    pub op: String,
    /// Bytes or operations.
    pub value: u64,
}

/// Huge page figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HugetlbStats {
    /// In use.
    pub usage: u64,
    /// Highest use.
    pub max_usage: u64,
    /// Failed charges.
    pub failcnt: u64,
}

/// cpuset's files (v1).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpusetStats {
    /// Processors.
    pub cpus: Vec<u16>,
    /// Memory nodes.
    pub mems: Vec<u16>,
    /// The others, by runc's names.
    pub flags: Vec<(&'static str, i64)>,
}

/// Pressure stall figures (PSI).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// In all, in microseconds.
    pub total_us: u64,
}

/// A `*.pressure` file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Psi {
    /// Some task waited.
    pub some: Pressure,
    /// All tasks waited.
    pub full: Pressure,
}

impl Psi {
    /// `None` for an empty file.
    pub(crate) fn parse(text: &str) -> Option<Psi> {
        let mut out = Psi::default();
        let mut any = false;
        for line in text.lines() {
            let mut words = line.split(' ');
            let into = match words.next() {
                Some("some") => &mut out.some,
                Some("full") => &mut out.full,
                _ => continue,
            };
            any = true;
            for (key, value) in words.filter_map(|w| w.split_once('=')) {
                match key {
                    "avg10" => into.avg10 = value.parse().unwrap_or(0.0),
                    "avg60" => into.avg60 = value.parse().unwrap_or(0.0),
                    "avg300" => into.avg300 = value.parse().unwrap_or(0.0),
                    "total" => into.total_us = value.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
        any.then_some(out)
    }
}

/// (containerd's name of a blkio table, runc's).
pub(crate) const BLKIO_TABLES: [(&str, &str); 8] = [
    ("io_service_bytes_recursive", "ioServiceBytesRecursive"),
    ("io_serviced_recursive", "ioServicedRecursive"),
    ("io_queued_recursive", "ioQueueRecursive"),
    ("io_service_time_recursive", "ioServiceTimeRecursive"),
    ("io_wait_time_recursive", "ioWaitTimeRecursive"),
    ("io_merged_recursive", "ioMergedRecursive"),
    ("io_time_recursive", "ioTimeRecursive"),
    ("sectors_recursive", "sectorsRecursive"),
];
