//! `io.containerd.cgroups.v2`.

/// `Metrics`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metrics {
    #[prost(message, optional, tag = "1")]
    pub pids: Option<PidsStat>,
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<CpuStat>,
    #[prost(message, optional, tag = "4")]
    pub memory: Option<MemoryStat>,
    #[prost(message, optional, tag = "6")]
    pub io: Option<IoStat>,
    #[prost(message, repeated, tag = "7")]
    pub hugetlb: Vec<HugeTlbStat>,
    #[prost(message, optional, tag = "8")]
    pub memory_events: Option<MemoryEvents>,
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
    #[prost(uint64, tag = "1")]
    pub usage_usec: u64,
    #[prost(uint64, tag = "2")]
    pub user_usec: u64,
    #[prost(uint64, tag = "3")]
    pub system_usec: u64,
    #[prost(uint64, tag = "4")]
    pub nr_periods: u64,
    #[prost(uint64, tag = "5")]
    pub nr_throttled: u64,
    #[prost(uint64, tag = "6")]
    pub throttled_usec: u64,
}

/// `MemoryEvents`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryEvents {
    #[prost(uint64, tag = "1")]
    pub low: u64,
    #[prost(uint64, tag = "2")]
    pub high: u64,
    #[prost(uint64, tag = "3")]
    pub max: u64,
    #[prost(uint64, tag = "4")]
    pub oom: u64,
    #[prost(uint64, tag = "5")]
    pub oom_kill: u64,
}

/// `IoStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IoStat {
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<IoEntry>,
}

/// `IoEntry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IoEntry {
    #[prost(uint64, tag = "1")]
    pub major: u64,
    #[prost(uint64, tag = "2")]
    pub minor: u64,
    #[prost(uint64, tag = "3")]
    pub rbytes: u64,
    #[prost(uint64, tag = "4")]
    pub wbytes: u64,
    #[prost(uint64, tag = "5")]
    pub rios: u64,
    #[prost(uint64, tag = "6")]
    pub wios: u64,
}

/// `HugeTlbStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HugeTlbStat {
    #[prost(uint64, tag = "1")]
    pub current: u64,
    #[prost(uint64, tag = "2")]
    pub max: u64,
    #[prost(string, tag = "3")]
    pub pagesize: String,
}

/// `MemoryStat`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryStat {
    #[prost(uint64, tag = "1")]
    pub anon: u64,
    #[prost(uint64, tag = "2")]
    pub file: u64,
    #[prost(uint64, tag = "3")]
    pub kernel_stack: u64,
    #[prost(uint64, tag = "4")]
    pub slab: u64,
    #[prost(uint64, tag = "5")]
    pub sock: u64,
    #[prost(uint64, tag = "6")]
    pub shmem: u64,
    #[prost(uint64, tag = "7")]
    pub file_mapped: u64,
    #[prost(uint64, tag = "8")]
    pub file_dirty: u64,
    #[prost(uint64, tag = "9")]
    pub file_writeback: u64,
    #[prost(uint64, tag = "10")]
    pub anon_thp: u64,
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
    pub slab_reclaimable: u64,
    #[prost(uint64, tag = "17")]
    pub slab_unreclaimable: u64,
    #[prost(uint64, tag = "18")]
    pub pgfault: u64,
    #[prost(uint64, tag = "19")]
    pub pgmajfault: u64,
    #[prost(uint64, tag = "20")]
    pub workingset_refault: u64,
    #[prost(uint64, tag = "21")]
    pub workingset_activate: u64,
    #[prost(uint64, tag = "22")]
    pub workingset_nodereclaim: u64,
    #[prost(uint64, tag = "23")]
    pub pgrefill: u64,
    #[prost(uint64, tag = "24")]
    pub pgscan: u64,
    #[prost(uint64, tag = "25")]
    pub pgsteal: u64,
    #[prost(uint64, tag = "26")]
    pub pgactivate: u64,
    #[prost(uint64, tag = "27")]
    pub pgdeactivate: u64,
    #[prost(uint64, tag = "28")]
    pub pglazyfree: u64,
    #[prost(uint64, tag = "29")]
    pub pglazyfreed: u64,
    #[prost(uint64, tag = "30")]
    pub thp_fault_alloc: u64,
    #[prost(uint64, tag = "31")]
    pub thp_collapse_alloc: u64,
    #[prost(uint64, tag = "32")]
    pub usage: u64,
    #[prost(uint64, tag = "33")]
    pub usage_limit: u64,
    #[prost(uint64, tag = "34")]
    pub swap_usage: u64,
    #[prost(uint64, tag = "35")]
    pub swap_limit: u64,
}

impl MemoryStat {
    /// The values that come from `memory.stat`, under its keys.
    pub fn entries(&self) -> [(&'static str, u64); 31] {
        [
            ("anon", self.anon),
            ("file", self.file),
            ("kernel_stack", self.kernel_stack),
            ("slab", self.slab),
            ("sock", self.sock),
            ("shmem", self.shmem),
            ("file_mapped", self.file_mapped),
            ("file_dirty", self.file_dirty),
            ("file_writeback", self.file_writeback),
            ("anon_thp", self.anon_thp),
            ("inactive_anon", self.inactive_anon),
            ("active_anon", self.active_anon),
            ("inactive_file", self.inactive_file),
            ("active_file", self.active_file),
            ("unevictable", self.unevictable),
            ("slab_reclaimable", self.slab_reclaimable),
            ("slab_unreclaimable", self.slab_unreclaimable),
            ("pgfault", self.pgfault),
            ("pgmajfault", self.pgmajfault),
            ("workingset_refault", self.workingset_refault),
            ("workingset_activate", self.workingset_activate),
            ("workingset_nodereclaim", self.workingset_nodereclaim),
            ("pgrefill", self.pgrefill),
            ("pgscan", self.pgscan),
            ("pgsteal", self.pgsteal),
            ("pgactivate", self.pgactivate),
            ("pgdeactivate", self.pgdeactivate),
            ("pglazyfree", self.pglazyfree),
            ("pglazyfreed", self.pglazyfreed),
            ("thp_fault_alloc", self.thp_fault_alloc),
            ("thp_collapse_alloc", self.thp_collapse_alloc),
        ]
    }

    /// Sets the value of one of `memory.stat`'s keys; others are passed over.
    pub fn set(&mut self, key: &str, value: u64) {
        match key {
            "anon" => self.anon = value,
            "file" => self.file = value,
            "kernel_stack" => self.kernel_stack = value,
            "slab" => self.slab = value,
            "sock" => self.sock = value,
            "shmem" => self.shmem = value,
            "file_mapped" => self.file_mapped = value,
            "file_dirty" => self.file_dirty = value,
            "file_writeback" => self.file_writeback = value,
            "anon_thp" => self.anon_thp = value,
            "inactive_anon" => self.inactive_anon = value,
            "active_anon" => self.active_anon = value,
            "inactive_file" => self.inactive_file = value,
            "active_file" => self.active_file = value,
            "unevictable" => self.unevictable = value,
            "slab_reclaimable" => self.slab_reclaimable = value,
            "slab_unreclaimable" => self.slab_unreclaimable = value,
            "pgfault" => self.pgfault = value,
            "pgmajfault" => self.pgmajfault = value,
            "workingset_refault" => self.workingset_refault = value,
            "workingset_activate" => self.workingset_activate = value,
            "workingset_nodereclaim" => self.workingset_nodereclaim = value,
            "pgrefill" => self.pgrefill = value,
            "pgscan" => self.pgscan = value,
            "pgsteal" => self.pgsteal = value,
            "pgactivate" => self.pgactivate = value,
            "pgdeactivate" => self.pgdeactivate = value,
            "pglazyfree" => self.pglazyfree = value,
            "pglazyfreed" => self.pglazyfreed = value,
            "thp_fault_alloc" => self.thp_fault_alloc = value,
            "thp_collapse_alloc" => self.thp_collapse_alloc = value,
            _ => {}
        }
    }
}
