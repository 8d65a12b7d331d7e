//! The query of `POST /build`.

use std::collections::BTreeMap;

use crate::Ulimit;
use crate::query::query_bool;

/// Options of a build. Sizes are bytes, CPU times microseconds; 0 and empty mean unset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOptions {
    pub tags: Vec<String>,
    /// Path inside the context; `Dockerfile` when empty.
    pub dockerfile: String,
    /// A git URL, a tarball's URL, `client-session`, or empty for the body.
    pub remote: String,
    pub quiet: bool,
    pub no_cache: bool,
    pub cache_from: Vec<String>,
    /// Any value but a false one: always pull the base image.
    pub pull: bool,
    /// Remove intermediate containers after success.
    pub remove: bool,
    pub force_remove: bool,
    pub memory: i64,
    pub memory_swap: i64,
    pub cpu_shares: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cgroup_parent: String,
    /// `None` (JSON null): the argument is named, without a value.
    pub build_args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    pub shm_size: i64,
    pub ulimits: Vec<Ulimit>,
    pub network_mode: String,
    /// `host:ip`.
    pub extra_hosts: Vec<String>,
    pub security_opt: Vec<String>,
    pub squash: bool,
    pub target: String,
    pub platform: String,
    pub isolation: String,
    /// 1 classic, 2 BuildKit.
    pub version: String,
    pub session: String,
    pub build_id: String,
    /// JSON list of `{Type, Attrs}`; BuildKit only.
    pub outputs: String,
}

impl Default for BuildOptions {
    fn default() -> Self {
        BuildOptions {
            tags: Vec::new(),
            dockerfile: String::new(),
            remote: String::new(),
            quiet: false,
            no_cache: false,
            cache_from: Vec::new(),
            pull: false,
            remove: true,
            force_remove: false,
            memory: 0,
            memory_swap: 0,
            cpu_shares: 0,
            cpuset_cpus: String::new(),
            cpuset_mems: String::new(),
            cpu_period: 0,
            cpu_quota: 0,
            cgroup_parent: String::new(),
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            shm_size: 0,
            ulimits: Vec::new(),
            network_mode: String::new(),
            extra_hosts: Vec::new(),
            security_opt: Vec::new(),
            squash: false,
            target: String::new(),
            platform: String::new(),
            isolation: String::new(),
            version: "1".to_owned(),
            session: String::new(),
            build_id: String::new(),
            outputs: String::new(),
        }
    }
}

/// A query parameter of `POST /build` that cannot be read; HTTP 400.
#[derive(Debug, thiserror::Error)]
pub enum BuildQueryError {
    #[error("error reading build parameter {name}: {value:?} is not a number")]
    Number { name: &'static str, value: String },
    #[error("error reading build parameter {name}: not the JSON that it must be")]
    Json { name: &'static str, source: serde_json::Error },
}

fn number(name: &'static str, value: &str) -> Result<i64, BuildQueryError> {
    if value.is_empty() {
        return Ok(0);
    }
    value.parse().map_err(|_| BuildQueryError::Number { name, value: value.to_owned() })
}

fn json<T: serde::de::DeserializeOwned + Default>(
    name: &'static str,
    value: &str,
) -> Result<T, BuildQueryError> {
    if value.is_empty() {
        return Ok(T::default());
    }
    let value: Option<T> =
        serde_json::from_str(value).map_err(|source| BuildQueryError::Json { name, source })?;
    Ok(value.unwrap_or_default())
}

impl BuildOptions {
    /// Reads decoded query pairs; names that are not known are ignored.
    pub fn from_query<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<BuildOptions, BuildQueryError> {
        let mut o = BuildOptions { remove: true, ..BuildOptions::default() };
        for (name, v) in pairs {
            match name {
                "t" if !v.is_empty() => o.tags.push(v.to_owned()),
                "dockerfile" => o.dockerfile = v.to_owned(),
                "remote" => o.remote = v.to_owned(),
                "q" => o.quiet = query_bool(v),
                "nocache" => o.no_cache = query_bool(v),
                "pull" => o.pull = query_bool(v),
                "rm" => o.remove = v.is_empty() || query_bool(v),
                "forcerm" => o.force_remove = query_bool(v),
                "squash" => o.squash = query_bool(v),
                "extrahosts" => o.extra_hosts.push(v.to_owned()),
                "securityopt" => o.security_opt.push(v.to_owned()),
                "networkmode" => o.network_mode = v.to_owned(),
                "target" => o.target = v.to_owned(),
                "platform" => o.platform = v.to_owned(),
                "isolation" => o.isolation = v.to_owned(),
                "version" => o.version = v.to_owned(),
                "session" => o.session = v.to_owned(),
                "buildid" => o.build_id = v.to_owned(),
                "outputs" => o.outputs = v.to_owned(),
                _ => o.limit_from_query(name, v)?,
            }
        }
        Ok(o)
    }

    fn limit_from_query(&mut self, name: &str, v: &str) -> Result<(), BuildQueryError> {
        match name {
            "cachefrom" => self.cache_from = json("cachefrom", v)?,
            "buildargs" => self.build_args = json("buildargs", v)?,
            "labels" => self.labels = json("labels", v)?,
            "ulimits" => self.ulimits = json("ulimits", v)?,
            "memory" => self.memory = number("memory", v)?,
            "memswap" => self.memory_swap = number("memswap", v)?,
            "cpushares" => self.cpu_shares = number("cpushares", v)?,
            "cpuperiod" => self.cpu_period = number("cpuperiod", v)?,
            "cpuquota" => self.cpu_quota = number("cpuquota", v)?,
            "shmsize" => self.shm_size = number("shmsize", v)?,
            "cpusetcpus" => self.cpuset_cpus = v.to_owned(),
            "cpusetmems" => self.cpuset_mems = v.to_owned(),
            "cgroupparent" => self.cgroup_parent = v.to_owned(),
            _ => {}
        }
        Ok(())
    }

    /// The query, undecoded; unset values are left out, as docker's client does.
    pub fn to_query(&self) -> Vec<(&'static str, String)> {
        let mut q: Vec<(&'static str, String)> = Vec::new();
        q.extend(self.tags.iter().map(|t| ("t", t.clone())));
        let texts = [
            ("dockerfile", &self.dockerfile),
            ("remote", &self.remote),
            ("cpusetcpus", &self.cpuset_cpus),
            ("cpusetmems", &self.cpuset_mems),
            ("cgroupparent", &self.cgroup_parent),
            ("networkmode", &self.network_mode),
            ("target", &self.target),
            ("platform", &self.platform),
            ("isolation", &self.isolation),
            ("session", &self.session),
            ("buildid", &self.build_id),
            ("outputs", &self.outputs),
            ("version", &self.version),
        ];
        q.extend(texts.into_iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| (n, v.clone())));
        let flags = [
            ("q", self.quiet),
            ("nocache", self.no_cache),
            ("pull", self.pull),
            ("forcerm", self.force_remove),
            ("squash", self.squash),
        ];
        q.extend(flags.into_iter().filter(|(_, on)| *on).map(|(n, _)| (n, "1".to_owned())));
        q.push(("rm", if self.remove { "1" } else { "0" }.to_owned()));
        let numbers = [
            ("memory", self.memory),
            ("memswap", self.memory_swap),
            ("cpushares", self.cpu_shares),
            ("cpuperiod", self.cpu_period),
            ("cpuquota", self.cpu_quota),
            ("shmsize", self.shm_size),
        ];
        q.extend(numbers.into_iter().filter(|(_, v)| *v != 0).map(|(n, v)| (n, v.to_string())));
        q.extend(self.extra_hosts.iter().map(|h| ("extrahosts", h.clone())));
        q.extend(self.security_opt.iter().map(|o| ("securityopt", o.clone())));
        let to_json = |v: serde_json::Value| v.to_string();
        if !self.cache_from.is_empty() {
            q.push(("cachefrom", to_json(self.cache_from.clone().into())));
        }
        if !self.build_args.is_empty() {
            q.push(("buildargs", to_json(serde_json::json!(self.build_args))));
        }
        if !self.labels.is_empty() {
            q.push(("labels", to_json(serde_json::json!(self.labels))));
        }
        if !self.ulimits.is_empty() {
            q.push(("ulimits", to_json(serde_json::json!(self.ulimits))));
        }
        q
    }
}
