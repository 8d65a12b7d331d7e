use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use api_types::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, MemoryStats, NetworkStats, PidsStats, Stats,
    ThrottlingData, TopResponse,
};
use store_api::{Metrics, Timestamp};

use super::{Container, record::Status};
use crate::{
    Engine, Error, Result,
    util::{blocking, read_limited, rfc3339},
};

const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of /proc/stat: thousands of processors fit.
const PROC_LIMIT_BYTES: u64 = 4 << 20;

/// Samples of a container's use of resources, one a second.
pub struct StatsStream {
    engine: Arc<Engine>,
    container: Arc<Container>,
    previous: Option<Stats>,
    stream: bool,
    one_shot: bool,
    done: bool,
}

impl StatsStream {
    /// The next sample; `None` at the end: after one without streaming, or once the container is gone.
    pub async fn next(&mut self) -> Option<Stats> {
        if self.done || self.container.progress.borrow().removed {
            return None;
        }
        if self.previous.is_some() {
            tokio::time::sleep(INTERVAL).await;
        } else if !self.stream && !self.one_shot {
            // Two samples, so that a rate can be told from the one that is answered.
            self.previous = Some(self.sample().await);
            tokio::time::sleep(INTERVAL).await;
        }
        let mut stats = self.sample().await;
        if let Some(previous) = &self.previous {
            stats.precpu_stats = previous.cpu_stats.clone();
            stats.preread.clone_from(&previous.read);
        }
        self.done = !self.stream;
        self.previous = Some(stats.clone());
        Some(stats)
    }

    async fn sample(&self) -> Stats {
        let record = self.container.snapshot();
        let zero = Stats {
            name: format!("/{}", record.name),
            id: record.id.to_string(),
            preread: rfc3339(None),
            os_type: "linux".into(),
            ..Stats::default()
        };
        let running = matches!(record.status, Status::Running { .. });
        let metrics = match running {
            true => self.engine.services.tasks.metrics(record.id.as_str()).await.ok(),
            false => None,
        };
        let Some(metrics) = metrics else {
            return Stats { read: rfc3339(None), ..zero };
        };
        let namespace =
            self.container.running.lock().unwrap_or_else(PoisonError::into_inner).namespace.clone();
        let networks = match namespace {
            Some(namespace) => blocking(move || Ok(network::stats::read(&namespace)?)).await,
            None => Ok(Vec::new()),
        };
        let networks = networks.unwrap_or_default().into_iter().map(|interface| {
            let shape = NetworkStats {
                rx_bytes: interface.rx_bytes,
                rx_packets: interface.rx_packets,
                rx_errors: interface.rx_errors,
                rx_dropped: interface.rx_dropped,
                tx_bytes: interface.tx_bytes,
                tx_packets: interface.tx_packets,
                tx_errors: interface.tx_errors,
                tx_dropped: interface.tx_dropped,
            };
            (interface.name, shape)
        });
        Stats { networks: networks.collect(), ..shape(&metrics, zero) }
    }
}

fn shape(metrics: &Metrics, base: Stats) -> Stats {
    let blkio = |list: &[(u64, u64, String, u64)]| {
        list.iter()
            .map(|(major, minor, op, value)| BlkioEntry {
                major: *major,
                minor: *minor,
                op: op.clone(),
                value: *value,
            })
            .collect()
    };
    Stats {
        read: rfc3339(Some(Timestamp::now())),
        pids_stats: PidsStats {
            current: metrics.pids_current,
            limit: metrics.pids_limit.unwrap_or(u64::MAX),
        },
        blkio_stats: BlkioStats {
            io_service_bytes_recursive: blkio(&metrics.blkio_bytes),
            io_serviced_recursive: blkio(&metrics.blkio_ios),
            ..BlkioStats::default()
        },
        cpu_stats: CpuStats {
            cpu_usage: CpuUsage {
                total_usage: metrics.cpu_total_ns,
                percpu_usage: metrics.cpu_percpu_ns.clone(),
                usage_in_kernelmode: metrics.cpu_system_ns,
                usage_in_usermode: metrics.cpu_user_ns,
            },
            system_cpu_usage: system_cpu_ns(),
            online_cpus: online_cpus(),
            throttling_data: ThrottlingData {
                periods: metrics.throttle_periods,
                throttled_periods: metrics.throttled_periods,
                throttled_time: metrics.throttled_ns,
            },
        },
        memory_stats: MemoryStats {
            usage: metrics.memory_usage,
            max_usage: metrics.memory_max_usage,
            stats: metrics.memory_stat.clone(),
            failcnt: metrics.memory_failcnt,
            limit: metrics.memory_limit.unwrap_or_else(crate::system::memory_total),
        },
        ..base
    }
}

pub(crate) fn online_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Processor time of the host, nanoseconds, without guests (moby `getSystemCPUUsage`).
fn system_cpu_ns() -> u64 {
    const NANOS_PER_TICK: u64 = 10_000_000;
    let text = read_limited(std::path::Path::new("/proc/stat"), PROC_LIMIT_BYTES);
    let text = text.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let Some(line) = text.lines().find(|line| line.starts_with("cpu ")) else { return 0 };
    let ticks = line.split_ascii_whitespace().skip(1).take(7).filter_map(|f| f.parse::<u64>().ok());
    ticks.sum::<u64>() * NANOS_PER_TICK
}

impl Engine {
    pub fn container_stats(
        self: &Arc<Self>,
        name: &str,
        stream: bool,
        one_shot: bool,
    ) -> Result<StatsStream> {
        if stream && one_shot {
            return Err(Error::invalid("cannot have stream=true and one-shot=true"));
        }
        let container = self.containers.find(name)?;
        let engine = self.clone();
        Ok(StatsStream { engine, container, previous: None, stream, one_shot, done: false })
    }

    pub async fn container_resize(&self, name: &str, width: u16, height: u16) -> Result<()> {
        let container = self.containers.find(name)?;
        let record = container.snapshot();
        if record.status.pid().is_none() {
            return Err(Error::conflict(format!("Container {} is not running", record.id)));
        }
        let process = store_api::ProcessId::init(record.id.as_str());
        self.services.tasks.resize(&process, width, height).await?;
        let mut attributes = record.attributes();
        attributes.insert("height".into(), height.to_string());
        attributes.insert("width".into(), width.to_string());
        self.events.publish("container", "resize", record.id.as_str(), attributes);
        Ok(())
    }

    /// The processes of a container, read from /proc in the columns of `ps`.
    pub async fn container_top(&self, name: &str, ps_args: &str) -> Result<TopResponse> {
        let container = self.containers.find(name)?;
        let record = container.snapshot();
        if record.status.pid().is_none() {
            return Err(Error::conflict(format!("container {} is not running", record.id)));
        }
        let pids = self.services.tasks.pids(record.id.as_str()).await?;
        let pids: Vec<u32> = pids.into_iter().map(|process| process.pid).collect();
        let ps_args = ps_args.to_string();
        let top = blocking(move || crate::top::table(&pids, &ps_args)).await?;
        self.container_event(&container, "top");
        Ok(top)
    }
}
