//! What docker refuses when a container is created, in its words (moby `runconfig/hostconfig_unix.go`,
//! `daemon/daemon_unix.go` `verifyPlatformContainerSettings`).

use api_types::{Config, HostConfig, Resources};

use crate::{Error, Result};

/// CPUs that a list may name: the kernel's largest NR_CPUS.
const CPUS_MOST: u32 = 8192;
/// Smallest memory limit, bytes (moby `linuxMinMemory`).
const MIN_MEMORY_BYTES: i64 = 6 << 20;
/// Shortest time in a health check, nanoseconds (moby `MinimumDuration`).
const MIN_HEALTH_NANOS: i64 = 1_000_000;

/// Settings that contradict each other.
pub(super) fn conflicts(config: &Config, host: &HostConfig) -> Result<()> {
    let refuse =
        |set: bool, what: &str| if set { Err(Error::invalid(what.to_string())) } else { Ok(()) };
    let named = !config.hostname.is_empty();
    refuse(host.uts_mode == "host" && named, "conflicting options: hostname and the UTS mode")?;
    if !host.network_mode.starts_with("container:") {
        return Ok(());
    }
    refuse(named, "conflicting options: hostname and the network mode")?;
    refuse(!host.dns.is_empty(), "conflicting options: dns and the network mode")?;
    refuse(
        !host.extra_hosts.is_empty(),
        "conflicting options: custom host-to-IP mapping and the network mode",
    )?;
    refuse(
        !config.mac_address.is_empty(),
        "conflicting options: mac-address and the network mode",
    )?;
    refuse(
        !host.port_bindings.is_empty() || host.publish_all_ports,
        "conflicting options: port publishing and the container type network mode",
    )?;
    refuse(
        !config.exposed_ports.is_empty(),
        "conflicting options: port exposing and the container type network mode",
    )
}

/// Times and numbers of a health check (moby `daemon/container.go` `validateHealthCheck`).
pub(super) fn health(config: &Config) -> Result<()> {
    let Some(health) = &config.healthcheck else { return Ok(()) };
    for (name, nanos) in [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ] {
        if nanos != 0 && nanos < MIN_HEALTH_NANOS {
            return Err(Error::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if health.retries < 0 {
        return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

/// Values that no host has, or not this one, which has `cpus` CPUs.
pub(super) fn ranges(host: &HostConfig, cpus: u32) -> Result<()> {
    let adjustment = host.oom_score_adj;
    if !(-1000..=1000).contains(&adjustment) {
        return Err(Error::invalid(format!(
            "Invalid value {adjustment}, range for oom score adj is [-1000, 1000]"
        )));
    }
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    let resources = &host.resources;
    let most = i64::from(cpus) * 1_000_000_000;
    if resources.nano_cpus < 0 || resources.nano_cpus > most {
        return Err(Error::invalid(format!(
            "Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )));
    }
    cpu_list(&resources.cpuset_cpus, cpus)?;
    memory_and_time(resources)
}

/// Limits that the kernel would refuse with less to say.
fn memory_and_time(resources: &Resources) -> Result<()> {
    let (memory, reservation) = (resources.memory, resources.memory_reservation);
    let swappiness = resources.memory_swappiness.unwrap_or(-1);
    let (period, quota) = (resources.cpu_period, resources.cpu_quota);
    for (refused, why) in [
        (memory != 0 && memory < MIN_MEMORY_BYTES, "Minimum memory limit allowed is 6MB".into()),
        (
            memory > 0 && reservation > memory,
            "Minimum memory limit can not be less than memory reservation limit, see usage".into(),
        ),
        (
            !(-1..=100).contains(&swappiness),
            format!("Invalid value: {swappiness}, valid memory swappiness range is 0-100"),
        ),
        (
            period != 0 && !(1000..=1_000_000).contains(&period),
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
                .into(),
        ),
        (quota > 0 && quota < 1000, "CPU cfs quota can not be less than 1ms (i.e. 1000)".into()),
    ] {
        if refused {
            return Err(Error::invalid(why));
        }
    }
    Ok(())
}

/// `0-2,4`: each below `cpus`. On a host with gaps in the numbers the kernel has the last word.
fn cpu_list(list: &str, cpus: u32) -> Result<()> {
    let bad =
        || Error::invalid(format!("Invalid value {list} for cpuset cpus: invalid format: {list}"));
    for part in list.split(',').filter(|_| !list.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().map_err(|_| bad())?;
        let last: u32 = last.trim().parse().map_err(|_| bad())?;
        if first > last || last >= CPUS_MOST {
            return Err(bad());
        }
        if last >= cpus {
            let available = if cpus > 1 { format!("0-{}", cpus - 1) } else { "0".into() };
            return Err(Error::invalid(format!(
                "Requested CPUs are not available - requested {list}, available: {available}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cpu_lists() {
        for list in ["", "0", "0-3", "0,2-3"] {
            cpu_list(list, 4).unwrap();
        }
        for (list, text) in [
            ("a", "Invalid value a for cpuset cpus"),
            ("3-1", "Invalid value"),
            ("0,", "Invalid value"),
            ("4", "requested 4, available: 0-3"),
            ("99999999", "Invalid value"),
        ] {
            let error = cpu_list(list, 4).unwrap_err();
            assert!(error.message.contains(text), "{}", error.message);
        }
    }

    #[test]
    fn limits_of_memory_and_time() {
        memory_and_time(&Resources::default()).unwrap();
        let bad = [
            Resources { memory: 16, memory_reservation: 32, ..Resources::default() },
            Resources { memory_swappiness: Some(101), ..Resources::default() },
            Resources { cpu_period: 10, ..Resources::default() },
            Resources { cpu_quota: 10, ..Resources::default() },
        ];
        for resources in bad {
            memory_and_time(&resources).unwrap_err();
        }
    }

    #[test]
    fn another_containers_network_brings_its_own_settings() {
        let mut host = HostConfig { network_mode: "container:x".into(), ..HostConfig::default() };
        let mut config = Config::default();
        conflicts(&config, &host).unwrap();
        host.dns.push("1.1.1.1".into());
        assert!(conflicts(&config, &host).unwrap_err().message.contains("dns and the network"));
        host.dns.clear();
        config.hostname = "h".into();
        assert!(
            conflicts(&config, &host).unwrap_err().message.contains("hostname and the network")
        );
        host.network_mode = "bridge".into();
        conflicts(&config, &host).unwrap();
    }

    #[test]
    fn health_checks_have_bounds() {
        let with = |change: fn(&mut api_types::HealthConfig)| {
            let mut check = api_types::HealthConfig::default();
            change(&mut check);
            health(&Config { healthcheck: Some(check), ..Config::default() }).is_ok()
        };
        assert!(with(|_| {}));
        assert!(with(|check| check.interval = 1_000_000));
        assert!(!with(|check| check.interval = 1));
        assert!(!with(|check| check.timeout = -1));
        assert!(!with(|check| check.retries = -1));
    }
}
