//! `hosts.toml`: the servers that answer for a registry, as containerd's `docs/hosts.md` (2.2) has it.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use toml::{Table, Value};

use crate::{
    config::{HostPort, ProxyServer, proxy_server},
    error::Error,
    transport::Origin,
};

/// Bytes of one file; real ones have a few hundred.
const FILE_MAX: u64 = 256 << 10;
/// Servers that one file may name; each may cost a connection attempt.
const HOSTS_MAX: usize = 32;
/// The directory for registries that have none of their own.
const DEFAULT_NAME: &str = "_default";
pub(crate) const FILE_NAME: &str = "hosts.toml";
/// Headers that say where a message goes and where it ends (RFC 9112 section 6, RFC 9110 section 7.2).
const FRAMING: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Why a `hosts.toml` is no good.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("{}", .0.to_string().trim_end())]
    Toml(#[from] toml::de::Error),
    #[error("larger than {FILE_MAX} bytes")]
    TooLarge,
    #[error("more than {HOSTS_MAX} hosts")]
    TooMany,
    #[error("{key}: {problem}")]
    Key { key: String, problem: &'static str },
}

/// What a server may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    /// Tags to digests.
    pub(crate) resolve: bool,
    pub(crate) push: bool,
    pub(crate) referrers: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self { pull: true, resolve: true, push: true, referrers: true };
    pub(crate) const MIRROR: Self = Self { push: false, ..Self::ALL };
}

/// How one server is connected to, where it has settings of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// Files with further authorities.
    pub(crate) ca: Vec<PathBuf>,
    /// Our certificates, each with the file of its key.
    pub(crate) client: Vec<(PathBuf, PathBuf)>,
    pub(crate) skip_verify: Option<bool>,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) proxy: Option<ProxyServer>,
}

impl Settings {
    fn concerns_tls(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }
}

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// `None`: the registry itself, wherever that is.
    pub(crate) address: Option<Address>,
    pub(crate) may: Capabilities,
    pub(crate) headers: HeaderMap,
    pub(crate) settings: Arc<Settings>,
}

/// `SCHEME://AUTHORITY/ROOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) https: bool,
    /// Settings for TLS at an address without it: HTTPS is tried first, as containerd does.
    pub(crate) https_first: bool,
    pub(crate) authority: String,
    /// In front of `/NAME/manifests/…`: mostly `/v2`.
    pub(crate) root: String,
}

/// The servers for one registry, in the order in which they are asked.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    pub(crate) path: PathBuf,
    pub(crate) mirrors: Vec<Host>,
    pub(crate) server: Host,
    /// Keys that mean nothing here, as `host."https://a".key`. As with containerd they are no error.
    pub(crate) unknown: Vec<String>,
}

/// The file for a registry: the first of its own in any of the directories, else the first for all
/// registries. A directory of a registry's own without the file hides its neighbour for all. Reads files.
pub(crate) fn find(dirs: &[PathBuf], registry: &str) -> Result<Option<Hosts>, Error> {
    let mut fallbacks = Vec::new();
    for dir in dirs {
        let own = directory_names(registry).into_iter().map(|name| dir.join(name));
        match own.into_iter().find(|own| own.is_dir()) {
            Some(own) => {
                if let Some(hosts) = read(&own)? {
                    return Ok(Some(hosts));
                }
            }
            None => fallbacks.push(dir.join(DEFAULT_NAME)),
        }
    }
    for dir in fallbacks {
        if let Some(hosts) = read(&dir)? {
            return Ok(Some(hosts));
        }
    }
    Ok(None)
}

/// A registry's directories in the order in which containerd looks for them: `host_port_`, `host:port`.
/// Empty for what is no host's name.
pub(crate) fn directory_names(registry: &str) -> Vec<String> {
    let Some(at) = HostPort::parse(registry) else { return Vec::new() };
    if at.host.chars().all(|c| c == '.') {
        return Vec::new();
    }
    let mut names = Vec::new();
    if let (Some(_), Some((host, port))) = (at.port, registry.rsplit_once(':')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names
}

fn read(dir: &Path) -> Result<Option<Hosts>, Error> {
    let path = dir.join(FILE_NAME);
    let failed = |source| Error::File { path: path.clone(), source };
    let invalid = |source| Error::Hosts { path: path.clone(), source: Box::new(source) };
    let file = match std::fs::File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_MAX {
        return Err(invalid(HostsError::TooLarge));
    }
    // As with containerd, an empty file is none.
    if text.trim().is_empty() {
        return Ok(None);
    }
    parse(&text, &path).map(Some).map_err(invalid)
}

/// `path`: where the file lies; names of files in it are relative to its directory.
fn parse(text: &str, path: &Path) -> Result<Hosts, HostsError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut unknown = Vec::new();
    let mut own = Table::new();
    let mut server = None;
    let mut mirrors = Vec::new();
    for (key, value) in toml::from_str::<Table>(text)? {
        match (key.as_str(), value) {
            ("server", Value::String(text)) => server = Some(text).filter(|text| !text.is_empty()),
            ("server", _) => return Err(wrong("server", "not a text")),
            ("host", Value::Table(hosts)) => {
                if hosts.len() > HOSTS_MAX {
                    return Err(HostsError::TooMany);
                }
                for (address, value) in hosts {
                    let at = format!("host.{address:?}");
                    let Value::Table(table) = value else { return Err(wrong(&at, "not a table")) };
                    let place = Place { dir, at: &format!("{at}.") };
                    mirrors.push(host(Some(&address), table, place, &mut unknown)?);
                }
            }
            ("host", _) => return Err(wrong("host", "not a table of hosts")),
            (_, value) => drop(own.insert(key, value)),
        }
    }
    let server = host(server.as_deref(), own, Place { dir, at: "" }, &mut unknown)?;
    Ok(Hosts { path: path.to_owned(), mirrors, server, unknown })
}

fn wrong(key: &str, problem: &'static str) -> HostsError {
    HostsError::Key { key: key.to_owned(), problem }
}

/// The file's directory, and what stands in front of a table's keys.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: &'a Path,
    at: &'a str,
}

fn host(
    address: Option<&str>,
    table: Table,
    Place { dir, at }: Place<'_>,
    unknown: &mut Vec<String>,
) -> Result<Host, HostsError> {
    let mut may = Capabilities::ALL;
    let mut headers = HeaderMap::new();
    let mut settings = Settings::default();
    let mut override_path = false;
    for (key, value) in table {
        let name = format!("{at}{key}");
        let file = |text: &str| dir.join(text);
        match key.as_str() {
            "capabilities" => may = capabilities(&name, value)?,
            "ca" => settings.ca = texts(&name, value)?.iter().map(|text| file(text)).collect(),
            "client" => settings.client = pairs(&name, value, &file)?,
            "skip_verify" => settings.skip_verify = Some(boolean(&name, &value)?),
            "override_path" => override_path = boolean(&name, &value)?,
            "header" => headers = header_lines(&name, value)?,
            "dial_timeout" => {
                let text = value.as_str().unwrap_or_default();
                let wrong = || wrong(&name, "not a duration such as \"1s\" or \"500ms\"");
                settings.dial_timeout = Some(duration(text).ok_or_else(wrong)?);
            }
            "proxy" => {
                let text = value.as_str().unwrap_or_default();
                let wrong =
                    |_| wrong(&name, "not the address of an http proxy; others are not supported");
                settings.proxy = Some(proxy_server(text).map_err(wrong)?);
            }
            _ => unknown.push(name),
        }
    }
    let address = address.map(|text| {
        let name =
            if at.is_empty() { "server".to_owned() } else { at.trim_end_matches('.').into() };
        parse_address(text, override_path, settings.concerns_tls())
            .ok_or_else(|| wrong(&name, "not an address such as \"https://registry.example\""))
    });
    Ok(Host { address: address.transpose()?, may, headers, settings: Arc::new(settings) })
}

/// The address of a server, without a scheme taken for HTTPS.
fn parse_address(text: &str, override_path: bool, concerns_tls: bool) -> Option<Address> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = whole.parse().ok()?;
    let origin = Origin::of(&uri).ok()?;
    if uri.query().is_some() || whole.contains('#') {
        return None;
    }
    let mut root = uri.path().trim_end_matches('/').to_owned();
    if !override_path && !root.ends_with("/v2") {
        root.push_str("/v2");
    }
    let authority = uri.authority()?.as_str().to_owned();
    let https_first = !origin.https && concerns_tls && origin.port != 80;
    Some(Address { https: origin.https, https_first, authority, root })
}

fn capabilities(name: &str, value: Value) -> Result<Capabilities, HostsError> {
    let words = texts(name, value)?;
    if words.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut may = Capabilities { pull: false, resolve: false, push: false, referrers: false };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pull" => may.pull = true,
            "resolve" => may.resolve = true,
            "push" => may.push = true,
            "referrers" => may.referrers = true,
            _ => return Err(wrong(name, "use \"pull\", \"resolve\", \"push\" and \"referrers\"")),
        }
    }
    // Of before there was a word for it.
    may.referrers |= may.resolve;
    Ok(may)
}

fn boolean(name: &str, value: &Value) -> Result<bool, HostsError> {
    value.as_bool().ok_or_else(|| wrong(name, "neither true nor false"))
}

/// One text or several.
fn texts(name: &str, value: Value) -> Result<Vec<String>, HostsError> {
    let wrong = || wrong(name, "neither a text nor an array of them");
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(items) => items
            .into_iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}

/// Files that hold certificate and key, or pairs of files.
fn pairs(
    name: &str,
    value: Value,
    file: &impl Fn(&str) -> PathBuf,
) -> Result<Vec<(PathBuf, PathBuf)>, HostsError> {
    let wrong = || wrong(name, "neither files nor pairs of certificate and key");
    let one = |value: &Value| match value {
        Value::String(both) => Ok((file(both), file(both))),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(certificate), Value::String(key)] => {
                let key = if key.is_empty() { certificate } else { key };
                Ok((file(certificate), file(key)))
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    };
    match &value {
        Value::Array(items) => items.iter().map(one).collect(),
        single => Ok(vec![one(single)?]),
    }
}

fn header_lines(name: &str, value: Value) -> Result<HeaderMap, HostsError> {
    let Value::Table(table) = value else { return Err(wrong(name, "not a table")) };
    let mut headers = HeaderMap::new();
    for (key, value) in table {
        let at = format!("{name}.{key}");
        let header: HeaderName = key.parse().map_err(|_| wrong(&at, "not a header's name"))?;
        if FRAMING.contains(&header) {
            return Err(wrong(&at, "follows from the request and cannot be set; remove it"));
        }
        for text in texts(&at, value)? {
            let mut line =
                HeaderValue::from_str(&text).map_err(|_| wrong(&at, "not a header's value"))?;
            // They may be credentials.
            line.set_sensitive(true);
            headers.append(header.clone(), line);
        }
    }
    Ok(headers)
}

/// Go's durations, without signs: `1m30s`, `1.5s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return None;
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DOCUMENTED: &str = r#"
        server = "https://docker.io"
        capabilities = ["pull", "resolve", "push"]
        [host."https://mirror.registry"]
          capabilities = ["pull"]
          ca = "mirror.pem"
          skip_verify = false
          dial_timeout = "1m1.5s"
          proxy = "http://my-proxy:8080"
          [host."https://mirror.registry".header]
            x-custom-2 = ["value1", "value2"]
        [host."https://mirror-bak.registry/us/"]
          skip_verify = true
        [host."http://mirror.registry"]
          capabilities = ["PULL"]
        [host."a-plain.registry:5000"]
          ca = ["/etc/certs/1.pem", "2.pem"]
          client = [["c.cert", "c.key"], ["/both.pem", ""]]
        [host."https://non-compliant.registry/v2/upstream"]
          capabilities = ["pull"]
          override_path = true
        [host."http://192.168.31.250:5000"]
          client = ["1.pem", "2.pem"]
    "#;

    #[test]
    fn files_as_documented() {
        let Hosts { mirrors, server, unknown, .. } =
            parse(DOCUMENTED, Path::new("/d/hosts.toml")).unwrap();
        assert_eq!(unknown, [""; 0]);
        let shown: Vec<String> = mirrors
            .iter()
            .map(|host| {
                let at = host.address.as_ref().unwrap();
                format!("{}|{}|{}|{}", at.https, at.https_first, at.authority, at.root)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "true|false|mirror.registry|/v2",
                "true|false|mirror-bak.registry|/us/v2",
                "false|false|mirror.registry|/v2",
                "true|false|a-plain.registry:5000|/v2",
                "true|false|non-compliant.registry|/v2/upstream",
                "false|true|192.168.31.250:5000|/v2",
            ]
        );
        let first = &mirrors[0];
        assert!(first.may.pull && !first.may.resolve && !first.may.push);
        assert_eq!(mirrors[1].may, Capabilities::ALL);
        assert_eq!(first.settings.ca, [Path::new("/d/mirror.pem")]);
        assert_eq!(first.settings.skip_verify, Some(false));
        assert_eq!(first.settings.dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(first.settings.proxy.as_ref().unwrap().port, 8080);
        let values: Vec<_> = first.headers.get_all("X-Custom-2").iter().collect();
        assert_eq!(values, ["value1", "value2"]);
        let pair = |a: &str, b: &str| (PathBuf::from(a), PathBuf::from(b));
        let both = [pair("/d/c.cert", "/d/c.key"), pair("/both.pem", "/both.pem")];
        assert_eq!(mirrors[3].settings.client, both);
        assert_eq!(mirrors[3].settings.ca, [Path::new("/etc/certs/1.pem"), Path::new("/d/2.pem")]);
        assert_eq!(mirrors[5].settings.client.len(), 2);
        assert_eq!(server.address.unwrap().authority, "docker.io");
        let Hosts { mirrors: none, server, .. } =
            parse("skip_verify = true", Path::new("/d/hosts.toml")).unwrap();
        assert!(none.is_empty() && server.address.is_none());
        assert_eq!(server.settings.skip_verify, Some(true));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("server = 5", "server: not a text"),
            ("server = \"ftp://x\"", "server: not an address"),
            ("server = \"https://u:p@x\"", "server: not an address"),
            ("[host.\"https://x?y\"]", "host.\"https://x?y\": not an address"),
            ("host = 1", "host: not a table"),
            ("capabilities = [\"fly\"]", "capabilities: use \"pull\""),
            ("ca = 1", "ca: neither"),
            ("client = [[\"a\"]]", "client: neither"),
            ("skip_verify = \"yes\"", "skip_verify: neither true"),
            ("dial_timeout = \"5\"", "dial_timeout: not a duration"),
            ("dial_timeout = 5", "dial_timeout: not a duration"),
            ("proxy = \"socks5://x\"", "proxy: not the address"),
            ("[header]\n\"a b\" = \"c\"", "header.a b: not a header's name"),
            ("[header]\na = \"b\\nc\"", "header.a: not a header's value"),
            ("[header]\nHOST = \"c\"", "header.HOST: follows from the request"),
            ("[header]\nContent-length = \"1\"", "header.Content-length: follows"),
            (
                "[host.\"http://a\".header]\ntransfer-encoding = \"chunked\"",
                "host.\"http://a\".header.transfer-encoding: follows",
            ),
            ("x = ", "TOML parse error"),
        ] {
            let error = parse(text, Path::new("/d/hosts.toml")).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let many: String = (0..=HOSTS_MAX).map(|n| format!("[host.\"http://h{n}\"]\n")).collect();
        let parsed = parse(&many, Path::new("/d/hosts.toml"));
        assert!(matches!(parsed, Err(HostsError::TooMany)));
    }

    #[test]
    fn unknown_keys_are_passed_over_and_named() {
        let text = "capabilites = [\"pull\"]\nskip_verify = true\n\
                    [host.\"http://a\"]\nserver = \"x\"\ncapabilities = [\"pull\"]\n";
        let hosts = parse(text, Path::new("/d/hosts.toml")).unwrap();
        assert_eq!(hosts.unknown, ["host.\"http://a\".server", "capabilites"]);
        assert_eq!(hosts.server.settings.skip_verify, Some(true));
        assert!(!hosts.mirrors[0].may.push);
    }

    #[test]
    fn directories_are_searched_in_order() {
        let ground = tempfile::tempdir().unwrap();
        let dirs = ["one", "two"].map(|name| ground.path().join(name));
        let put = |dir: &str, server: &str| {
            let dir = ground.path().join(dir);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(FILE_NAME), format!("server = {server:?}")).unwrap();
        };
        let found = |registry: &str| {
            let hosts = find(&dirs, registry).unwrap()?;
            Some(hosts.server.address.unwrap().authority)
        };
        assert_eq!(found("a:5"), None);
        put("two/_default", "default-two");
        assert_eq!(found("a:5").unwrap(), "default-two");
        put("one/_default", "default-one");
        assert_eq!(found("a:5").unwrap(), "default-one");
        put("two/a:5", "colon");
        assert_eq!(found("a:5").unwrap(), "colon");
        put("two/a_5_", "underscores");
        assert_eq!(found("a:5").unwrap(), "underscores");
        assert_eq!(found("a").unwrap(), "default-one");
        // Certificates alone: no file, and none for all either.
        std::fs::create_dir_all(ground.path().join("one/b")).unwrap();
        assert_eq!(found("b").unwrap(), "default-two");
        std::fs::create_dir_all(ground.path().join("two/b")).unwrap();
        assert_eq!(found("b"), None);
        assert!(directory_names("..").is_empty() && directory_names("a/../b").is_empty());
        assert_eq!(directory_names("[::1]:5"), ["[::1]_5_", "[::1]:5"]);
        assert_eq!(directory_names("[::1]"), ["[::1]"]);
        std::fs::write(ground.path().join("two/a_5_/hosts.toml"), "ca = 1").unwrap();
        let error = find(&dirs, "a:5").unwrap_err();
        assert!(error.to_string().ends_with("two/a_5_/hosts.toml"), "{error}");
    }
}
