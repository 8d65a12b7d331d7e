//! Resource usage of one container (`GET /containers/{id}/stats`).
//!
//! Counters are totals since the container's start: bytes, nanoseconds, packets.

use crate::wire::{Map, nil, zero};

wire! {
    /// One sample with the one before it. `CPU %` is computed by the client from both.
    #[derive(Eq)]
    pub struct Stats {
        #[serde(rename = "name")]
        pub name: String,
        #[serde(rename = "id")]
        pub id: String,
        #[serde(rename = "read")]
        pub read: String,
        #[serde(rename = "preread")]
        pub preread: String,
        #[serde(rename = "pids_stats")]
        pub pids_stats: PidsStats,
        #[serde(rename = "blkio_stats")]
        pub blkio_stats: BlkioStats,
        #[serde(rename = "num_procs")]
        pub num_procs: u32,
        #[serde(rename = "storage_stats")]
        pub storage_stats: StorageStats,
        #[serde(rename = "cpu_stats")]
        pub cpu_stats: CpuStats,
        #[serde(rename = "precpu_stats")]
        pub precpu_stats: CpuStats,
        #[serde(rename = "memory_stats")]
        pub memory_stats: MemoryStats,
        #[serde(rename = "networks", skip_serializing_if = "zero")]
        pub networks: Map<NetworkStats>,
        #[serde(rename = "os_type", skip_serializing_if = "zero")]
        pub os_type: String,
    }

    #[derive(Eq)]
    pub struct PidsStats {
        #[serde(rename = "current", skip_serializing_if = "zero")]
        pub current: u64,
        #[serde(rename = "limit", skip_serializing_if = "zero")]
        pub limit: u64,
    }

    /// cgroup v2 fills only `io_service_bytes_recursive`.
    #[derive(Eq)]
    pub struct BlkioStats {
        #[serde(rename = "io_service_bytes_recursive", serialize_with = "nil")]
        pub io_service_bytes_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_serviced_recursive", serialize_with = "nil")]
        pub io_serviced_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_queue_recursive", serialize_with = "nil")]
        pub io_queue_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_service_time_recursive", serialize_with = "nil")]
        pub io_service_time_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_wait_time_recursive", serialize_with = "nil")]
        pub io_wait_time_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_merged_recursive", serialize_with = "nil")]
        pub io_merged_recursive: Vec<BlkioEntry>,
        #[serde(rename = "io_time_recursive", serialize_with = "nil")]
        pub io_time_recursive: Vec<BlkioEntry>,
        #[serde(rename = "sectors_recursive", serialize_with = "nil")]
        pub sectors_recursive: Vec<BlkioEntry>,
    }

    #[derive(Eq)]
    pub struct BlkioEntry {
        #[serde(rename = "major")]
        pub major: u64,
        #[serde(rename = "minor")]
        pub minor: u64,
        #[serde(rename = "op")]
        pub op: String,
        #[serde(rename = "value")]
        pub value: u64,
    }

    /// Windows only; written as `{}`.
    #[derive(Eq)]
    pub struct StorageStats {
        #[serde(rename = "read_count_normalized", skip_serializing_if = "zero")]
        pub read_count_normalized: u64,
        #[serde(rename = "read_size_bytes", skip_serializing_if = "zero")]
        pub read_size_bytes: u64,
        #[serde(rename = "write_count_normalized", skip_serializing_if = "zero")]
        pub write_count_normalized: u64,
        #[serde(rename = "write_size_bytes", skip_serializing_if = "zero")]
        pub write_size_bytes: u64,
    }

    #[derive(Eq)]
    pub struct CpuStats {
        #[serde(rename = "cpu_usage")]
        pub cpu_usage: CpuUsage,
        #[serde(rename = "system_cpu_usage", skip_serializing_if = "zero")]
        pub system_cpu_usage: u64,
        #[serde(rename = "online_cpus", skip_serializing_if = "zero")]
        pub online_cpus: u32,
        #[serde(rename = "throttling_data")]
        pub throttling_data: ThrottlingData,
    }

    #[derive(Eq)]
    pub struct CpuUsage {
        #[serde(rename = "total_usage")]
        pub total_usage: u64,
        #[serde(rename = "percpu_usage", skip_serializing_if = "zero")]
        pub percpu_usage: Vec<u64>,
        #[serde(rename = "usage_in_kernelmode")]
        pub usage_in_kernelmode: u64,
        #[serde(rename = "usage_in_usermode")]
        pub usage_in_usermode: u64,
    }

    #[derive(Eq)]
    pub struct ThrottlingData {
        #[serde(rename = "periods")]
        pub periods: u64,
        #[serde(rename = "throttled_periods")]
        pub throttled_periods: u64,
        #[serde(rename = "throttled_time")]
        pub throttled_time: u64,
    }

    #[derive(Eq)]
    pub struct MemoryStats {
        #[serde(rename = "usage", skip_serializing_if = "zero")]
        pub usage: u64,
        #[serde(rename = "max_usage", skip_serializing_if = "zero")]
        pub max_usage: u64,
        #[serde(rename = "stats", skip_serializing_if = "zero")]
        pub stats: Map<u64>,
        #[serde(rename = "failcnt", skip_serializing_if = "zero")]
        pub failcnt: u64,
        #[serde(rename = "limit", skip_serializing_if = "zero")]
        pub limit: u64,
    }

    #[derive(Eq)]
    pub struct NetworkStats {
        #[serde(rename = "rx_bytes")]
        pub rx_bytes: u64,
        #[serde(rename = "rx_packets")]
        pub rx_packets: u64,
        #[serde(rename = "rx_errors")]
        pub rx_errors: u64,
        #[serde(rename = "rx_dropped")]
        pub rx_dropped: u64,
        #[serde(rename = "tx_bytes")]
        pub tx_bytes: u64,
        #[serde(rename = "tx_packets")]
        pub tx_packets: u64,
        #[serde(rename = "tx_errors")]
        pub tx_errors: u64,
        #[serde(rename = "tx_dropped")]
        pub tx_dropped: u64,
    }
}
