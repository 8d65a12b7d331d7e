//! The runtime's own types of `config.json` (OCI runtime-spec 1.3, Linux).
//!
//! Reading is tolerant: unknown fields are ignored, a JSON `null` is the same as an absent
//! field (Go writes nil slices so), and everything that the specification calls optional is
//! optional. An array in an object's place is refused. Whether a value makes sense is decided where it is used, with the field's name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::objects::ObjectOnly;

/// The specification version that `features`, `spec` and `state` name.
pub const OCI_VERSION: &str = "1.3.0";

/// Largest `config.json` that is read: 32 MiB. Docker's default is about 12 KiB.
pub const CONFIG_LIMIT_BYTES: u64 = 32 << 20;

fn nullable<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn is_false(b: &bool) -> bool {
    !*b
}

macro_rules! spec_struct {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $f:ident : $t:ty),* $(,)? }) => {
        $(#[$m])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        // `remote`: the derived functions are the type's own; the traits' are below.
        #[serde(rename_all = "camelCase", default, remote = "Self")]
        pub struct $name { $($(#[$fm])* pub $f: $t),* }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                $name::deserialize(ObjectOnly(d))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                $name::serialize(self, s)
            }
        }
    };
}

spec_struct! {
/// The whole of `config.json`.
Spec {
    oci_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Root>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    hostname: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    domainname: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Hooks::is_empty", deserialize_with = "nullable")]
    hooks: Hooks,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linux: Option<Linux>,
}}

impl Spec {
    /// Whether it may be read as one of this version: within a major version the meaning stays the
    /// same (runtime-spec, config.md). A spec without a version passes, as in runc, which looks at
    /// none; crun refuses both.
    ///
    /// # Errors
    /// [`Error::Config`] for another major version, or what is none.
    pub(crate) fn check_version(&self) -> Result<()> {
        let major = OCI_VERSION.split('.').next();
        if self.oci_version.is_empty() || self.oci_version.split(['.', '-', '+']).next() == major {
            return Ok(());
        }
        let problem = format!("{:?} is not supported: this is {OCI_VERSION}", self.oci_version);
        Err(Error::config("ociVersion", problem))
    }

    /// Resources as a specification of this version means them: a pids limit of 0 is one since 1.3; in
    /// earlier ones it says nothing, and engines write it for that.
    pub(crate) fn settle(&self, resources: &mut Resources) {
        let mut numbers = self.oci_version.split(['.', '-', '+']).map(|n| n.parse::<u32>().ok());
        let minor = numbers.nth(1).flatten().unwrap_or(0);
        if minor < 3 && resources.pids.as_ref().is_some_and(|pids| pids.limit == Some(0)) {
            resources.pids = None;
        }
    }
}

spec_struct! {
/// `root`.
Root {
    path: PathBuf,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    readonly: bool,
}}

spec_struct! {
/// `process`: what is run, and as whom.
Process {
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    terminal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    console_size: Option<ConsoleSize>,
    #[serde(deserialize_with = "nullable")]
    user: User,
    #[serde(deserialize_with = "nullable")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    env: Vec<String>,
    cwd: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    rlimits: Vec<Rlimit>,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    no_new_privileges: bool,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    apparmor_profile: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_score_adj: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<Scheduler>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    selinux_label: String,
    #[serde(rename = "ioPriority", skip_serializing_if = "Option::is_none")]
    io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    exec_cpu_affinity: Option<CpuAffinity>,
}}

spec_struct! {
/// `process.consoleSize`, in character cells.
ConsoleSize { height: u16, width: u16 }}

spec_struct! {
/// `process.user`.
User {
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    umask: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    additional_gids: Vec<u32>,
}}

spec_struct! {
/// `process.capabilities`: names such as `CAP_CHOWN`.
Capabilities {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    bounding: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    effective: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    inheritable: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    permitted: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    ambient: Vec<String>,
}}

spec_struct! {
/// `process.rlimits[]`: `type` such as `RLIMIT_NOFILE`.
Rlimit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
    soft: u64,
}}

spec_struct! {
/// `process.scheduler`.
Scheduler {
    policy: String,
    #[serde(deserialize_with = "nullable")]
    nice: i32,
    #[serde(deserialize_with = "nullable")]
    priority: i32,
    #[serde(deserialize_with = "nullable")]
    flags: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    runtime: u64,
    #[serde(deserialize_with = "nullable")]
    deadline: u64,
    #[serde(deserialize_with = "nullable")]
    period: u64,
}}

spec_struct! {
/// `process.ioPriority`.
IoPriority { class: String, priority: i32 }}

spec_struct! {
/// `process.execCPUAffinity`.
CpuAffinity { initial: String, #[serde(rename = "final")] last: String }}

spec_struct! {
/// `mounts[]`.
Mount {
    destination: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    source: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    options: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    uid_mappings: Vec<IdMapping>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    gid_mappings: Vec<IdMapping>,
}}

spec_struct! {
/// `hooks`.
Hooks {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    prestart: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    create_runtime: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    create_container: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    start_container: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    poststart: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    poststop: Vec<Hook>,
}}

impl Hooks {
    /// No hook of any kind.
    pub fn is_empty(&self) -> bool {
        self == &Hooks::default()
    }
}

spec_struct! {
/// One hook; `timeout` is in seconds.
Hook {
    path: PathBuf,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}}

spec_struct! {
/// `linux`.
Linux {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    uid_mappings: Vec<IdMapping>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    gid_mappings: Vec<IdMapping>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    sysctl: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Resources>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    cgroups_path: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    namespaces: Vec<Namespace>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    devices: Vec<Device>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    net_devices: BTreeMap<String, NetDevice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp: Option<Seccomp>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    rootfs_propagation: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    masked_paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    readonly_paths: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    mount_label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    intel_rdt: Option<IntelRdt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_policy: Option<MemoryPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    personality: Option<Personality>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    time_offsets: BTreeMap<String, TimeOffset>,
}}

spec_struct! {
/// An id range: `size` ids from `containerID` on are `hostID` on outside.
IdMapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
    size: u32,
}}

spec_struct! {
/// `linux.namespaces[]`: a new one, or the one at `path`.
Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}}

spec_struct! {
/// `linux.devices[]`.
Device {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    major: i64,
    #[serde(deserialize_with = "nullable")]
    minor: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
}}

spec_struct! {
/// `linux.netDevices` value.
NetDevice {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    name: String,
}}

spec_struct! {
/// `linux.timeOffsets` value.
TimeOffset {
    #[serde(deserialize_with = "nullable")]
    secs: i64,
    #[serde(deserialize_with = "nullable")]
    nanosecs: u32,
}}

spec_struct! {
/// `linux.personality`.
Personality {
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    flags: Vec<String>,
}}

spec_struct! {
/// `linux.memoryPolicy`: `mode` such as `MPOL_BIND`, `nodes` such as `0-3,7`.
MemoryPolicy {
    mode: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    nodes: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    flags: Vec<String>,
}}

spec_struct! {
/// `linux.intelRdt`.
IntelRdt {
    #[serde(rename = "closID", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    clos_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    schemata: Vec<String>,
    #[serde(rename = "l3CacheSchema", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    l3_cache_schema: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    mem_bw_schema: String,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    enable_monitoring: bool,
}}

spec_struct! {
/// `linux.seccomp`.
Seccomp {
    default_action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    architectures: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    flags: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    listener_path: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    listener_metadata: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    syscalls: Vec<SeccompSyscall>,
}}

spec_struct! {
/// `linux.seccomp.syscalls[]`.
SeccompSyscall {
    #[serde(deserialize_with = "nullable")]
    names: Vec<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    args: Vec<SeccompArg>,
}}

spec_struct! {
/// `linux.seccomp.syscalls[].args[]`.
SeccompArg {
    index: u32,
    value: u64,
    #[serde(deserialize_with = "nullable")]
    value_two: u64,
    op: String,
}}

spec_struct! {
/// `linux.resources`, and the body of `update -r`.
Resources {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    devices: Vec<DeviceRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<Pids>,
    #[serde(rename = "blockIO", skip_serializing_if = "Option::is_none")]
    block_io: Option<BlockIo>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    hugepage_limits: Vec<HugepageLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    rdma: BTreeMap<String, Rdma>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    unified: BTreeMap<String, String>,
}}

spec_struct! {
/// A device cgroup rule; absent type, number or access mean all.
DeviceRule {
    allow: bool,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    major: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minor: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    access: String,
}}

spec_struct! {
/// `memory`, in bytes; -1 is "no limit".
Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reservation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<i64>,
    #[serde(rename = "kernelTCP", skip_serializing_if = "Option::is_none")]
    kernel_tcp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")]
    disable_oom_killer: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    use_hierarchy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check_before_update: Option<bool>,
}}

spec_struct! {
/// `cpu`; times in microseconds.
Cpu {
    #[serde(skip_serializing_if = "Option::is_none")]
    shares: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    realtime_runtime: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    realtime_period: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    cpus: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    mems: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<i64>,
}}

spec_struct! {
/// `pids`: 0 or less is "no limit".
Pids {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<i64>,
}}

spec_struct! {
/// `blockIO`.
BlockIo {
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf_weight: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    weight_device: Vec<WeightDevice>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice", skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice", skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    throttle_write_iops_device: Vec<ThrottleDevice>,
}}

spec_struct! {
/// `blockIO.weightDevice[]`.
WeightDevice {
    major: i64,
    minor: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf_weight: Option<u16>,
}}

spec_struct! {
/// `blockIO.throttle*[]`: bytes or operations per second.
ThrottleDevice { major: i64, minor: i64, rate: u64 }}

spec_struct! {
/// `hugepageLimits[]`: `pageSize` such as `2MB`, limit in bytes.
HugepageLimit { page_size: String, limit: u64 }}

spec_struct! {
/// `network`: v1 only.
Network {
    #[serde(rename = "classID", skip_serializing_if = "Option::is_none")]
    class_id: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    priorities: Vec<InterfacePriority>,
}}

spec_struct! {
/// `network.priorities[]`.
InterfacePriority { name: String, priority: u32 }}

spec_struct! {
/// `rdma` value.
Rdma {
    #[serde(skip_serializing_if = "Option::is_none")]
    hca_handles: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hca_objects: Option<u32>,
}}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn null_and_unknown_fields_are_absent_fields() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","future":{"x":1},"mounts":null,"hooks":null,
                "process":{"cwd":"/","args":null,"user":{"uid":1,"gid":2,"additionalGids":null}},
                "linux":{"resources":{"devices":null,"memory":{"limit":-1}}}}"#,
        )
        .unwrap();
        assert!(spec.mounts.is_empty() && spec.hooks.is_empty());
        assert_eq!(spec.process.unwrap().user.gid, 2);
        assert_eq!(spec.linux.unwrap().resources.unwrap().memory.unwrap().limit, Some(-1));
    }

    #[test]
    fn versions_of_this_major_version_are_read() {
        let check = |version: &str| {
            Spec { oci_version: version.to_owned(), ..Spec::default() }.check_version()
        };
        for version in ["", "1.0.0-rc1", "1.0.2", "1.0.2-dev", OCI_VERSION, "1.99.0"] {
            check(version).unwrap();
        }
        for version in ["9.9", "0.9.0", "2.0.0", "10.0.0", "abc", "v1.0.0"] {
            assert!(check(version).unwrap_err().to_string().contains("ociVersion"), "{version}");
        }
    }

    #[test]
    fn a_round_trip_keeps_the_wire_names() {
        let text = r#"{"ociVersion":"1.3.0","linux":{"resources":{"memory":{"disableOOMKiller":true},"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":5}]}}}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    }
}
