//! The crate's error.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// What went wrong, on which object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("cannot {operation}{}", kernel_text(.message))]
    Netlink {
        /// What was asked for, with its object: `create veth veth1a2b3c`.
        operation: String,
        /// The kernel's own explanation, where it gave one.
        message: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A netlink reply that does not have the documented form.
    #[error("cannot {operation}: malformed netlink reply")]
    Reply {
        /// What was asked for.
        operation: String,
    },
    /// A system call on a namespace, socket or thread failed.
    #[error("cannot {operation} {object}")]
    System {
        /// The operation, for example `bind-mount network namespace on`.
        operation: &'static str,
        /// Its object.
        object: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// `read`, `write`, `create`, `remove`.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A link of the wanted name exists and is not ours.
    #[error(
        "link {name} already exists and is not ours ({found}); remove it or choose another name"
    )]
    ForeignLink {
        /// The link's name.
        name: String,
        /// What was found there.
        found: String,
    },
    /// A daemon that runs serves the bridge of this name.
    #[error("bridge {name} belongs to another gantry daemon{}", process(*.pid))]
    BridgeClaimed {
        /// The bridge's name.
        name: String,
        /// The daemon's process, unless it is in another pid namespace.
        pid: Option<u32>,
    },
    /// A bridge of a daemon that does not run now has links on it.
    #[error(
        "bridge {name} belongs to another gantry daemon, whose containers are on it ({})",
        .ports.join(", ")
    )]
    BridgeInUse {
        /// The bridge's name.
        name: String,
        /// Names of the links on it.
        ports: Vec<String>,
    },
    /// No link has this name.
    #[error("no link is named {name}")]
    NoSuchLink {
        /// The name.
        name: String,
    },
    /// A name that cannot be an interface's.
    #[error("invalid interface name {name:?}: 1 to 15 bytes, no '/', no space, not '.' or '..'")]
    LinkName {
        /// The name.
        name: String,
    },
    /// The host port is taken.
    #[error("Bind for {} failed: port is already allocated", host_port(*.ip, *.port))]
    PortAllocated {
        /// The host address.
        ip: IpAddr,
        /// The host port.
        port: u16,
    },
    /// No port of the range is free.
    #[error("all ports are allocated: none of {first}-{last} on {ip} is free")]
    PortsExhausted {
        /// The host address.
        ip: IpAddr,
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// The kernel does not have what was asked for.
    #[error("{what} is not supported by this kernel")]
    Unsupported {
        /// What is missing, for example `link kind ipvlan`.
        what: String,
        /// The errno that said so.
        #[source]
        source: io::Error,
    },
    /// A legacy x_tables table does not have the documented layout.
    #[error("cannot edit legacy table {table}: {reason}")]
    LegacyTable {
        /// `ip filter` or `ip6 filter`.
        table: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Error {
    /// The errno behind the error, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. }
            | Self::System { source, .. }
            | Self::File { source, .. }
            | Self::Unsupported { source, .. } => source.raw_os_error(),
            Self::Reply { .. }
            | Self::ForeignLink { .. }
            | Self::BridgeClaimed { .. }
            | Self::BridgeInUse { .. }
            | Self::NoSuchLink { .. }
            | Self::LinkName { .. }
            | Self::PortAllocated { .. }
            | Self::PortsExhausted { .. }
            | Self::LegacyTable { .. } => None,
        }
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NoSuchLink { .. })
            || matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH))
    }

    /// Whether the object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether a port or a link of someone else is in the way.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::ForeignLink { .. }
                | Self::BridgeClaimed { .. }
                | Self::BridgeInUse { .. }
                | Self::PortAllocated { .. }
                | Self::PortsExhausted { .. }
        ) || self.is_exists()
    }
}

pub(crate) fn system(
    operation: &'static str,
    object: impl Into<String>,
) -> impl FnOnce(io::Error) -> Error {
    let object = object.into();
    move |source| Error::System { operation, object, source }
}

pub(crate) fn file(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { operation, path, source }
}

fn kernel_text(message: &Option<String>) -> String {
    message.as_ref().map(|m| format!(" (kernel: {m})")).unwrap_or_default()
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" that runs (process {pid})")).unwrap_or_else(|| " that runs".to_owned())
}

fn host_port(ip: IpAddr, port: u16) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}
