//! dockerd's flags: the table of all of them, and the command line's words to values.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

/// How a flag's text, or its key's value in daemon.json, is read.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Bool,
    Int,
    Text,
    /// Given several times, each adds one; in the file an array of strings.
    List,
    /// `key=value`, several times; in the file an object of strings.
    Map,
    /// A size in bytes, with a unit or without; in the file a number or such a text.
    Size,
    /// Adds the flag's text to what is the key's value in the file.
    Custom(fn(&mut Json, &str) -> Result<(), String>),
}

/// A value from either source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
    Json(Json),
}

/// What the engine does about a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It takes effect.
    Built,
    /// Only these values are what the engine does; others are refused by name.
    Only(&'static [&'static str]),
    /// Not built: only the default is accepted.
    Unbuilt,
    /// Accepted and noted: why nothing changes.
    NoEffect(&'static str),
}

/// One flag of dockerd.
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    /// Its key in daemon.json; empty if it has none.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    /// As text; of lists and maps always empty.
    pub(crate) default: &'static str,
    pub(crate) support: Support,
    /// Empty: not shown on the help page.
    pub(crate) help: &'static str,
}

const fn flag(
    name: &'static str,
    key: &'static str,
    kind: Kind,
    default: &'static str,
    support: Support,
    help: &'static str,
) -> Flag {
    Flag { name, short: None, key, kind, default, support, help }
}

const fn short(letter: char, flag: Flag) -> Flag {
    Flag { short: Some(letter), ..flag }
}

use Kind::{Bool, Custom, Int, List, Map, Size, Text};
use Support::{Built, NoEffect, Only, Unbuilt};

/// All flags of dockerd 28 and 29 and a few of our own, by name. Defaults that depend on the name
/// we are called by are empty here.
#[rustfmt::skip]
pub(crate) static FLAGS: &[Flag] = &[
    flag("add-runtime", "runtimes", Custom(add_runtime), "", Built, "Register an additional OCI compatible runtime (NAME=PATH)"),
    flag("allow-direct-routing", "allow-direct-routing", Bool, "false", Unbuilt, "Let other hosts reach published ports at containers' own addresses"),
    flag("authorization-plugin", "authorization-plugins", List, "", Unbuilt, "Authorization plugins to ask"),
    flag("bip", "bip", Text, "", Built, "IPv4 address and prefix of the default bridge"),
    flag("bip6", "bip6", Text, "", Unbuilt, "IPv6 address and prefix of the default bridge"),
    short('b', flag("bridge", "bridge", Text, "", Built, "Name of the default bridge, or \"none\"")),
    flag("bridge-accept-fwmark", "bridge-accept-fwmark", Text, "", Unbuilt, "Accept packets with this firewall mark on bridges"),
    flag("cdi-spec-dir", "cdi-spec-dirs", List, "", Unbuilt, "Directories of CDI specifications"),
    flag("cgroup-parent", "cgroup-parent", Text, "", Built, "Parent cgroup of all containers"),
    flag("config-file", "", Text, "", Built, "Configuration file of the daemon"),
    flag("containerd", "containerd", Text, "", Built, "Address of the store: the daemon's own"),
    flag("containerd-namespace", "containerd-namespace", Text, "moby", Built, "Namespace of the store"),
    flag("containerd-plugins-namespace", "containerd-plugin-namespace", Text, "plugins.moby", Unbuilt, "Namespace of plugins in the store"),
    flag("cpu-rt-period", "cpu-rt-period", Int, "0", Unbuilt, "Real-time period of the parent cgroup, in microseconds"),
    flag("cpu-rt-runtime", "cpu-rt-runtime", Int, "0", Unbuilt, "Real-time runtime of the parent cgroup, in microseconds"),
    flag("cri-containerd", "cri-containerd", Bool, "false", Unbuilt, "Serve CRI on the store's socket"),
    flag("data-root", "data-root", Text, "", Built, "Directory of persistent state"),
    short('D', flag("debug", "debug", Bool, "false", Built, "Enable debug mode")),
    flag("default-address-pool", "default-address-pools", Custom(add_address_pool), "", Built, "Address pools for new networks (base=CIDR,size=BITS)"),
    flag("default-cgroupns-mode", "default-cgroupns-mode", Text, "", Built, "Cgroup namespace of containers (\"host\" | \"private\")"),
    flag("default-gateway", "default-gateway", Text, "", Unbuilt, "Default gateway (IPv4) of the default bridge network"),
    flag("default-gateway-v6", "default-gateway-v6", Text, "", Unbuilt, "Default gateway (IPv6) of the default bridge network"),
    flag("default-ipc-mode", "default-ipc-mode", Text, "private", Built, "IPC namespace of containers (\"shareable\" | \"private\")"),
    flag("default-network-opt", "default-network-opts", Custom(add_network_option), "", Unbuilt, "Default options of new networks (DRIVER=KEY=VALUE)"),
    flag("default-runtime", "default-runtime", Text, "runc", Built, "OCI runtime of containers"),
    flag("default-shm-size", "default-shm-size", Size, "67108864", Built, "Size of containers' /dev/shm"),
    flag("default-stop-timeout", "default-stop-timeout", Int, "10", Built, "Seconds from a container's stop signal to its kill"),
    flag("default-ulimit", "default-ulimits", Custom(add_ulimit), "", Built, "Resource limits of containers (NAME=SOFT[:HARD])"),
    flag("dns", "dns", List, "", Built, "DNS servers"),
    flag("dns-opt", "dns-opts", List, "", Built, "DNS options"),
    flag("dns-search", "dns-search", List, "", Built, "DNS search domains"),
    flag("exec-opt", "exec-opts", List, "", Built, "Options of the runtime (native.cgroupdriver=cgroupfs)"),
    flag("exec-root", "exec-root", Text, "", Built, "Directory of state that dies with the host"),
    flag("experimental", "experimental", Bool, "false", Built, "Say that experimental features are on"),
    flag("feature", "features", Custom(add_feature), "", Built, "Enable a feature"),
    flag("firewall-backend", "firewall-backend", Text, "", Only(&["", "nftables"]), "Packet filter to use (\"nftables\")"),
    flag("fixed-cidr", "fixed-cidr", Text, "", Unbuilt, "Range of the default bridge's IPv4 subnet for containers"),
    flag("fixed-cidr-v6", "fixed-cidr-v6", Text, "", Unbuilt, "IPv6 subnet of the default bridge"),
    short('G', flag("group", "group", Text, "docker", Built, "Group of the unix socket")),
    flag("help", "", Bool, "false", Built, "Print usage"),
    short('H', flag("host", "hosts", List, "", Built, "Where to listen (unix://, tcp://, fd://)")),
    flag("host-gateway-ip", "host-gateway-ips", List, "", Unbuilt, "Addresses that host-gateway stands for"),
    flag("http-proxy", "http-proxy", Text, "", Built, "Proxy of the daemon for http"),
    flag("https-proxy", "https-proxy", Text, "", Built, "Proxy of the daemon for https"),
    flag("icc", "icc", Bool, "true", Built, "Let containers on the default bridge reach each other"),
    flag("init", "init", Bool, "false", Built, "Run an init as first process of containers"),
    flag("init-path", "init-path", Text, "", Built, "Path of that init"),
    flag("insecure-registry", "insecure-registries", List, "", Built, "Registries without TLS, or with certificates that are not checked"),
    flag("ip", "ip", Text, "0.0.0.0", Built, "Host address of published ports that name none"),
    flag("ip-forward", "ip-forward", Bool, "true", Built, "Enable IP forwarding of the host"),
    flag("ip-forward-no-drop", "ip-forward-no-drop", Bool, "false", NoEffect("the policy of other tables is never changed"), "Do not drop foreign forwarded packets"),
    flag("ip-masq", "ip-masq", Bool, "true", Built, "Masquerade what containers on the default bridge send"),
    flag("ip6tables", "ip6tables", Bool, "true", Unbuilt, "Make packet filter rules for IPv6"),
    flag("iptables", "iptables", Bool, "true", Built, "Make packet filter rules"),
    flag("ipv6", "ipv6", Bool, "false", Unbuilt, "IPv6 on the default bridge"),
    flag("label", "labels", List, "", Built, "Labels of the daemon (KEY=VALUE)"),
    flag("live-restore", "live-restore", Bool, "false", NoEffect("containers always outlive the daemon"), "Keep containers running while no daemon runs (always so)"),
    flag("log-driver", "log-driver", Text, "json-file", Only(&["json-file", "none"]), "Log driver of containers"),
    flag("log-format", "log-format", Text, "text", Built, "Format of the daemon's log (\"text\"|\"json\")"),
    short('l', flag("log-level", "log-level", Text, "info", Built, "Level of the daemon's log (\"debug\"|\"info\"|\"warn\"|\"error\"|\"fatal\")")),
    flag("log-opt", "log-opts", Map, "", Built, "Options of the log driver"),
    flag("max-concurrent-downloads", "max-concurrent-downloads", Int, "3", Built, "Layers downloaded at once"),
    flag("max-concurrent-uploads", "max-concurrent-uploads", Int, "5", Built, "Layers uploaded at once"),
    flag("max-download-attempts", "max-download-attempts", Int, "5", Built, "Attempts for each download"),
    flag("metrics-addr", "metrics-addr", Text, "", Unbuilt, "Address that serves metrics"),
    flag("min-api-version", "min-api-version", Text, "", Unbuilt, ""),
    flag("mtu", "mtu", Int, "1500", Built, "MTU of the default bridge"),
    flag("network-control-plane-mtu", "network-control-plane-mtu", Int, "1500", Unbuilt, ""),
    flag("network-diagnostic-port", "network-diagnostic-port", Int, "0", Unbuilt, ""),
    flag("no-new-privileges", "no-new-privileges", Bool, "false", Built, "Set no-new-privileges on containers"),
    flag("no-proxy", "no-proxy", Text, "", Built, "Hosts that are reached without the proxy"),
    flag("node-generic-resource", "node-generic-resources", List, "", Unbuilt, ""),
    flag("nri-opts", "nri-opts", Custom(add_text), "", Unbuilt, "Options of the node resource interface"),
    short('p', flag("pidfile", "pidfile", Text, "", Built, "File for the daemon's process id")),
    flag("raw-logs", "raw-logs", Bool, "false", NoEffect("the daemon's log has full timestamps and no colours"), "Full timestamps and no colours (always so)"),
    flag("registry-mirror", "registry-mirrors", List, "", Built, "Mirrors of Docker's registry"),
    short('r', flag("restart", "", Bool, "true", Unbuilt, "")),
    flag("rootless", "rootless", Bool, "false", Unbuilt, "Run without root privileges"),
    flag("seccomp-profile", "seccomp-profile", Text, "builtin", Only(&["", "builtin"]), "Seccomp profile of containers (\"builtin\")"),
    flag("selinux-enabled", "selinux-enabled", Bool, "false", Unbuilt, "Use SELinux"),
    flag("shutdown-timeout", "shutdown-timeout", Int, "15", Built, "Seconds for containers to stop when the host goes down"),
    short('s', flag("storage-driver", "storage-driver", Text, "", Only(&["", "overlayfs", "overlay2", "erofs", "vfs", "native"]), "Form of layers (\"erofs\": as they are, \"overlayfs\": extracted, \"vfs\": copied)")),
    flag("storage-opt", "storage-opts", List, "", Unbuilt, "Options of the snapshotter"),
    flag("swarm-default-advertise-addr", "swarm-default-advertise-addr", Text, "", Unbuilt, ""),
    flag("tls", "tls", Bool, "false", Built, "Use TLS on tcp; implied by --tlsverify"),
    flag("tlscacert", "tlscacert", Text, "", Built, "Trust only clients' certificates by this authority"),
    flag("tlscert", "tlscert", Text, "", Built, "The daemon's certificate"),
    flag("tlskey", "tlskey", Text, "", Built, "The key of that certificate"),
    flag("tlsverify", "tlsverify", Bool, "false", Built, "Use TLS on tcp, and check clients' certificates"),
    flag("userland-proxy", "userland-proxy", Bool, "true", NoEffect("published ports need no proxy process"), "Use a proxy process for loopback traffic (never needed)"),
    flag("userland-proxy-path", "userland-proxy-path", Text, "", NoEffect("published ports need no proxy process"), ""),
    flag("userns-remap", "userns-remap", Text, "", Unbuilt, "User whose subordinate ids containers get"),
    flag("validate", "", Bool, "false", Built, "Check the configuration and exit"),
    short('v', flag("version", "", Bool, "false", Built, "Print version information and quit")),
    // Our own: a client starts a daemon on demand; it ends after so many seconds without work.
    flag("on-demand", "", Bool, "false", Built, ""),
    flag("idle-timeout", "idle-timeout", Int, "300", Built, ""),
    flag("stop-containers", "", Bool, "false", Built, "Stop all containers, as at the host's shutdown, and end"),
    // In the file alone.
    flag("", "builder", Custom(add_text), "", Unbuilt, ""),
    flag("", "default-init", Text, "", Unbuilt, ""),
    flag("", "host-gateway-ip", Text, "", Unbuilt, ""),
    flag("", "resolv-conf", Text, "", Unbuilt, ""),
    flag("", "swarm-raft-heartbeat-tick", Int, "0", Unbuilt, ""),
    flag("", "swarm-raft-election-tick", Int, "0", Unbuilt, ""),
    flag("", "allow-nondistributable-artifacts", List, "", NoEffect("dockerd ignores it too"), ""),
    flag("", "deprecated-key-path", Text, "", NoEffect("dockerd ignores it too"), ""),
];

/// What the command line says: values by the flag's name.
pub(crate) type Given = BTreeMap<&'static str, Value>;

impl Flag {
    /// The value has no other effect than none at all.
    pub(crate) fn is_default(&self, value: &Value) -> bool {
        match value {
            Value::Bool(on) => on.to_string() == self.default,
            Value::Int(n) => n.to_string() == self.default,
            Value::Text(text) => text == self.default || text.is_empty(),
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            Value::Json(json) => {
                json.is_null()
                    || json.as_object().is_some_and(serde_json::Map::is_empty)
                    || json.as_array().is_some_and(Vec::is_empty)
                    || json.as_str().is_some_and(str::is_empty)
            }
        }
    }

    /// How the flag is named in messages, `-D, --debug`.
    fn label(&self) -> String {
        self.short.map_or(format!("--{}", self.name), |c| format!("-{c}, --{}", self.name))
    }

    /// Adds one occurrence on the command line.
    fn add(&self, given: &mut Given, text: &str) -> Result<(), String> {
        let refuse =
            |why: String| format!("invalid argument {text:?} for {:?} flag: {why}", self.label());
        let old = given.remove(self.name);
        let value = match self.kind {
            Bool => Value::Bool(parse_bool(text).map_err(refuse)?),
            Int => Value::Int(parse_int(text).map_err(refuse)?),
            Size => Value::Int(parse_size(text).map_err(refuse)?),
            Text => Value::Text(text.into()),
            List => {
                let mut list = match old {
                    Some(Value::List(list)) => list,
                    _ => Vec::new(),
                };
                list.push(text.into());
                Value::List(list)
            }
            Map => {
                let mut map = match old {
                    Some(Value::Map(map)) => map,
                    _ => BTreeMap::new(),
                };
                let (key, value) = text.split_once('=').unwrap_or((text, ""));
                map.insert(key.into(), value.into());
                Value::Map(map)
            }
            Custom(add) => {
                let mut json = match old {
                    Some(Value::Json(json)) => json,
                    _ => Json::Null,
                };
                add(&mut json, text).map_err(refuse)?;
                Value::Json(json)
            }
        };
        given.insert(self.name, value);
        Ok(())
    }
}

/// Reads the command line as pflag does: `--name value`, `--name=value`, `-n value`, `-nvalue`,
/// `-n=value`, letters of switches together.
///
/// # Errors
/// pflag's words.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Given, String> {
    let mut given = Given::new();
    let mut words = args.into_iter();
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--").filter(|long| !long.is_empty()) {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let flag = FLAGS.iter().find(|f| f.name == name && !name.is_empty());
            let flag = flag.ok_or_else(|| format!("unknown flag: --{name}"))?;
            let value = match (value, flag.kind) {
                (Some(value), _) => value,
                (None, Bool) => "true".into(),
                (None, _) => {
                    words.next().ok_or_else(|| format!("flag needs an argument: --{name}"))?
                }
            };
            flag.add(&mut given, &value)?;
        } else if word.len() > 1 && word.starts_with('-') && word != "--" {
            parse_letters(&word, &mut words, &mut given)?;
        } else {
            let extra = if word == "--" { words.next() } else { Some(word) };
            match extra {
                None => break,
                Some(_) => return Err("accepts no arguments".into()),
            }
        }
    }
    Ok(given)
}

fn parse_letters(
    word: &str,
    words: &mut impl Iterator<Item = String>,
    given: &mut Given,
) -> Result<(), String> {
    let mut rest = word.trim_start_matches('-');
    while let Some(letter) = rest.chars().next() {
        let after = rest.get(letter.len_utf8()..).unwrap_or_default();
        let flag = FLAGS.iter().find(|f| f.short == Some(letter));
        let flag = flag.ok_or_else(|| format!("unknown shorthand flag: {letter:?} in {word}"))?;
        if let Some(value) = after.strip_prefix('=') {
            return flag.add(given, value);
        }
        if matches!(flag.kind, Bool) {
            flag.add(given, "true")?;
            rest = after;
            continue;
        }
        if !after.is_empty() {
            return flag.add(given, after);
        }
        let value =
            words.next().ok_or_else(|| format!("flag needs an argument: {letter:?} in {word}"))?;
        return flag.add(given, &value);
    }
    Ok(())
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

fn parse_int(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
}

/// A size as docker writes it, in binary units: `64m`, `64MiB`, `1.5g`, `1024`.
pub(crate) fn parse_size(text: &str) -> Result<i64, String> {
    let refused = || format!("invalid size: '{text}'");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if !unit.contains('i') => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(refused()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let factor = 1_i64 << shift;
    let bytes =
        whole.parse::<i64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(refused)?;
    // Nine digits are more than any unit up to a gigabyte can show.
    let digits = fraction.get(..fraction.len().min(9)).unwrap_or_default();
    if digits.is_empty() {
        return Ok(bytes);
    }
    let part: i128 = digits.parse::<u32>().map_err(|_| refused())?.into();
    let scale = 10_i128.pow(u32::try_from(digits.len()).unwrap_or(9));
    let part = i64::try_from(part * i128::from(factor) / scale).map_err(|_| refused())?;
    bytes.checked_add(part).ok_or_else(refused)
}

/// An object in place of nothing.
fn object(json: &mut Json) -> &mut serde_json::Map<String, Json> {
    if !json.is_object() {
        *json = json!({});
    }
    json.as_object_mut().expect("made an object above")
}

fn array(json: &mut Json) -> &mut Vec<Json> {
    if !json.is_array() {
        *json = json!([]);
    }
    json.as_array_mut().expect("made an array above")
}

fn add_text(json: &mut Json, text: &str) -> Result<(), String> {
    *json = Json::String(text.into());
    Ok(())
}

fn add_runtime(json: &mut Json, text: &str) -> Result<(), String> {
    let (name, path) = text
        .split_once('=')
        .filter(|(name, path)| !name.trim().is_empty() && !path.trim().is_empty())
        .ok_or_else(|| format!("invalid runtime argument: {text}"))?;
    let name = name.trim().to_ascii_lowercase();
    if name == "runc" {
        return Err("runtime name 'runc' is reserved".into());
    }
    if object(json).contains_key(&name) {
        return Err(format!("runtime '{name}' was already defined"));
    }
    object(json).insert(name, json!({ "path": path.trim() }));
    Ok(())
}

fn add_feature(json: &mut Json, text: &str) -> Result<(), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, "true"));
    object(json).insert(name.into(), Json::Bool(parse_bool(value)?));
    Ok(())
}

fn add_network_option(json: &mut Json, text: &str) -> Result<(), String> {
    let wrong = || format!("{text} is not in the form DRIVER=KEY=VALUE");
    let (driver, option) = text.split_once('=').ok_or_else(wrong)?;
    let (key, value) = option.split_once('=').ok_or_else(wrong)?;
    object(object(json).entry(driver).or_insert(Json::Null)).insert(key.into(), value.into());
    Ok(())
}

fn add_address_pool(json: &mut Json, text: &str) -> Result<(), String> {
    let mut pool = serde_json::Map::new();
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("base", base)) => pool.insert("base".into(), base.into()),
            Some(("size", size)) => {
                let bits: u8 = size
                    .parse()
                    .map_err(|_| format!("invalid size value: {size} (must be integer)"))?;
                pool.insert("size".into(), bits.into())
            }
            Some((key, _)) => {
                return Err(format!("unexpected key '{key}' in '{field}'"));
            }
            None => return Err(format!("invalid field '{field}' must be a key=value pair")),
        };
    }
    array(json).push(Json::Object(pool));
    Ok(())
}

fn add_ulimit(json: &mut Json, text: &str) -> Result<(), String> {
    let wrong = || format!("invalid ulimit argument: {text}");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    let limit = json!({ "Name": name, "Soft": number(soft)?, "Hard": number(hard)? });
    object(json).insert(name.into(), limit);
    Ok(())
}

/// The help page. `place` names what a default depends on: (flag, default).
pub(crate) fn help(program: &str, defaults: &[(&str, &str)]) -> String {
    let mut page = format!(
        "\nUsage:  {program} [OPTIONS]\n\nThe engine: containers, images, networks and volumes, by Docker's API.\n\nOptions:\n"
    );
    for flag in FLAGS.iter().filter(|flag| !flag.help.is_empty()) {
        let letter = flag.short.map_or("    ".to_owned(), |c| format!("-{c}, "));
        let kind = match flag.kind {
            Bool => "",
            Int => " int",
            Text => " string",
            Size => " bytes",
            List | Custom(_) => " list",
            Map => " map",
        };
        let place = defaults.iter().find(|(name, _)| *name == flag.name).map(|(_, value)| *value);
        let default = match (place.unwrap_or(flag.default), flag.kind) {
            ("" | "false" | "0", _) => String::new(),
            ("67108864", Size) => " (default 64MiB)".into(),
            (value, Text) => format!(" (default {value:?})"),
            (value, _) => format!(" (default {value})"),
        };
        let unbuilt = match flag.support {
            Unbuilt => " (not built yet)",
            _ => "",
        };
        let left = format!("  {letter}--{}{kind}", flag.name);
        page.push_str(&format!("{left:<40} {}{default}{unbuilt}\n", flag.help));
    }
    page
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Given, String> {
        parse(words.iter().map(|&w| w.to_owned()))
    }

    #[test]
    fn words_in_all_forms() {
        let given = parse_words(&[
            "-H",
            "unix:///a",
            "--host=tcp://b:1",
            "-Hfd://",
            "-Dlwarn",
            "--mtu",
            "1400",
            "--icc=false",
            "-p=/x.pid",
            "--log-opt",
            "max-size=1m",
            "--log-opt",
            "tag",
        ])
        .unwrap();
        let hosts = ["unix:///a", "tcp://b:1", "fd://"].map(String::from).to_vec();
        assert_eq!(given["host"], Value::List(hosts));
        assert_eq!(given["debug"], Value::Bool(true));
        assert_eq!(given["log-level"], Value::Text("warn".into()));
        assert_eq!(given["mtu"], Value::Int(1400));
        assert_eq!(given["icc"], Value::Bool(false));
        assert_eq!(given["pidfile"], Value::Text("/x.pid".into()));
        let options = [("max-size", "1m"), ("tag", "")].map(|(k, v)| (k.into(), v.into()));
        assert_eq!(given["log-opt"], Value::Map(options.into()));
    }

    #[test]
    fn refusals_in_pflags_words() {
        let cases: &[(&[&str], &str)] = &[
            (&["--foo"], "unknown flag: --foo"),
            (&["-Dx"], "unknown shorthand flag: 'x' in -Dx"),
            (&["--mtu"], "flag needs an argument: --mtu"),
            (&["-H"], "flag needs an argument: 'H' in -H"),
            (
                &["--mtu", "x"],
                "invalid argument \"x\" for \"--mtu\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                &["--debug=x"],
                "invalid argument \"x\" for \"-D, --debug\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            (&["foo"], "accepts no arguments"),
            (&["--", "foo"], "accepts no arguments"),
        ];
        for (words, wanted) in cases {
            assert_eq!(parse_words(words).unwrap_err(), *wanted);
        }
    }

    #[test]
    fn structured_flags_take_the_files_shape() {
        let given = parse_words(&[
            "--add-runtime",
            "crun=/usr/bin/crun",
            "--default-ulimit",
            "nofile=1024:2048",
            "--default-address-pool",
            "base=10.0.0.0/8,size=24",
            "--feature",
            "a",
        ])
        .unwrap();
        let json = |name: &str| match &given[name] {
            Value::Json(json) => json.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(json("add-runtime"), json!({ "crun": { "path": "/usr/bin/crun" } }));
        let limit = json!({ "nofile": { "Name": "nofile", "Soft": 1024, "Hard": 2048 } });
        assert_eq!(json("default-ulimit"), limit);
        assert_eq!(json("default-address-pool"), json!([{ "base": "10.0.0.0/8", "size": 24 }]));
        assert_eq!(json("feature"), json!({ "a": true }));
    }

    #[test]
    fn sizes() {
        let good = [("64m", 64 << 20), ("64MiB", 64 << 20), ("1.5g", 3 << 29), ("7", 7), ("9b", 9)];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1x", "1i", "-1", "99999999999999999999", "9999999p"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_keys_and_letters_are_unique() {
        let unique = |mut all: Vec<String>| {
            let n = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), n);
        };
        let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        unique(FLAGS.iter().filter_map(|f| some(f.name)).collect());
        unique(FLAGS.iter().filter_map(|f| some(f.key)).collect());
        unique(FLAGS.iter().filter_map(|f| f.short.map(String::from)).collect());
    }
}
