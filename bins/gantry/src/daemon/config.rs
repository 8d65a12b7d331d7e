//! Settings to what the daemon works with: everything is parsed here, once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;

use super::file::Settings;
use super::flags::Value;
use super::hosts::Host;
use super::log::{Format, Level};
use crate::{Persona, build_info};

/// Least size of a group file that is read.
const GROUP_LIMIT_BYTES: u64 = 16 << 20;
/// Longest wait that a configuration may ask for; beyond lies a mistake in the unit.
const SECONDS_MAX: i64 = 365 * 24 * 3600;
const SCRATCH: &str = "none";

/// Everything that the daemon is told.
pub(crate) struct Daemon {
    pub(crate) engine: engine::Config,
    pub(crate) namespace: String,
    /// What an image's layers become.
    pub(crate) layers: store::LayerForm,
    pub(crate) hosts: Vec<Host>,
    /// Also for `fd://`: whoever passes a socket has set its group.
    pub(crate) group: Group,
    pub(crate) tls: Option<Tls>,
    pub(crate) pidfile: PathBuf,
    pub(crate) log_level: Level,
    pub(crate) log_format: Format,
    pub(crate) notes: Vec<String>,
    /// Started by a client: the daemon ends after so long without work.
    pub(crate) idle_after: Option<Duration>,
    /// No daemon is wanted, but the end of all containers, as at the host's shutdown.
    pub(crate) stop_containers: bool,
}

/// The group that may use unix sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// Asked for, so that it has to exist.
    pub(crate) explicit: bool,
}

/// Where the daemon's certificate is, and whether clients need one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) verify: bool,
}

/// Paths and names that depend on the name we are called by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) data_root: &'static str,
    pub(crate) exec_root: &'static str,
    pub(crate) pidfile: &'static str,
    pub(crate) config_file: &'static str,
    pub(crate) bridge: &'static str,
    pub(crate) cgroup_parent: &'static str,
}

impl Places {
    /// Docker's socket, configuration and bridge under docker's name. Data and state are ours under
    /// either name: a real Docker's are never touched, and containers are the same ones.
    pub(crate) fn of(persona: Persona) -> Self {
        let ours = Self {
            data_root: "/var/lib/gantry",
            exec_root: "/run/gantry",
            pidfile: "/run/gantry/gantry.pid",
            config_file: "/etc/gantry/daemon.json",
            bridge: "gantry0",
            cgroup_parent: "/gantry",
        };
        match persona {
            Persona::Gantry => ours,
            Persona::Docker => Self {
                pidfile: "/var/run/docker.pid",
                config_file: "/etc/docker/daemon.json",
                bridge: "docker0",
                cgroup_parent: "/docker",
                ..ours
            },
        }
    }
}

/// # Errors
/// A value that is no good, in dockerd's words where it has some.
pub(crate) fn daemon(settings: &Settings, persona: Persona) -> Result<Daemon, String> {
    let places = Places::of(persona);
    let tls = tls(settings)?;
    let mut notes = settings.notes.clone();
    notes.extend(features(settings.get("features"))?);
    check_exec_options(settings.list("exec-opts"))?;
    let exec_root = path(settings, "exec-root", places.exec_root)?;
    check_store_address(settings.text("containerd"), &store_address(&exec_root))?;
    let debug = settings.bool("debug").unwrap_or(false);
    let level = settings.text("log-level").map(Level::parse).transpose()?;
    let engine = engine(settings, &places, &exec_root)?;
    check_registries(&engine)?;
    Ok(Daemon {
        engine,
        namespace: settings.text("containerd-namespace").unwrap_or("moby").into(),
        layers: match settings.text("storage-driver") {
            Some("erofs") => store::LayerForm::Index,
            Some("overlayfs" | "overlay2") => store::LayerForm::Directories,
            Some("vfs" | "native") => store::LayerForm::Copy,
            _ => store::LayerForm::Best,
        },
        hosts: hosts(settings, persona, tls.is_some())?,
        group: Group {
            name: settings.text("group").unwrap_or("docker").into(),
            explicit: settings.get("group").is_some(),
        },
        tls,
        pidfile: path(settings, "pidfile", places.pidfile)?,
        log_level: if debug { Level::Debug } else { level.unwrap_or(Level::Info) },
        log_format: Format::parse(settings.text("log-format").unwrap_or("text"))?,
        notes,
        idle_after: match settings.bool("on-demand") {
            Some(true) => Some(seconds(settings, "idle-timeout", 300)?),
            _ => None,
        },
        stop_containers: settings.bool("stop-containers").unwrap_or(false),
    })
}

fn path(settings: &Settings, key: &str, default: &str) -> Result<PathBuf, String> {
    let path = Path::new(settings.text(key).unwrap_or(default));
    if path.is_absolute() {
        return Ok(path.into());
    }
    std::path::absolute(path).map_err(|e| format!("--{key} {}: {e}", path.display()))
}

fn seconds(settings: &Settings, key: &str, default: i64) -> Result<Duration, String> {
    let n = settings.int(key).unwrap_or(default);
    let n = if (0..=SECONDS_MAX).contains(&n) { u64::try_from(n).ok() } else { None };
    n.map(Duration::from_secs).ok_or_else(|| format!("invalid {key}: not a number of seconds"))
}

fn engine(
    settings: &Settings,
    places: &Places,
    exec_root: &Path,
) -> Result<engine::Config, String> {
    let defaults = engine::Config::default();
    let on = |key: &str, default: bool| settings.bool(key).unwrap_or(default);
    let bridge = settings.text("bridge");
    Ok(engine::Config {
        data_root: path(settings, "data-root", places.data_root)?,
        exec_root: exec_root.into(),
        bridge: bridge.filter(|b| *b != SCRATCH).unwrap_or(places.bridge).into(),
        bridge_disabled: bridge == Some(SCRATCH),
        bridge_address: bridge_address(settings, bridge)?,
        icc: on("icc", true),
        masquerade: on("ip-masq", true),
        default_host_ip: settings.text("ip").map(|text| ip("ip", text)).transpose()?,
        firewall: on("iptables", true),
        ip_forward: on("ip-forward", true),
        mtu: mtu(settings)?,
        dns: checked(settings.list("dns"), |text| {
            text.parse::<IpAddr>()
                .map(drop)
                .map_err(|_| format!("IP address is not correctly formatted: {text}"))
        })?,
        dns_search: checked(settings.list("dns-search"), dns_search)?,
        dns_options: settings.list("dns-opts").to_vec(),
        address_pools: address_pools(settings.get("default-address-pools"))?,
        labels: labels(settings.list("labels"))?,
        debug: on("debug", false),
        experimental: on("experimental", defaults.experimental),
        log_driver: settings.text("log-driver").unwrap_or("json-file").into(),
        log_options: match settings.get("log-opts") {
            Some(Value::Map(map)) => map.clone(),
            _ => BTreeMap::new(),
        },
        cgroup_parent: settings.text("cgroup-parent").unwrap_or(places.cgroup_parent).into(),
        default_shm_bytes: match settings.int("default-shm-size") {
            None | Some(0) => defaults.default_shm_bytes,
            Some(n) if n > 0 => n,
            Some(n) => return Err(format!("invalid default-shm-size: {n}")),
        },
        default_stop_timeout: seconds(settings, "default-stop-timeout", 10)?,
        default_ulimits: ulimits(settings.get("default-ulimits"))?,
        init: on("init", false),
        init_path: settings.text("init-path").filter(|path| !path.is_empty()).map(Into::into),
        no_new_privileges: on("no-new-privileges", false),
        registry_mirrors: checked(settings.list("registry-mirrors"), mirror)?,
        insecure_registries: bare_hosts(settings.list("insecure-registries")),
        http_proxy: settings.text("http-proxy").unwrap_or_default().into(),
        https_proxy: settings.text("https-proxy").unwrap_or_default().into(),
        no_proxy: settings.text("no-proxy").unwrap_or_default().into(),
        max_download_attempts: attempts(settings)?,
        max_concurrent_downloads: count(settings, "max-concurrent-downloads", 3)?,
        max_concurrent_uploads: count(settings, "max-concurrent-uploads", 5)?,
        shutdown_timeout: seconds(settings, "shutdown-timeout", 15)?,
        default_cgroupns: one_of(settings, "default-cgroupns-mode", &["host", "private"])?,
        default_ipc: one_of(settings, "default-ipc-mode", &["private", "shareable"])?
            .unwrap_or(defaults.default_ipc),
        store_address: store_address(exec_root).display().to_string(),
        default_runtime: default_runtime(settings)?,
        runtimes: runtimes(settings.get("runtimes"))?,
        version: defaults.version,
        commit: build_info::COMMIT.into(),
        build_time: build_info::time(),
        compiler: build_info::COMPILER.into(),
        on_demand: on("on-demand", false),
    })
}

fn store_address(exec_root: &Path) -> PathBuf {
    exec_root.join("containerd/containerd.sock")
}

/// `--containerd`: the engine has its store within itself, and serves it for others.
fn check_store_address(given: Option<&str>, own: &Path) -> Result<(), String> {
    let Some(given) = given else { return Ok(()) };
    if Path::new(given.strip_prefix("unix://").unwrap_or(given)) == own {
        return Ok(());
    }
    Err(format!(
        "--containerd {given:?} is not supported by gantry yet: the daemon has its store within itself \
         and serves it at {}. Remove --containerd from the command line (from ExecStart= in the \
         unit: systemctl edit --full docker.service) and \"containerd\" from the configuration file",
        own.display()
    ))
}

fn checked(
    list: &[String],
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<Vec<String>, String> {
    list.iter().map(|text| check(text).map(|()| text.clone())).collect()
}

fn one_of(settings: &Settings, key: &str, good: &[&str]) -> Result<Option<String>, String> {
    match settings.text(key) {
        None => Ok(None),
        Some(text) if good.contains(&text) => Ok(Some(text.into())),
        Some(text) => Err(format!("invalid {key} ({text}): use {:?} or {:?}", good[0], good[1])),
    }
}

/// Zero is the default, as dockerd takes it.
fn count(settings: &Settings, key: &str, default: usize) -> Result<usize, String> {
    let words = key.replace('-', " ");
    match settings.int(key) {
        None | Some(0) => Ok(default),
        Some(n) => usize::try_from(n).map_err(|_| format!("invalid {words}: {n}")),
    }
}

fn mtu(settings: &Settings) -> Result<Option<u32>, String> {
    match settings.int("mtu") {
        None | Some(0) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| format!("invalid default MTU: {n}")),
    }
}

fn ip(key: &str, text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("invalid {key}: {text:?} is not an IP address"))
}

fn bridge_address(
    settings: &Settings,
    bridge: Option<&str>,
) -> Result<Option<(IpAddr, u8)>, String> {
    let Some(bip) = settings.text("bip") else { return Ok(None) };
    if bridge.is_some() {
        return Err(
            "You specified -b & --bip, mutually exclusive options. Please specify only one".into(),
        );
    }
    let parsed = bip
        .split_once('/')
        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)))
        .filter(|(address, prefix): &(IpAddr, u8)| address.is_ipv4() && *prefix <= 32);
    parsed.map(Some).ok_or_else(|| format!("invalid bip: invalid CIDR address: {bip}"))
}

fn dns_search(domain: &str) -> Result<(), String> {
    let wrong = || format!("{domain} is not a valid domain");
    if domain == "." {
        return Ok(());
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let trimmed = domain.strip_suffix('.').unwrap_or(domain);
    (trimmed.len() <= 255 && trimmed.split('.').all(label)).then_some(()).ok_or_else(wrong)
}

fn mirror(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or_else(|| {
        format!("invalid mirror: no scheme specified for {url:?}: must use either 'https://' or 'http://'")
    })?;
    if rest.contains(['?', '#', '@']) || rest.trim_end_matches('/').is_empty() {
        return Err(format!("invalid mirror: {url:?} is not a registry's address alone"));
    }
    Ok(())
}

/// A scheme before an insecure registry's name says nothing, and dockerd cuts it off.
fn bare_hosts(names: &[String]) -> Vec<String> {
    let bare = |name: &String| {
        let bare = name.strip_prefix("http://").or_else(|| name.strip_prefix("https://"));
        bare.unwrap_or(name).to_owned()
    };
    names.iter().map(bare).collect()
}

fn attempts(settings: &Settings) -> Result<u32, String> {
    let n = settings.int("max-download-attempts").unwrap_or(5);
    let n = u32::try_from(n).ok().filter(|n| *n > 0);
    n.ok_or_else(|| "invalid max-download-attempts: it must be greater than 0".into())
}

/// What a pull would stumble over is said at the start.
fn check_registries(engine: &engine::Config) -> Result<(), String> {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let config = registry::Config {
        mirrors: engine.registry_mirrors.clone(),
        insecure: engine.insecure_registries.clone(),
        proxy: registry::Proxy {
            http: given(&engine.http_proxy),
            https: given(&engine.https_proxy),
            no_proxy: engine.no_proxy.clone(),
        },
        ..registry::Config::default()
    };
    registry::Client::new(config).map(drop).map_err(|error| error.to_string())
}

/// Two values for one name are a mistake; the same twice is not.
fn labels(list: &[String]) -> Result<Vec<String>, String> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for label in list {
        let (key, value) =
            label.split_once('=').ok_or_else(|| format!("bad attribute format: {label}"))?;
        if let Some(old) = seen.insert(key, value)
            && old != value
        {
            return Err(format!("conflict labels for {key}={value} and {key}={old}"));
        }
    }
    Ok(seen.into_iter().map(|(key, value)| format!("{key}={value}")).collect())
}

fn check_exec_options(list: &[String]) -> Result<(), String> {
    for option in list {
        let (key, value) = option
            .split_once('=')
            .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim()))
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .ok_or_else(|| format!("invalid exec-opt ({option}): must be formatted 'opt=value'"))?;
        match (key.as_str(), value) {
            ("native.cgroupdriver", "cgroupfs") => {}
            ("native.cgroupdriver", "systemd") => {
                return Err(format!("--exec-opt {option} is not supported by gantry yet"));
            }
            ("native.cgroupdriver", _) => {
                return Err(format!("native.cgroupdriver option {value} not supported"));
            }
            _ => return Err(format!("invalid exec-opt ({option}): unknown option: '{key}'")),
        }
    }
    Ok(())
}

/// What a feature's value means for us; words for the log.
fn features(value: Option<&Value>) -> Result<Vec<String>, String> {
    let Some(Value::Json(json)) = value else { return Ok(Vec::new()) };
    let Json::Object(map) = json else {
        return match json {
            Json::Null => Ok(Vec::new()),
            _ => Err("features: not an object".into()),
        };
    };
    let mut notes = Vec::new();
    for (name, value) in map {
        let on = value.as_bool().ok_or_else(|| format!("features: {name} is not a boolean"))?;
        match (name.as_str(), on) {
            ("containerd-snapshotter", true) | ("buildkit", false) => {}
            ("containerd-snapshotter", false) => {
                return Err(
                    "the feature containerd-snapshotter=false is not supported by gantry yet"
                        .into(),
                );
            }
            ("buildkit", true) => notes.push(
                "the feature buildkit changes nothing: builds are the engine's own".to_owned(),
            ),
            (_, false) => {}
            (_, true) => {
                return Err(format!("the feature {name} is not supported by gantry yet"));
            }
        }
    }
    Ok(notes)
}

fn address_pools(value: Option<&Value>) -> Result<Vec<(String, u8)>, String> {
    let Some(Value::Json(json)) = value else { return Ok(Vec::new()) };
    let items = json.as_array().ok_or("default-address-pools: not an array")?;
    items
        .iter()
        .map(|item| {
            let wrong = || format!("invalid default address pool: {item}");
            let base = item.get("base").and_then(Json::as_str).ok_or_else(wrong)?;
            let size = item.get("size").and_then(Json::as_u64).ok_or_else(wrong)?;
            let (address, prefix) = base.split_once('/').ok_or_else(wrong)?;
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let size = u8::try_from(size).ok().filter(|size| *size <= bits && prefix <= *size);
            Ok((base.to_owned(), size.ok_or_else(wrong)?))
        })
        .collect()
}

fn ulimits(value: Option<&Value>) -> Result<Vec<(String, i64, i64)>, String> {
    let Some(Value::Json(Json::Object(map))) = value else {
        return match value {
            None | Some(Value::Json(Json::Null)) => Ok(Vec::new()),
            Some(_) => Err("default-ulimits: not an object".into()),
        };
    };
    map.iter()
        .map(|(key, limit)| {
            let wrong = || format!("invalid default-ulimits: {key}: {limit}");
            let name = limit.get("Name").and_then(Json::as_str).unwrap_or(key);
            if !types::ULIMITS.contains(&name) {
                return Err(format!("invalid ulimit type: {name}"));
            }
            let number = |key: &str| limit.get(key).map(|n| n.as_i64().ok_or_else(wrong));
            let soft = number("Soft").transpose()?.unwrap_or(0);
            let hard = number("Hard").transpose()?.unwrap_or(soft);
            if hard != -1 && (soft > hard || soft == -1) {
                return Err(format!(
                    "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
                ));
            }
            Ok((name.to_owned(), soft, hard))
        })
        .collect()
}

fn runtimes(value: Option<&Value>) -> Result<BTreeMap<String, engine::Runtime>, String> {
    let mut all = engine::Config::default().runtimes;
    let Some(Value::Json(Json::Object(map))) = value else {
        return match value {
            None | Some(Value::Json(Json::Null)) => Ok(all),
            Some(_) => Err("runtimes: not an object".into()),
        };
    };
    for (name, runtime) in map {
        if name == "runc" {
            return Err("runtime name 'runc' is reserved".into());
        }
        let wrong = |what: &str| format!("invalid runtime {name}: {what}");
        let fields = runtime.as_object().ok_or_else(|| wrong("not an object"))?;
        let mut parsed = engine::Runtime::default();
        for (key, value) in fields {
            match key.as_str() {
                "path" => {
                    parsed.path = value.as_str().ok_or_else(|| wrong("path is no text"))?.into();
                }
                "runtimeArgs" if value.as_array().is_some_and(Vec::is_empty) => {}
                // The field exists and is not built: the shim would not pass them on.
                "runtimeArgs" | "options" => {
                    return Err(wrong(&format!("{key} is not supported by gantry yet")));
                }
                "runtimeType" if value == "io.containerd.runc.v2" => {}
                "runtimeType" => {
                    return Err(wrong(&format!(
                        "runtimeType {value} is not supported by gantry yet"
                    )));
                }
                _ => return Err(wrong(&format!("unknown field {key}"))),
            }
        }
        if parsed.path.is_empty() {
            return Err(wrong("either a runtimeType or a path must be configured"));
        }
        all.insert(name.clone(), parsed);
    }
    Ok(all)
}

fn default_runtime(settings: &Settings) -> Result<String, String> {
    let name = settings.text("default-runtime").unwrap_or("runc");
    if runtimes(settings.get("runtimes"))?.contains_key(name) {
        return Ok(name.into());
    }
    Err(format!("specified default runtime '{name}' does not exist"))
}

fn hosts(settings: &Settings, persona: Persona, tls: bool) -> Result<Vec<Host>, String> {
    let list = settings.list("hosts");
    let default = [String::new()];
    let list = if list.is_empty() { &default } else { list };
    let mut hosts = Vec::new();
    for text in list {
        let host = Host::parse(text, persona.socket(), tls)?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// dockerd: naming `tlsverify` at all turns TLS on; TLS verifies unless told otherwise.
fn tls(settings: &Settings) -> Result<Option<Tls>, String> {
    let by_environment = std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|v| !v.is_empty());
    let verify = settings.bool("tlsverify").or(by_environment.then_some(true));
    if !(settings.bool("tls").unwrap_or(false) || verify.is_some()) {
        return Ok(None);
    }
    let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let dir = env("DOCKER_CERT_PATH").or_else(|| env("DOCKER_CONFIG")).map_or_else(
        || PathBuf::from(env("HOME").unwrap_or_else(|| "/root".into())).join(".docker"),
        PathBuf::from,
    );
    let file =
        |key: &str, name: &str| settings.text(key).map_or_else(|| dir.join(name), Into::into);
    Ok(Some(Tls {
        ca: file("tlscacert", "ca.pem"),
        cert: file("tlscert", "cert.pem"),
        key: file("tlskey", "key.pem"),
        verify: verify.unwrap_or(true),
    }))
}

/// The id of a group: a number, or a name in a file like /etc/group (group(5)).
///
/// # Errors
/// The file cannot be read.
pub(crate) fn find_group(file: &Path, name: &str) -> std::io::Result<Option<u32>> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(GROUP_LIMIT_BYTES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let by_name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    Ok(by_name.or_else(|| name.parse().ok()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{file, flags};
    use super::*;

    fn of(words: &[&str], json: &str) -> Result<Daemon, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(&path, json).unwrap();
        let given = flags::parse(words.iter().map(|&w| w.to_owned()))?;
        daemon(&file::settle(&given, &path, true)?, Persona::Gantry)
    }

    #[test]
    fn defaults_are_the_engines() {
        let d = of(&[], "{}").unwrap();
        let defaults = engine::Config::default();
        let store_address = "/run/gantry/containerd/containerd.sock".into();
        let cgroup_parent = "/gantry".into();
        let wanted = engine::Config {
            store_address,
            cgroup_parent,
            commit: build_info::COMMIT.into(),
            build_time: build_info::time(),
            compiler: build_info::COMPILER.into(),
            ..defaults
        };
        assert_eq!(format!("{:?}", d.engine), format!("{wanted:?}"));
        assert_eq!(d.hosts, [Host::Unix("/run/gantry/gantry.sock".into())]);
        assert_eq!(d.group, Group { name: "docker".into(), explicit: false });
        assert_eq!(d.pidfile, Path::new("/run/gantry/gantry.pid"));
        assert_eq!(d.tls, None);
        assert_eq!(d.idle_after, None);
    }

    #[test]
    fn dockers_name_has_dockers_places_and_our_data() {
        let d = daemon(&Settings::default(), Persona::Docker).unwrap();
        assert_eq!(d.hosts, [Host::Unix("/var/run/docker.sock".into())]);
        assert_eq!(d.engine.bridge, "docker0");
        assert_eq!(d.engine.cgroup_parent, "/docker");
        assert_eq!(d.engine.data_root, Path::new("/var/lib/gantry"));
        assert_eq!(d.pidfile, Path::new("/var/run/docker.pid"));
    }

    #[test]
    fn values_arrive() {
        let d = of(
            &["-D", "--data-root=/d", "--exec-root=/e", "--bip", "10.9.0.1/24", "-G", "0"],
            r#"{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 5, "Hard": 9}},
                "default-address-pools": [{"base": "10.0.0.0/8", "size": 24}],
                "labels": ["b=1", "a=2", "b=1"], "runtimes": {"crun": {"path": "/usr/bin/crun"}},
                "default-runtime": "crun", "shutdown-timeout": 3, "ip": "127.0.0.1",
                "log-opts": {"max-size": "10m"}, "features": {"buildkit": true}}"#,
        )
        .unwrap();
        let e = &d.engine;
        assert_eq!(e.default_ulimits, [("nofile".into(), 5, 9)]);
        assert_eq!(e.address_pools, [("10.0.0.0/8".into(), 24)]);
        assert_eq!(e.labels, ["a=2", "b=1"]);
        assert_eq!(e.runtimes["crun"].path, "/usr/bin/crun");
        assert_eq!(e.default_runtime, "crun");
        assert_eq!(e.shutdown_timeout, Duration::from_secs(3));
        assert_eq!(e.default_host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(e.log_options["max-size"], "10m");
        assert_eq!(e.bridge_address, Some(("10.9.0.1".parse().unwrap(), 24)));
        assert_eq!(e.store_address, "/e/containerd/containerd.sock");
        assert!(e.debug && d.log_level == Level::Debug);
        let d = of(
            &["--no-proxy=.x", "--insecure-registry=http://reg:5000", "--max-download-attempts=2"],
            r#"{"proxies": {"http-proxy": "http://p:1", "https-proxy": "q:2"}}"#,
        )
        .unwrap();
        let e = &d.engine;
        let proxies = [&e.http_proxy, &e.https_proxy, &e.no_proxy];
        assert_eq!(proxies, ["http://p:1", "q:2", ".x"]);
        assert_eq!((e.insecure_registries[0].as_str(), e.max_download_attempts), ("reg:5000", 2));
        let d = of(&["-D", "-G", "0"], r#"{"features": {"buildkit": true}}"#).unwrap();
        assert_eq!(d.group, Group { name: "0".into(), explicit: true });
        assert_eq!(d.notes.len(), 1);
        assert!(of(&["-b", "none"], "{}").unwrap().engine.bridge_disabled);
        let layers = |flags: &[&str], file: &str| of(flags, file).unwrap().layers;
        assert_eq!(layers(&[], "{}"), store::LayerForm::Best);
        assert_eq!(layers(&["-s", "erofs"], "{}"), store::LayerForm::Index);
        assert_eq!(layers(&["-s", "vfs"], "{}"), store::LayerForm::Copy);
        for name in ["overlayfs", "overlay2"] {
            let file = format!(r#"{{"storage-driver": "{name}"}}"#);
            assert_eq!(layers(&[], &file), store::LayerForm::Directories, "{name}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        let flags: &[(&[&str], &str)] = &[
            (&["--bip", "10.0.0.1"], "invalid CIDR address"),
            (&["--bip", "10.0.0.1/8", "-b", "x"], "mutually exclusive"),
            (&["--dns", "x"], "not correctly formatted"),
            (&["--dns-search", "a b"], "not a valid domain"),
            (&["--label", "x"], "bad attribute format: x"),
            (&["--label", "a=1", "--label", "a=2"], "conflict labels for a=2 and a=1"),
            (&["--log-level", "loud"], "invalid logging level: loud"),
            (&["--log-format", "xml"], "invalid log format: xml"),
            (&["--exec-opt", "native.cgroupdriver=systemd"], "not supported by gantry yet"),
            (&["--exec-opt", "x=y"], "unknown option: 'x'"),
            (&["--default-ulimit", "nofile=9:5"], "soft limit must be"),
            (&["--default-ulimit", "x=1"], "invalid ulimit type: x"),
            (&["--default-runtime", "x"], "does not exist"),
            (&["--default-ipc-mode", "host"], "default-ipc-mode"),
            (&["--registry-mirror", "x.example"], "no scheme"),
            (&["--mtu=-1"], "invalid default MTU: -1"),
            (&["--max-concurrent-downloads=-1"], "invalid max concurrent downloads: -1"),
            (&["--max-download-attempts=0"], "must be greater than 0"),
            (&["--insecure-registry", "10.0.0.0/33"], "invalid insecure registry \"10.0.0.0/33\""),
            (&["--https-proxy", "socks5://u:p@x"], "only http proxies are supported): \"x\""),
            (&["--feature", "cdi"], "not supported"),
            (&["-H", "foo://x"], "unsupported proto 'foo'"),
            (&["--containerd=/run/containerd/containerd.sock"], "Remove --containerd from"),
            (&["--exec-root=/e", "--containerd=/run/gantry/containerd/containerd.sock"], "Remove"),
        ];
        for (words, wanted) in flags {
            let error = of(words, "{}").err().unwrap_or_default();
            assert!(error.contains(wanted), "{words:?}: {error:?}");
        }
        let files = [
            (r#"{"runtimes": {"runc": {"path": "/x"}}}"#, "reserved"),
            (r#"{"runtimes": {"x": {"path": "/x", "runtimeArgs": ["-v"]}}}"#, "runtimeArgs"),
            (r#"{"runtimes": {"x": {}}}"#, "path must be configured"),
            (r#"{"default-address-pools": [{"base": "10.0.0.0/8", "size": 4}]}"#, "pool"),
            (r#"{"features": {"containerd-snapshotter": false}}"#, "not supported"),
        ];
        for (json, wanted) in files {
            let error = of(&[], json).err().unwrap_or_default();
            assert!(error.contains(wanted), "{json}: {error:?}");
        }
    }

    #[test]
    fn the_daemons_own_store_may_be_named() {
        for address in ["/e/containerd/containerd.sock", "unix:///e/containerd/containerd.sock"] {
            assert!(of(&["--exec-root=/e", "--containerd", address], "{}").is_ok(), "{address}");
        }
        assert!(of(&["--containerd="], "{}").is_ok());
    }

    #[test]
    fn tls_as_dockerd_takes_it() {
        let verify = |words: &[&str]| of(words, "{}").unwrap().tls.map(|tls| tls.verify);
        assert_eq!(verify(&[]), None);
        assert_eq!(verify(&["--tls"]), Some(true));
        assert_eq!(verify(&["--tlsverify"]), Some(true));
        assert_eq!(verify(&["--tlsverify=false"]), Some(false));
        assert_eq!(verify(&["--tls", "--tlsverify=false"]), Some(false));
        assert_eq!(verify(&["--tls=false"]), None);
        let tls = of(&["--tls", "--tlscacert=/a", "--tlskey=/k"], "{}").unwrap().tls.unwrap();
        assert_eq!((tls.ca.as_path(), tls.key.as_path()), (Path::new("/a"), Path::new("/k")));
    }

    #[test]
    fn groups_by_name_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("group");
        std::fs::write(&file, "root:x:0:\ndocker:x:998:a,b\n12:x:77:\n").unwrap();
        assert_eq!(find_group(&file, "docker").unwrap(), Some(998));
        assert_eq!(find_group(&file, "12").unwrap(), Some(77));
        assert_eq!(find_group(&file, "13").unwrap(), Some(13));
        assert_eq!(find_group(&file, "dock").unwrap(), None);
    }
}
