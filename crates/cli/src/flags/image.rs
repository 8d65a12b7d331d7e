//! Flags of the image and builder commands.
//!
//! Names, letters, kinds and defaults are docker's; `tests/flags.rs` holds them against its list.

use super::{Flag, Kind};

pub(crate) static IMAGE_BUILD: &[Flag] = &[
    Flag::new("add-host", Kind::List, "Add a host-to-IP mapping to /etc/hosts (host:ip)"),
    Flag::new("build-arg", Kind::List, "Set a build-time variable"),
    Flag::new("cache-from", Kind::Slice, "Images to take cached steps from"),
    Flag::new("cgroup-parent", Kind::Str, "Parent cgroup of the container"),
    Flag::new("compress", Kind::Bool, "Compress the build context with gzip"),
    Flag::new("cpu-period", Kind::Int, "CPU CFS period in microseconds"),
    Flag::new("cpu-quota", Kind::Int, "CPU CFS quota in microseconds"),
    Flag::new("cpu-shares", Kind::Int, "Relative CPU weight").short('c'),
    Flag::new("cpuset-cpus", Kind::Str, "CPUs that may be used (0-3, 0,1)"),
    Flag::new("cpuset-mems", Kind::Str, "Memory nodes that may be used (0-3, 0,1)"),
    Flag::new("disable-content-trust", Kind::Bool, "Skip image verification")
        .default("true")
        .hidden()
        .deprecated(),
    Flag::new("file", Kind::Str, "Dockerfile to use (default is \"PATH/Dockerfile\")").short('f'),
    Flag::new("force-rm", Kind::Bool, "Always remove intermediate containers"),
    Flag::new("iidfile", Kind::Str, "Write the image ID to this file"),
    Flag::new("isolation", Kind::Str, "Isolation technology"),
    Flag::new("label", Kind::List, "Set metadata"),
    Flag::new("memory", Kind::Bytes, "Memory limit").short('m'),
    Flag::new(
        "memory-swap",
        Kind::Bytes,
        "Limit of memory and swap together; -1 for unlimited swap",
    ),
    Flag::new("network", Kind::Str, "Network of RUN instructions").default("default"),
    Flag::new("no-cache", Kind::Bool, "Build without using the cache"),
    Flag::new("platform", Kind::Str, "Platform to build for"),
    Flag::new("pull", Kind::Bool, "Always try to pull newer base images"),
    Flag::new("quiet", Kind::Bool, "Suppress output and print the image ID").short('q'),
    Flag::new("rm", Kind::Bool, "Remove intermediate containers after a successful build")
        .default("true"),
    Flag::new("security-opt", Kind::Slice, "Security options"),
    Flag::new("shm-size", Kind::Bytes, "Size of /dev/shm"),
    Flag::new("squash", Kind::Bool, "Squash the new layers into one"),
    Flag::new("tag", Kind::List, "Name and optional tag (\"name:tag\")").short('t'),
    Flag::new("target", Kind::Str, "Stage to build"),
    Flag::new("ulimit", Kind::Ulimit, "Resource limits"),
];

pub(crate) static IMAGE_HISTORY: &[Flag] = &[
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("human", Kind::Bool, "Print sizes and dates for people").short('H').default("true"),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
    Flag::new("platform", Kind::Str, "Platform to use, if the image has several").api(48),
    Flag::new("quiet", Kind::Bool, "Show only image IDs").short('q'),
];

pub(crate) static IMAGE_IMPORT: &[Flag] = &[
    Flag::new("change", Kind::List, "Apply a Dockerfile instruction to the new image").short('c'),
    Flag::new("message", Kind::Str, "Message of the image").short('m'),
    Flag::new("platform", Kind::Str, "Platform of the image"),
];

pub(crate) static IMAGE_INSPECT: &[Flag] = &[
    Flag::new("format", Kind::Str, "Format with a Go template, or \"json\"").short('f'),
    Flag::new("platform", Kind::Str, "Platform to use, if the image has several").api(49),
];

/// Not a command of docker's.
pub(crate) static IMAGE_LAYERS: &[Flag] = &[
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
    Flag::new("platform", Kind::Str, "Platform to use, if the image has several"),
    Flag::new("top", Kind::Int, "Files to name per layer (at most 1000)").default("5"),
];

pub(crate) static IMAGE_LOAD: &[Flag] = &[
    Flag::new(
        "input",
        Kind::Str,
        "Read from a tar file, or the directory of an OCI image layout, instead of STDIN",
    )
    .short('i'),
    Flag::new("platform", Kind::Slice, "Platform to use, if the image has several").api(48),
    Flag::new("quiet", Kind::Bool, "Do not show progress").short('q'),
];

pub(crate) static IMAGE_LS: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Show all images (default hides intermediate ones)").short('a'),
    Flag::new("digests", Kind::Bool, "Show digests"),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition").short('f'),
    Flag::new(
        "format",
        Kind::Str,
        "Format with a Go template, or \"table\", \"table TEMPLATE\", \"json\"",
    ),
    Flag::new("no-trunc", Kind::Bool, "Print values in full"),
    Flag::new("quiet", Kind::Bool, "Show only image IDs").short('q'),
    Flag::new("tree", Kind::Bool, "Show images with several platforms as a tree (experimental)")
        .api(47),
];

pub(crate) static IMAGE_PRUNE: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Remove all unused images, not only dangling ones").short('a'),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition"),
    Flag::new("force", Kind::Bool, "Do not ask").short('f'),
];

pub(crate) static IMAGE_PULL: &[Flag] = &[
    Flag::new("all-tags", Kind::Bool, "Pull all tags of the repository").short('a'),
    Flag::new("disable-content-trust", Kind::Bool, "Skip image verification")
        .default("true")
        .hidden()
        .deprecated(),
    Flag::new("platform", Kind::Str, "Platform to use, if the image has several"),
    Flag::new("quiet", Kind::Bool, "Do not show progress").short('q'),
];

pub(crate) static IMAGE_PUSH: &[Flag] = &[
    Flag::new("all-tags", Kind::Bool, "Push all tags of the repository").short('a'),
    Flag::new("disable-content-trust", Kind::Bool, "Skip image verification")
        .default("true")
        .hidden()
        .deprecated(),
    Flag::new("platform", Kind::Str, "Push one platform only").api(46),
    Flag::new("quiet", Kind::Bool, "Do not show progress").short('q'),
];

pub(crate) static IMAGE_RM: &[Flag] = &[
    Flag::new("force", Kind::Bool, "Remove even if used by stopped containers or tagged otherwise")
        .short('f'),
    Flag::new("no-prune", Kind::Bool, "Keep untagged parents"),
    Flag::new("platform", Kind::Slice, "Remove one platform only").api(50),
];

/// `--format` is not a flag of docker's.
pub(crate) static IMAGE_SAVE: &[Flag] = &[
    Flag::new(
        "format",
        Kind::Str,
        "docker-archive and oci-archive (one archive that is both), or oci-dir (a directory)",
    )
    .default("docker-archive"),
    Flag::new("output", Kind::Str, "Write to a file or directory instead of STDOUT").short('o'),
    Flag::new("platform", Kind::Slice, "Platform to use, if the image has several").api(48),
];

/// Not a command of docker's.
pub(crate) static IMAGE_SQUASH: &[Flag] = &[
    Flag::new("from", Kind::Str, "Keep the layers of this image, and merge those above it"),
    Flag::new("message", Kind::Str, "Comment of the entry in the history").short('m'),
    Flag::new("platform", Kind::Str, "Squash one platform only, if the image has several"),
    Flag::new("tag", Kind::Str, "Name and optional tag of the new image (\"name:tag\")").short('t'),
];

pub(crate) static BUILDER_PRUNE: &[Flag] = &[
    Flag::new("all", Kind::Bool, "Remove all unused cache, not only dangling").short('a'),
    Flag::new("filter", Kind::Filter, "Show only what matches the condition"),
    Flag::new("force", Kind::Bool, "Do not ask").short('f'),
    Flag::new("keep-storage", Kind::Bytes, "Amount of cache to keep"),
];
