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
    /// Kernel memory (v1) in use.
    pub kernel_usage: u64,
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
    /// `io_service_bytes_recursive` or `io_serviced_recursive` (containerd's names).
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
