//! From the flags of `run` and `create` to the create body.

use std::path::Path;

use api_types::*;

use super::network::endpoints;
use super::*;
use crate::flags::Matches;
use crate::values;

/// A seccomp profile may not be larger.
const MAX_PROFILE_BYTES: u64 = 4 << 20;

/// Everything beside the flags that a create body depends on.
#[derive(Debug)]
pub(crate) struct CreateInput<'a> {
    pub(crate) cwd: &'a Path,
    /// Proxy variables of config.json, `NAME=value`.
    pub(crate) proxies: Vec<String>,
    /// Height, width of our terminal.
    pub(crate) console_size: [u32; 2],
}

/// `no | on-failure[:max] | always | unless-stopped`.
pub(crate) fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    if text.is_empty() {
        return Ok(RestartPolicy::default());
    }
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => {
            return Err("invalid restart policy format: no policy provided before colon".into());
        }
        Some((name, count)) => {
            let count = count.parse().map_err(|_| {
                "invalid restart policy format: maximum retry count must be an integer".to_owned()
            })?;
            (name, count)
        }
        None => (text, 0),
    };
    Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count: count })
}

/// The limits among the flags.
pub(crate) fn resources(m: &Matches) -> Result<Resources, String> {
    fn each<T>(list: Vec<String>, f: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
        list.iter().map(|text| f(text)).collect()
    }
    let weight = values::uint(m.text("blkio-weight"), 16)?;
    Ok(Resources {
        cpu_shares: m.int("cpu-shares"),
        memory: m.bytes("memory"),
        nano_cpus: m.nano_cpus("cpus"),
        cgroup_parent: m.string("cgroup-parent"),
        blkio_weight: u16::try_from(weight).unwrap_or(u16::MAX),
        blkio_weight_device: each(m.list("blkio-weight-device"), weight_device)?,
        blkio_device_read_bps: each(m.list("device-read-bps"), throttle_bps)?,
        blkio_device_write_bps: each(m.list("device-write-bps"), throttle_bps)?,
        blkio_device_read_iops: each(m.list("device-read-iops"), throttle_iops)?,
        blkio_device_write_iops: each(m.list("device-write-iops"), throttle_iops)?,
        cpu_period: m.int("cpu-period"),
        cpu_quota: m.int("cpu-quota"),
        cpu_realtime_period: m.int("cpu-rt-period"),
        cpu_realtime_runtime: m.int("cpu-rt-runtime"),
        cpuset_cpus: m.string("cpuset-cpus"),
        cpuset_mems: m.string("cpuset-mems"),
        kernel_memory: m.bytes("kernel-memory"),
        memory_reservation: m.bytes("memory-reservation"),
        memory_swap: m.bytes("memory-swap"),
        pids_limit: m.given_int("pids-limit"),
        ..Resources::default()
    })
}

fn all_resources(m: &Matches) -> Result<Resources, String> {
    let mut r = resources(m)?;
    let swappiness = m.int("memory-swappiness");
    if swappiness != -1 && !(0..=100).contains(&swappiness) {
        return Err(format!("invalid value: {swappiness}. Valid memory swappiness range is 0-100"));
    }
    r.memory_swappiness = Some(swappiness);
    r.oom_kill_disable = Some(m.flag("oom-kill-disable"));
    r.pids_limit = Some(m.int("pids-limit"));
    for text in m.list("device") {
        if is_cdi(&text) {
            let request = DeviceRequest {
                driver: "cdi".to_owned(),
                device_ids: vec![text],
                ..DeviceRequest::default()
            };
            r.device_requests.push(request);
        } else {
            r.devices.push(device(&text)?);
        }
    }
    for text in m.list("gpus") {
        r.device_requests.push(gpus(&text)?);
    }
    r.device_cgroup_rules = m
        .list("device-cgroup-rule")
        .iter()
        .map(|rule| device_cgroup_rule(rule))
        .collect::<Result<_, _>>()?;
    // The last one of a name counts.
    let mut ulimits = Map::new();
    for text in m.list("ulimit") {
        let limit = ulimit(&text)?;
        ulimits.insert(limit.name.clone(), limit);
    }
    r.ulimits = ulimits.into_values().collect();
    r.cpu_count = m.int("cpu-count");
    r.cpu_percent = m.int("cpu-percent");
    r.io_maximum_iops = values::uint(m.text("io-maxiops"), 64)?;
    r.io_maximum_bandwidth = u64::try_from(m.bytes("io-maxbandwidth")).unwrap_or(0);
    Ok(r)
}

fn health(m: &Matches) -> Result<Option<HealthConfig>, String> {
    let names =
        ["health-interval", "health-timeout", "health-start-period", "health-start-interval"];
    let given = m.changed("health-cmd")
        || m.changed("health-retries")
        || names.iter().any(|n| m.changed(n));
    if m.flag("no-healthcheck") {
        if given {
            return Err("--no-healthcheck conflicts with --health-* options".into());
        }
        return Ok(Some(HealthConfig { test: vec!["NONE".to_owned()], ..Default::default() }));
    }
    if !given {
        return Ok(None);
    }
    for name in names {
        if m.duration(name) < 0 {
            return Err(format!("--{name} cannot be negative"));
        }
    }
    if m.int("health-retries") < 0 {
        return Err("--health-retries cannot be negative".into());
    }
    let test = match m.text("health-cmd") {
        "" => vec![],
        command => vec!["CMD-SHELL".to_owned(), command.to_owned()],
    };
    Ok(Some(HealthConfig {
        test,
        interval: m.duration("health-interval"),
        timeout: m.duration("health-timeout"),
        start_period: m.duration("health-start-period"),
        start_interval: m.duration("health-start-interval"),
        retries: m.int("health-retries"),
    }))
}

/// Reads profile files, and turns `systempaths=unconfined` into empty path lists.
fn security(m: &Matches, host: &mut HostConfig) -> Result<(), String> {
    for opt in m.list("security-opt") {
        let (key, value) = match opt.split_once('=').or_else(|| opt.split_once(':')) {
            Some(pair) => pair,
            None if opt == "no-new-privileges" || opt == "writable-cgroups" => (opt.as_str(), ""),
            None => return Err(format!("invalid --security-opt: {opt:?}")),
        };
        match (key, value) {
            ("systempaths", "unconfined") => {
                host.masked_paths = Some(Vec::new());
                host.readonly_paths = Some(Vec::new());
                continue;
            }
            ("seccomp", "unconfined" | "builtin") => host.security_opt.push(opt),
            ("seccomp", path) => {
                let fail = |why: String| format!("opening seccomp profile ({path}) failed: {why}");
                let size = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
                if size > MAX_PROFILE_BYTES {
                    return Err(fail(format!("larger than {MAX_PROFILE_BYTES} bytes")));
                }
                let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
                let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| {
                    format!("compacting json for seccomp profile ({path}) failed: {e}")
                })?;
                host.security_opt.push(format!("seccomp={json}"));
            }
            _ => host.security_opt.push(opt),
        }
    }
    Ok(())
}

fn mode_flag(m: &Matches, flag: &str, what: &str, ok: fn(&str) -> bool) -> Result<String, String> {
    let value = m.string(flag);
    if ok(&value) { Ok(value) } else { Err(format!("--{flag}: invalid {what} mode")) }
}

fn of_container(mode: &str) -> bool {
    mode.strip_prefix("container:").is_some_and(|name| !name.is_empty())
}

fn volumes(
    m: &Matches,
    input: &CreateInput<'_>,
    config: &mut Config,
    host: &mut HostConfig,
) -> Result<(), String> {
    for text in m.list("volume") {
        match volume_bind(&text, input.cwd)? {
            VolumeSpec::Bind(bind) => host.binds.push(bind),
            VolumeSpec::Anonymous(path) => {
                config.volumes.insert(path, Empty {});
            }
        }
    }
    for text in m.list("tmpfs") {
        let (path, options) = text.split_once(':').unwrap_or((&text, ""));
        host.tmpfs.insert(path.to_owned(), options.to_owned());
    }
    host.mounts = m.list("mount").iter().map(|text| mount(text)).collect::<Result<_, _>>()?;
    host.volume_driver = m.string("volume-driver");
    host.volumes_from = m.list("volumes-from");
    Ok(())
}

fn logging(m: &Matches) -> Result<LogConfig, String> {
    let driver = m.string("log-driver");
    let config = m.map("log-opt");
    if driver == "none" && !config.is_empty() {
        return Err(format!("invalid logging opts for driver {driver}"));
    }
    Ok(LogConfig { r#type: driver, config })
}

fn config(m: &Matches, input: &CreateInput<'_>) -> Result<Config, String> {
    let attach: Vec<String> = m.list("attach").iter().map(|a| a.to_ascii_lowercase()).collect();
    if let Some(bad) = attach.iter().find(|a| !matches!(a.as_str(), "stdin" | "stdout" | "stderr"))
    {
        return Err(format!(
            "invalid argument {bad:?} for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
        ));
    }
    let has = |name: &str| attach.iter().any(|a| a == name);
    let interactive = m.flag("interactive");
    let mut env = input.proxies.clone();
    env.extend(env_list(&m.list("env-file"), &m.list("env"))?);
    let entrypoint = m.given("entrypoint").map(|word| StrSlice(vec![word.to_owned()]));
    let mut words = m.args.iter().skip(1).cloned().peekable();
    let cmd = words.peek().is_some().then(|| StrSlice(words.collect()));
    Ok(Config {
        hostname: m.string("hostname"),
        domainname: m.string("domainname"),
        user: m.string("user"),
        attach_stdin: interactive || has("stdin"),
        attach_stdout: attach.is_empty() || has("stdout"),
        attach_stderr: attach.is_empty() || has("stderr"),
        tty: m.flag("tty"),
        open_stdin: interactive,
        stdin_once: interactive,
        env,
        cmd,
        image: m.args.first().cloned().unwrap_or_default(),
        entrypoint,
        healthcheck: health(m)?,
        working_dir: m.string("workdir"),
        labels: label_map(&m.list("label-file"), &m.list("label"))?,
        stop_signal: m.string("stop-signal"),
        stop_timeout: m.given_int("stop-timeout"),
        ..Config::default()
    })
}

fn refuse_unsupported(m: &Matches) -> Result<(), String> {
    if m.flag("use-api-socket") {
        return Err("--use-api-socket is not supported".into());
    }
    Ok(())
}

/// Capabilities as docker sends them: upper case, with their prefix, each once, in order.
fn capabilities(names: &[String]) -> Vec<String> {
    let known = names.iter().map(|name| {
        let name = name.trim().to_uppercase();
        match name.starts_with("CAP_") || name == "ALL" {
            true => name,
            false => format!("CAP_{name}"),
        }
    });
    known.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Builds the create body. `m.args` is the image and the command.
pub(crate) fn create_body(
    m: &Matches,
    input: &CreateInput<'_>,
) -> Result<ContainerCreateBody, String> {
    refuse_unsupported(m)?;
    let mut config = config(m, input)?;
    let restart_policy = restart_policy(m.text("restart"))?;
    let auto_remove = m.flag("rm");
    if auto_remove && m.changed("restart") && !matches!(restart_policy.name.as_str(), "" | "no") {
        return Err("conflicting options: cannot specify both --restart and --rm".into());
    }
    let (network_mode, endpoints_config) = endpoints(m)?;
    let mut host = HostConfig {
        container_id_file: m.string("cidfile"),
        log_config: logging(m)?,
        network_mode,
        restart_policy,
        auto_remove,
        console_size: input.console_size,
        annotations: m.map("annotation"),
        cap_add: capabilities(&m.list("cap-add")),
        cap_drop: capabilities(&m.list("cap-drop")),
        cgroupns_mode: mode_flag(m, "cgroupns", "CGROUP", |v| {
            matches!(v, "" | "host" | "private")
        })?,
        dns: m
            .list("dns")
            .iter()
            .map(|ip| {
                values::ip(ip.trim())
                    .map(|_| ip.trim().to_owned())
                    .map_err(|_| format!("IP address is not correctly formatted: {ip}"))
            })
            .collect::<Result<_, _>>()?,
        dns_options: [m.list("dns-option"), m.list("dns-opt")].concat(),
        dns_search: m.list("dns-search"),
        extra_hosts: m.list("add-host").iter().map(|h| extra_host(h)).collect::<Result<_, _>>()?,
        group_add: m.list("group-add"),
        ipc_mode: m.string("ipc"),
        links: m.list("link"),
        oom_score_adj: m.int("oom-score-adj"),
        pid_mode: mode_flag(m, "pid", "PID", |v| matches!(v, "" | "host") || of_container(v))?,
        privileged: m.flag("privileged"),
        publish_all_ports: m.flag("publish-all"),
        readonly_rootfs: m.flag("read-only"),
        storage_opt: m.map("storage-opt"),
        uts_mode: mode_flag(m, "uts", "UTS", |v| matches!(v, "" | "host"))?,
        userns_mode: mode_flag(m, "userns", "USER", |v| matches!(v, "" | "host"))?,
        shm_size: m.bytes("shm-size"),
        sysctls: m.map("sysctl"),
        runtime: m.string("runtime"),
        isolation: m.string("isolation"),
        init: m.changed("init").then(|| m.flag("init")),
        resources: all_resources(m)?,
        ..HostConfig::default()
    };
    volumes(m, input, &mut config, &mut host)?;
    security(m, &mut host)?;
    for text in m.list("publish") {
        publish(&text, &mut config.exposed_ports, &mut host.port_bindings)?;
    }
    for text in m.list("expose") {
        expose(&text, &mut config.exposed_ports)?;
    }
    Ok(ContainerCreateBody {
        config,
        host_config: Some(host),
        networking_config: Some(NetworkingConfig { endpoints_config }),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flags::{container, parse};

    fn body(line: &str) -> Result<ContainerCreateBody, String> {
        let args = line.split_whitespace().map(str::to_owned);
        static SETS: crate::flags::FlagSets =
            &[container::CONTAINER_CREATE, container::CONTAINER_RUN];
        let m = parse(SETS, args, true)?;
        let input = CreateInput { cwd: Path::new("/w"), proxies: vec![], console_size: [0, 0] };
        create_body(&m, &input)
    }

    #[test]
    fn a_full_line() {
        let b = body(
            "-itd --rm --name x -e A=1 -p 80:8080 -v v:/d -v /anon --tmpfs /t:size=1m -m 1g --cpus 1.5 \
             --network n1 --ip 10.0.0.2 --entrypoint sh --init --security-opt systempaths=unconfined \
             --ulimit nofile=1:2 --label a=b --read-only=false img -c -it",
        )
        .unwrap();
        assert_eq!(b.config.cmd.unwrap().0, ["-c", "-it"]);
        assert_eq!(b.config.image, "img");
        assert!(b.config.tty && b.config.open_stdin && b.config.stdin_once);
        assert_eq!(b.config.entrypoint.unwrap().0, ["sh"]);
        assert!(b.config.volumes.contains_key("/anon"));
        let h = b.host_config.unwrap();
        assert_eq!(h.binds, ["v:/d"]);
        assert_eq!(h.network_mode, "n1");
        assert!(h.auto_remove && !h.readonly_rootfs);
        assert_eq!(h.init, Some(true));
        assert_eq!(h.masked_paths, Some(vec![]));
        assert_eq!((h.resources.memory, h.resources.nano_cpus), (1 << 30, 1_500_000_000));
        let e = &b.networking_config.unwrap().endpoints_config["n1"];
        assert_eq!(e.as_ref().unwrap().ipam_config.as_ref().unwrap().ipv4_address, "10.0.0.2");
    }

    #[test]
    fn conflicts_and_errors() {
        for (line, want) in [
            (
                "--rm --restart=always x",
                "conflicting options: cannot specify both --restart and --rm",
            ),
            ("--pid what x", "--pid: invalid PID mode"),
            (
                "--no-healthcheck --health-retries 2 x",
                "--no-healthcheck conflicts with --health-* options",
            ),
            ("--foo x", "unknown flag: --foo"),
            ("-xyz a", "unknown shorthand flag: 'x' in -xyz"),
            ("--name", "flag needs an argument: --name"),
            ("-e", "flag needs an argument: 'e' in -e"),
            ("-m x a", "invalid argument \"x\" for \"-m, --memory\" flag: invalid size: 'x'"),
            (
                "--rm=maybe a",
                "invalid argument \"maybe\" for \"--rm\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            ("--network a --network a x", "network \"a\" is specified multiple times"),
            (
                "--network a --network host x",
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
            ),
            ("--security-opt what x", "invalid --security-opt: \"what\""),
            (
                "--memory-swappiness 101 x",
                "invalid value: 101. Valid memory swappiness range is 0-100",
            ),
        ] {
            assert_eq!(body(line).unwrap_err(), want, "{line}");
        }
    }

    #[test]
    fn capabilities_have_one_form() {
        let given = ["net_admin", " cap_mknod", "ALL", "NET_ADMIN"].map(str::to_owned);
        assert_eq!(capabilities(&given), ["ALL", "CAP_MKNOD", "CAP_NET_ADMIN"]);
    }
}
