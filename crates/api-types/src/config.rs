//! What a container is made from: `Config`, health checks, the create body.

use crate::HostConfig;
use crate::network::NetworkingConfig;
use crate::wire::{Empty, Map, StrSlice, nil, zero};

wire! {
    /// The portable part of a container's configuration.
    pub struct Config {
        pub hostname: String,
        pub domainname: String,
        /// `user[:group]`, names or numbers.
        pub user: String,
        pub attach_stdin: bool,
        pub attach_stdout: bool,
        pub attach_stderr: bool,
        /// Keys are `80/tcp`.
        #[serde(skip_serializing_if = "zero")]
        pub exposed_ports: Map<Empty>,
        pub tty: bool,
        pub open_stdin: bool,
        pub stdin_once: bool,
        /// `KEY=value`; on create, `KEY` alone removes the image's variable.
        #[serde(serialize_with = "nil")]
        pub env: Vec<String>,
        /// `None` means the image's; an empty list means no arguments.
        pub cmd: Option<StrSlice>,
        #[serde(skip_serializing_if = "zero")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "zero")]
        pub args_escaped: bool,
        /// As the user named it.
        pub image: String,
        #[serde(serialize_with = "nil")]
        pub volumes: Map<Empty>,
        pub working_dir: String,
        /// `None` means the image's; an empty list, or one empty word, means none.
        pub entrypoint: Option<StrSlice>,
        #[serde(skip_serializing_if = "zero")]
        pub network_disabled: bool,
        /// Deprecated since 1.44: `EndpointSettings::mac_address` instead.
        #[serde(skip_serializing_if = "zero")]
        pub mac_address: String,
        #[serde(serialize_with = "nil")]
        pub on_build: Vec<String>,
        pub labels: Map<String>,
        #[serde(skip_serializing_if = "zero")]
        pub stop_signal: String,
        /// Seconds; -1 waits for ever.
        #[serde(skip_serializing_if = "zero")]
        pub stop_timeout: Option<i64>,
        #[serde(skip_serializing_if = "zero")]
        pub shell: Option<StrSlice>,
    }

    /// A health check. Durations are nanoseconds; 0 inherits.
    #[derive(Eq)]
    pub struct HealthConfig {
        /// `[]` inherits, `["NONE"]` disables, `["CMD", …]`, `["CMD-SHELL", "line"]`.
        #[serde(skip_serializing_if = "zero")]
        pub test: Vec<String>,
        #[serde(skip_serializing_if = "zero")]
        pub interval: i64,
        #[serde(skip_serializing_if = "zero")]
        pub timeout: i64,
        #[serde(skip_serializing_if = "zero")]
        pub start_period: i64,
        #[serde(skip_serializing_if = "zero")]
        pub start_interval: i64,
        #[serde(skip_serializing_if = "zero")]
        pub retries: i64,
    }

    /// Body of `POST /containers/create`: `Config` flat, with two more objects beside.
    pub struct ContainerCreateBody {
        #[serde(skip_serializing_if = "zero")]
        pub host_config: Option<HostConfig>,
        #[serde(skip_serializing_if = "zero")]
        pub networking_config: Option<NetworkingConfig>,
    } + {
        pub config: Config,
    }

    /// Reply of `POST /containers/create`.
    #[derive(Eq)]
    pub struct ContainerCreateResponse {
        pub id: String,
        pub warnings: Vec<String>,
    }

    /// Body of `POST /commit`: an optional `Config` that overrides the container's.
    pub struct CommitBody {} + {
        pub config: Config,
    }
}
