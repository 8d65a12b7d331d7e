//! `io.containerd.cgroups.v1`.

/// `Metrics`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metrics {
    #[prost(message, repeated, tag = "1")]
    pub hugetlb: Vec<HugetlbStat>,
    #[prost(message, optional, tag = "2")]
    pub pids: Option<PidsStat>,
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<CpuStat>,
    #[prost(message, optional, tag = "4")]
    pub memory: Option<MemoryStat>,
    #[prost(message, optional, tag = "5")]
    pub blkio: Option<BlkIoStat>,
    #[prost(message, optional, tag = "9")]
    pub memory_oom_control: Option<MemoryOomControl>,
}

/// `HugetlbStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HugetlbStat {
    #[prost(uint64, tag = "1")]
    pub usage: u64,
    #[prost(uint64, tag = "2")]
    pub max: u64,
    #[prost(uint64, tag = "3")]
    pub failcnt: u64,
    #[prost(string, tag = "4")]
    pub pagesize: String,
}

/// `PidsStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsStat {
    #[prost(uint64, tag = "1")]
    pub current: u64,
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// `CpuStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuStat {
    #[prost(message, optional, tag = "1")]
    pub usage: Option<CpuUsage>,
    #[prost(message, optional, tag = "2")]
    pub throttling: Option<Throttle>,
}

/// `CpuUsage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuUsage {
    #[prost(uint64, tag = "1")]
    pub total: u64,
    #[prost(uint64, tag = "2")]
    pub kernel: u64,
    #[prost(uint64, tag = "3")]
    pub user: u64,
    #[prost(uint64, repeated, tag = "4")]
    pub per_cpu: Vec<u64>,
}

/// `Throttle`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Throttle {
    #[prost(uint64, tag = "1")]
    pub periods: u64,
    #[prost(uint64, tag = "2")]
    pub throttled_periods: u64,
    #[prost(uint64, tag = "3")]
    pub throttled_time: u64,
}

/// `MemoryEntry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryEntry {
    #[prost(uint64, tag = "1")]
    pub limit: u64,
    #[prost(uint64, tag = "2")]
    pub usage: u64,
    #[prost(uint64, tag = "3")]
    pub max: u64,
    #[prost(uint64, tag = "4")]
    pub failcnt: u64,
}

/// `MemoryOomControl`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryOomControl {
    #[prost(uint64, tag = "1")]
    pub oom_kill_disable: u64,
    #[prost(uint64, tag = "2")]
    pub under_oom: u64,
    #[prost(uint64, tag = "3")]
    pub oom_kill: u64,
}

/// `BlkIoStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlkIoStat {
    #[prost(message, repeated, tag = "1")]
    pub io_service_bytes_recursive: Vec<BlkIoEntry>,
    #[prost(message, repeated, tag = "2")]
    pub io_serviced_recursive: Vec<BlkIoEntry>,
}

/// `BlkIoEntry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlkIoEntry {
    #[prost(string, tag = "1")]
    pub op: String,
    #[prost(string, tag = "2")]
    pub device: String,
    #[prost(uint64, tag = "3")]
    pub major: u64,
    #[prost(uint64, tag = "4")]
    pub minor: u64,
    #[prost(uint64, tag = "5")]
    pub value: u64,
}

/// `MemoryStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryStat {
    #[prost(uint64, tag = "1")]
    pub cache: u64,
    #[prost(uint64, tag = "2")]
    pub rss: u64,
    #[prost(uint64, tag = "3")]
    pub rss_huge: u64,
    #[prost(uint64, tag = "4")]
    pub mapped_file: u64,
    #[prost(uint64, tag = "5")]
    pub dirty: u64,
    #[prost(uint64, tag = "6")]
    pub writeback: u64,
    #[prost(uint64, tag = "7")]
    pub pgpgin: u64,
    #[prost(uint64, tag = "8")]
    pub pgpgout: u64,
    #[prost(uint64, tag = "9")]
    pub pgfault: u64,
    #[prost(uint64, tag = "10")]
    pub pgmajfault: u64,
    #[prost(uint64, tag = "11")]
    pub inactive_anon: u64,
    #[prost(uint64, tag = "12")]
    pub active_anon: u64,
    #[prost(uint64, tag = "13")]
    pub inactive_file: u64,
    #[prost(uint64, tag = "14")]
    pub active_file: u64,
    #[prost(uint64, tag = "15")]
    pub unevictable: u64,
    #[prost(uint64, tag = "16")]
    pub hierarchical_memory_limit: u64,
    #[prost(uint64, tag = "17")]
    pub hierarchical_memsw_limit: u64,
    #[prost(uint64, tag = "18")]
    pub total_cache: u64,
    #[prost(uint64, tag = "19")]
    pub total_rss: u64,
    #[prost(uint64, tag = "20")]
    pub total_rss_huge: u64,
    #[prost(uint64, tag = "21")]
    pub total_mapped_file: u64,
    #[prost(uint64, tag = "22")]
    pub total_dirty: u64,
    #[prost(uint64, tag = "23")]
    pub total_writeback: u64,
    #[prost(uint64, tag = "24")]
    pub total_pgpgin: u64,
    #[prost(uint64, tag = "25")]
    pub total_pgpgout: u64,
    #[prost(uint64, tag = "26")]
    pub total_pgfault: u64,
    #[prost(uint64, tag = "27")]
    pub total_pgmajfault: u64,
    #[prost(uint64, tag = "28")]
    pub total_inactive_anon: u64,
    #[prost(uint64, tag = "29")]
    pub total_active_anon: u64,
    #[prost(uint64, tag = "30")]
    pub total_inactive_file: u64,
    #[prost(uint64, tag = "31")]
    pub total_active_file: u64,
    #[prost(uint64, tag = "32")]
    pub total_unevictable: u64,
    #[prost(message, optional, tag = "33")]
    pub usage: Option<MemoryEntry>,
    #[prost(message, optional, tag = "34")]
    pub swap: Option<MemoryEntry>,
    #[prost(message, optional, tag = "35")]
    pub kernel: Option<MemoryEntry>,
    #[prost(message, optional, tag = "36")]
    pub kernel_tcp: Option<MemoryEntry>,
}

impl MemoryStat {
    /// The values that come from `memory.stat`, under its keys.
    pub fn entries(&self) -> [(&'static str, u64); 32] {
        [
            ("cache", self.cache),
            ("rss", self.rss),
            ("rss_huge", self.rss_huge),
            ("mapped_file", self.mapped_file),
            ("dirty", self.dirty),
            ("writeback", self.writeback),
            ("pgpgin", self.pgpgin),
            ("pgpgout", self.pgpgout),
            ("pgfault", self.pgfault),
            ("pgmajfault", self.pgmajfault),
            ("inactive_anon", self.inactive_anon),
            ("active_anon", self.active_anon),
            ("inactive_file", self.inactive_file),
            ("active_file", self.active_file),
            ("unevictable", self.unevictable),
            ("hierarchical_memory_limit", self.hierarchical_memory_limit),
            ("hierarchical_memsw_limit", self.hierarchical_memsw_limit),
            ("total_cache", self.total_cache),
            ("total_rss", self.total_rss),
            ("total_rss_huge", self.total_rss_huge),
            ("total_mapped_file", self.total_mapped_file),
            ("total_dirty", self.total_dirty),
            ("total_writeback", self.total_writeback),
            ("total_pgpgin", self.total_pgpgin),
            ("total_pgpgout", self.total_pgpgout),
            ("total_pgfault", self.total_pgfault),
            ("total_pgmajfault", self.total_pgmajfault),
            ("total_inactive_anon", self.total_inactive_anon),
            ("total_active_anon", self.total_active_anon),
            ("total_inactive_file", self.total_inactive_file),
            ("total_active_file", self.total_active_file),
            ("total_unevictable", self.total_unevictable),
        ]
    }

    /// Sets the value of one of `memory.stat`'s keys; others are passed over.
    pub fn set(&mut self, key: &str, value: u64) {
        match key {
            "cache" => self.cache = value,
            "rss" => self.rss = value,
            "rss_huge" => self.rss_huge = value,
            "mapped_file" => self.mapped_file = value,
            "dirty" => self.dirty = value,
            "writeback" => self.writeback = value,
            "pgpgin" => self.pgpgin = value,
            "pgpgout" => self.pgpgout = value,
            "pgfault" => self.pgfault = value,
            "pgmajfault" => self.pgmajfault = value,
            "inactive_anon" => self.inactive_anon = value,
            "active_anon" => self.active_anon = value,
            "inactive_file" => self.inactive_file = value,
            "active_file" => self.active_file = value,
            "unevictable" => self.unevictable = value,
            "hierarchical_memory_limit" => self.hierarchical_memory_limit = value,
            "hierarchical_memsw_limit" => self.hierarchical_memsw_limit = value,
            "total_cache" => self.total_cache = value,
            "total_rss" => self.total_rss = value,
            "total_rss_huge" => self.total_rss_huge = value,
            "total_mapped_file" => self.total_mapped_file = value,
            "total_dirty" => self.total_dirty = value,
            "total_writeback" => self.total_writeback = value,
            "total_pgpgin" => self.total_pgpgin = value,
            "total_pgpgout" => self.total_pgpgout = value,
            "total_pgfault" => self.total_pgfault = value,
            "total_pgmajfault" => self.total_pgmajfault = value,
            "total_inactive_anon" => self.total_inactive_anon = value,
            "total_active_anon" => self.total_active_anon = value,
            "total_inactive_file" => self.total_inactive_file = value,
            "total_active_file" => self.total_active_file = value,
            "total_unevictable" => self.total_unevictable = value,
            _ => {}
        }
    }
}
