//! Global flags, and those of networks, volumes, contexts and the system.
//!
//! Names, letters, kinds and defaults are docker's; `tests/flags.rs` holds them against its list.

use super::{Flag, Kind};

pub(crate) static GLOBAL: &[Flag] = &[
    Flag::new("config", Kind::Str, "Directory of the client's configuration files"),
    Flag::new(
        "context",
        Kind::Str,
        "Context to reach the daemon with (overrides DOCKER_HOST and \"context use\")",
    )
    .short('c'),
    Flag::new("debug", Kind::Bool, "Debug mode").short('D'),
    Flag::new("host", Kind::Str, "Daemon socket to connect to").short('H'),
    Flag::new(
        "log-level",
        Kind::Str,
        "Level of messages (\"debug\", \"info\", \"warn\", \"error\", \"fatal\")",
    )
    .short('l')
    .default("info"),
    Flag::new("tls", Kind::Bool, "Use TLS; implied by --tlsverify"),
    Flag::new("tlscacert", Kind::Str, "Trust certificates signed by this CA only"),
    Flag::new("tlscert", Kind::Str, "TLS certificate file"),
    Flag::new("tlskey", Kind::Str, "TLS key file"),
    Flag::new("tlsverify", Kind::Bool, "Use TLS and verify the other side"),
];

pub(crate) static NETWORK_CONNECT: &[Flag] = &[
    Flag::new("alias", Kind::Slice, "Further name of the container in this network"),
    Flag::new("driver-opt", Kind::Slice, "Driver options of the endpoint"),
    Flag::new(
        "gw-priority",
        Kind::Int,
        "The highest one gives the default gateway; positive or negative",
    ),
    Flag::new("ip", Kind::Ip, "IPv4 address (172.30.100.104)"),
    Flag::new("ip6", Kind::Ip, "IPv6 address (2001:db8::33)"),
    Flag::new("link", Kind::List, "Link to another container"),
    Flag::new("link-local-ip", Kind::IpSlice, "Link-local address (IPv4 or IPv6)"),
];

pub(crate) static NETWORK_CREATE: &[Flag] = &[
    Flag::new("attachable", Kind::Bool, "Let containers be attached by hand (swarm)"),
    Flag::new("aux-address", Kind::Map, "Addresses that the network driver uses itself"),
    Flag::new("config-from", Kind::Str, "Network to copy the configuration from"),
    Flag::new("config-only", Kind::Bool, "Create a network that only holds a configuration"),
    Flag::new("driver", Kind::Str, "Driver of the network").short('d').default("bridge"),
    Flag::new("gateway", Kind::IpSlice, "IPv4 or IPv6 gateway of the subnet"),
    Flag::new("ingress", Kind::Bool, "Create the routing-mesh network (swarm)"),
    Flag::new("internal", Kind::Bool, "No access to the outside"),
    Flag::new("ip-range", Kind::NetSlice, "Take container addresses from this part of the subnet"),
    Flag::new("ipam-driver", Kind::Str, "Driver of the address management").default("default"),
    Flag::new("ipam-opt", Kind::Map, "Options of the address management driver"),
    Flag::new("ipv4", Kind::Bool, "Give out IPv4 addresses").default("true"),
    Flag::new("ipv6", Kind::Bool, "Give out IPv6 addresses"),
    Flag::new("label", Kind::List, "Set metadata on the network"),
    Flag::new("opt", Kind::Map, "Driver options").short('o'),
    Flag::new("scope", Kind::Str, "Scope of the network"),
    Flag::new("subnet", Kind::Slice, "Subnet in CIDR form"),
];

pub(crate) static NETWORK_DISCONNECT: &[Flag] =
    &[Flag::new("force", Kind::Bool, "Disconnect by force").short('f')];

pub(crate) static NETWORK_INSPECT: &[Flag] = &[
    Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f'),
    Flag::new("verbose", Kind::Bool, "Show details for diagnosis").short('v'),
];

pub(crate) static NETWORK_LS: &[Flag] = &[
    Flag::new("filter", Kind::Filter, "Show only what matches the condition").short('f'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
    Flag::new("quiet", Kind::Bool, "Show only network IDs").short('q'),
];

pub(crate) static NETWORK_PRUNE: &[Flag] = &[
    Flag::new("filter", Kind::Filter, "Show only what matches the condition"),
    Flag::new("force", Kind::Bool, "Do not ask").short('f'),
];

pub(crate) static NETWORK_RM: &[Flag] =
    &[Flag::new("force", Kind::Bool, "Do not fail if the network does not exist").short('f')];

pub(crate) static VOLUME_CREATE: &[Flag] = &[
    Flag::new(
        "availability",
        Kind::Str,
        "Availability of the cluster volume (\"active\", \"pause\", \"drain\") (swarm)",
    )
    .default("active")
    .api(42),
    Flag::new("driver", Kind::Str, "Volume driver").short('d').default("local"),
    Flag::new("group", Kind::Str, "Group of the cluster volume (swarm)").api(42),
    Flag::new("label", Kind::List, "Set metadata on the volume"),
    Flag::new("limit-bytes", Kind::Bytes, "Largest size of the cluster volume (swarm)").api(42),
    Flag::new("name", Kind::Str, "Name of the volume").hidden(),
    Flag::new("opt", Kind::Map, "Driver options").short('o'),
    Flag::new("required-bytes", Kind::Bytes, "Smallest size of the cluster volume (swarm)").api(42),
    Flag::new("scope", Kind::Str, "Scope of the cluster volume (\"single\", \"multi\") (swarm)")
        .default("single")
        .api(42),
    Flag::new("secret", Kind::Map, "Secrets of the cluster volume (swarm)").api(42),
    Flag::new(
        "sharing",
        Kind::Str,
        "Sharing of the cluster volume (\"none\", \"readonly\", \"onewriter\", \"all\") (swarm)",
    )
    .default("none")
    .api(42),
    Flag::new("topology-preferred", Kind::List, "Preferred topology of the cluster volume (swarm)")
        .api(42),
    Flag::new("topology-required", Kind::List, "Required topology of the cluster volume (swarm)")
        .api(42),
    Flag::new(
        "type",
        Kind::Str,
        "Access type of the cluster volume (\"mount\", \"block\") (swarm)",
    )
    .default("block")
    .api(42),
];

pub(crate) static VOLUME_INSPECT: &[Flag] =
    &[Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f')];

pub(crate) static VOLUME_LS: &[Flag] = &[
    Flag::new("cluster", Kind::Bool, "Show only cluster volumes (swarm)").api(42),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition").short('f'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("quiet", Kind::Bool, "Show only volume names").short('q'),
];

pub(crate) static VOLUME_PRUNE: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Remove all unused volumes, not only anonymous ones")
        .short('a')
        .api(42),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition"),
    Flag::new("force", Kind::Bool, "Do not ask").short('f'),
];

pub(crate) static VOLUME_RM: &[Flag] =
    &[Flag::new("force", Kind::Bool, "Do not fail if the volume does not exist").short('f')];

pub(crate) static VOLUME_UPDATE: &[Flag] = &[Flag::new(
    "availability",
    Kind::Str,
    "Availability of the cluster volume (\"active\", \"pause\", \"drain\") (swarm)",
)
.default("active")
.api(42)];

pub(crate) static SYSTEM_DF: &[Flag] = &[
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("verbose", Kind::Bool, "Show every object").short('v'),
];

pub(crate) static SYSTEM_EVENTS: &[Flag] = &[
    Flag::new("filter", Kind::Filter, "Show only what matches the condition").short('f'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new(
        "since",
        Kind::Str,
        "Show what happened since a time (2013-01-02T13:23:37Z) or a duration back (42m)",
    ),
    Flag::new(
        "until",
        Kind::Str,
        "Show what happened before a time (2013-01-02T13:23:37Z) or a duration back (42m)",
    ),
];

pub(crate) static SYSTEM_INFO: &[Flag] =
    &[Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f')];

pub(crate) static SYSTEM_PRUNE: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Remove all unused images, not only dangling ones").short('a'),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition"),
    Flag::new("force", Kind::Bool, "Do not ask").short('f'),
    Flag::new("volumes", Kind::Bool, "Remove anonymous volumes too"),
];

pub(crate) static INSPECT: &[Flag] = &[
    Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f'),
    Flag::new("size", Kind::Bool, "Show total file sizes of containers").short('s'),
    Flag::new("type", Kind::Str, "Look only for objects of this type"),
];

pub(crate) static LOGIN: &[Flag] = &[
    Flag::new("password", Kind::Str, "Password or access token").short('p'),
    Flag::new("password-stdin", Kind::Bool, "Read the password or access token from STDIN"),
    Flag::new("username", Kind::Str, "User name").short('u'),
];

pub(crate) static SEARCH: &[Flag] = &[
    Flag::new("filter", Kind::Filter, "Show only what matches the condition").short('f'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("limit", Kind::Int, "Largest number of results"),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
];

pub(crate) static VERSION: &[Flag] =
    &[Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f')];

pub(crate) static CONTEXT_CREATE: &[Flag] = &[
    Flag::new("description", Kind::Str, "Description of the context"),
    Flag::new("docker", Kind::StrMap, "Set the docker endpoint"),
    Flag::new("from", Kind::Str, "Create the context from an existing one"),
];

pub(crate) static CONTEXT_INSPECT: &[Flag] =
    &[Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f')];

pub(crate) static CONTEXT_LS: &[Flag] = &[
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("quiet", Kind::Bool, "Show only names").short('q'),
];

pub(crate) static CONTEXT_RM: &[Flag] =
    &[Flag::new("force", Kind::Bool, "Remove a context that is in use").short('f')];

pub(crate) static CONTEXT_UPDATE: &[Flag] = &[
    Flag::new("description", Kind::Str, "Description of the context"),
    Flag::new("docker", Kind::StrMap, "Set the docker endpoint"),
];
