//! Networks and a container's place in them.

use crate::wire::{Map, nil, zero};

wire! {
    /// A container's attachment to one network: what was asked, and what came of it.
    pub struct EndpointSettings {
        #[serde(rename = "IPAMConfig")]
        pub ipam_config: Option<EndpointIpamConfig>,
        #[serde(serialize_with = "nil")]
        pub links: Vec<String>,
        #[serde(serialize_with = "nil")]
        pub aliases: Vec<String>,
        pub mac_address: String,
        #[serde(serialize_with = "nil")]
        pub driver_opts: Map<String>,
        pub gw_priority: i64,
        #[serde(rename = "NetworkID")]
        pub network_id: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: i64,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: i64,
        #[serde(rename = "DNSNames", serialize_with = "nil")]
        pub dns_names: Vec<String>,
    }

    #[derive(Eq)]
    pub struct EndpointIpamConfig {
        #[serde(rename = "IPv4Address", skip_serializing_if = "zero")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address", skip_serializing_if = "zero")]
        pub ipv6_address: String,
        #[serde(rename = "LinkLocalIPs", skip_serializing_if = "zero")]
        pub link_local_ips: Vec<String>,
    }

    /// Part of the create body. A `null` endpoint is the default one.
    pub struct NetworkingConfig {
        pub endpoints_config: Map<Option<EndpointSettings>>,
    }

    /// Reply of `GET /networks/{id}`; one row of `GET /networks`.
    pub struct Network {
        pub name: String,
        pub id: String,
        pub created: String,
        pub scope: String,
        pub driver: String,
        #[serde(rename = "EnableIPv4")]
        pub enable_ipv4: bool,
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: bool,
        #[serde(rename = "IPAM")]
        pub ipam: Ipam,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_from: ConfigReference,
        pub config_only: bool,
        /// By container id; empty in lists.
        pub containers: Map<EndpointResource>,
        pub options: Map<String>,
        pub labels: Map<String>,
    }

    #[derive(Eq)]
    pub struct ConfigReference {
        pub network: String,
    }

    #[derive(Eq)]
    pub struct EndpointResource {
        pub name: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub mac_address: String,
        /// With its prefix length.
        #[serde(rename = "IPv4Address")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address")]
        pub ipv6_address: String,
    }

    #[derive(Eq)]
    pub struct Ipam {
        pub driver: String,
        #[serde(serialize_with = "nil")]
        pub options: Map<String>,
        pub config: Vec<IpamConfig>,
    }

    #[derive(Eq)]
    pub struct IpamConfig {
        #[serde(skip_serializing_if = "zero")]
        pub subnet: String,
        #[serde(rename = "IPRange", skip_serializing_if = "zero")]
        pub ip_range: String,
        #[serde(skip_serializing_if = "zero")]
        pub gateway: String,
        #[serde(skip_serializing_if = "zero")]
        pub auxiliary_addresses: Map<String>,
    }

    /// Body of `POST /networks/create`.
    pub struct NetworkCreate {
        pub name: String,
        /// Ignored since 1.44: names are always unique.
        #[serde(skip_serializing_if = "zero")]
        pub check_duplicate: bool,
        pub driver: String,
        pub scope: String,
        #[serde(rename = "EnableIPv4", skip_serializing_if = "zero")]
        pub enable_ipv4: Option<bool>,
        #[serde(rename = "EnableIPv6", skip_serializing_if = "zero")]
        pub enable_ipv6: Option<bool>,
        #[serde(rename = "IPAM", skip_serializing_if = "zero")]
        pub ipam: Option<Ipam>,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_only: bool,
        #[serde(skip_serializing_if = "zero")]
        pub config_from: Option<ConfigReference>,
        pub options: Map<String>,
        pub labels: Map<String>,
    }

    #[derive(Eq)]
    pub struct NetworkCreateResponse {
        pub id: String,
        pub warning: String,
    }

    /// Body of `POST /networks/{id}/connect`.
    pub struct NetworkConnect {
        pub container: String,
        #[serde(skip_serializing_if = "zero")]
        pub endpoint_config: Option<EndpointSettings>,
    }

    /// Body of `POST /networks/{id}/disconnect`.
    #[derive(Eq)]
    pub struct NetworkDisconnect {
        pub container: String,
        pub force: bool,
    }
}
