//! Names, nulls and omissions against what dockerd and its clients write.
#![allow(clippy::unwrap_used)]

use api_types::*;
use serde_json::{Value, json};

#[test]
fn nulls_read_as_defaults() {
    let body: ContainerCreateBody = serde_json::from_value(json!({
        "Image": "busybox", "Cmd": "echo hi", "Entrypoint": null, "Env": null, "Labels": null,
        "ExposedPorts": {"80/tcp": null}, "Volumes": {"/data": {}}, "Unknown": 3,
        "HostConfig": {"Binds": null, "Memory": 4096, "MaskedPaths": [], "PortBindings": {"80/tcp": null},
            "RestartPolicy": null, "Ulimits": null, "OomKillDisable": null},
        "NetworkingConfig": {"EndpointsConfig": {"n1": null}},
    }))
    .unwrap();
    assert_eq!(body.config.cmd.unwrap().0, ["echo hi"]);
    assert_eq!(body.config.entrypoint, None);
    assert!(body.config.exposed_ports.contains_key("80/tcp"));
    let host = body.host_config.unwrap();
    assert_eq!(host.resources.memory, 4096);
    assert_eq!(host.masked_paths, Some(vec![]));
    assert_eq!(host.readonly_paths, None);
    assert_eq!(body.networking_config.unwrap().endpoints_config["n1"], None);
}

#[test]
fn wrong_types_are_errors_also_in_flattened_parts() {
    for body in [json!({"Hostname": 3}), json!({"HostConfig": {"Memory": "much"}})] {
        assert!(serde_json::from_value::<ContainerCreateBody>(body).is_err());
    }
}

#[test]
fn exact_names() {
    let v = serde_json::to_value(HostConfig::default()).unwrap();
    for key in [
        "Binds",
        "ContainerIDFile",
        "UTSMode",
        "UsernsMode",
        "CpuShares",
        "NanoCpus",
        "OomKillDisable",
        "OomScoreAdj",
        "BlkioDeviceReadIOps",
        "IOMaximumIOps",
        "Dns",
        "CgroupnsMode",
        "PidsLimit",
        "CpusetMems",
        "ReadonlyRootfs",
        "IpcMode",
    ] {
        assert!(v.get(key).is_some(), "{key}");
    }
    assert_eq!(v["Binds"], Value::Null);
    assert_eq!(v["Dns"], json!([]));
    assert_eq!(v["ConsoleSize"], json!([0, 0]));
    assert!(v.get("Mounts").is_none() && v.get("Init").is_none());

    let v = serde_json::to_value(EndpointSettings::default()).unwrap();
    for key in [
        "IPAMConfig",
        "NetworkID",
        "EndpointID",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "GlobalIPv6Address",
        "DNSNames",
        "GwPriority",
        "MacAddress",
    ] {
        assert!(v.get(key).is_some(), "{key}");
    }
    let v = serde_json::to_value(Info::default()).unwrap();
    for key in [
        "ID",
        "NCPU",
        "NFd",
        "NGoroutines",
        "NEventsListener",
        "OSType",
        "MemTotal",
        "HttpProxy",
        "HttpsProxy",
        "NoProxy",
        "CpuCfsPeriod",
        "CPUShares",
        "CPUSet",
        "IPv4Forwarding",
        "ContainerdCommit",
        "CDISpecDirs",
    ] {
        assert!(v.get(key).is_some(), "{key}");
    }
    let v = serde_json::to_value(ContainerInspect::default()).unwrap();
    for key in ["Id", "ResolvConfPath", "AppArmorProfile", "ExecIDs", "HostConfig", "GraphDriver"] {
        assert!(v.get(key).is_some(), "{key}");
    }
    assert!(v["State"].get("OOMKilled").is_some());
    assert!(v.get("SizeRw").is_none());
    let v = serde_json::to_value(Network::default()).unwrap();
    for key in ["Id", "IPAM", "EnableIPv4", "EnableIPv6", "ConfigFrom"] {
        assert!(v.get(key).is_some(), "{key}");
    }
    let v = serde_json::to_value(ImageInspect::default()).unwrap();
    assert!(v.get("RootFS").is_some() && v.get("Id").is_some());
    let v =
        serde_json::to_value(ContainerSummary { size_root_fs: 1, ..Default::default() }).unwrap();
    assert!(v.get("ImageID").is_some() && v.get("SizeRootFs").is_some());
}

#[test]
fn filters_both_forms() {
    let a =
        Filters::parse(r#"{"label":{"a=b":true,"c":true,"off":false},"status":{"running":true}}"#)
            .unwrap();
    let b = Filters::parse(r#"{"label":["a=b","c"],"status":["running"]}"#).unwrap();
    assert_eq!(a, b);
    assert_eq!(Filters::parse(&a.to_json()).unwrap(), a);
    assert!(Filters::parse("").unwrap().is_empty());
    assert!(Filters::parse("{").is_err());
    assert_eq!(a.validate(&["label"]).unwrap_err().to_string(), "invalid filter 'status'");
    let mut labels = Map::new();
    labels.insert("a".into(), "b".into());
    assert!(!a.match_labels("label", &labels));
    labels.insert("c".into(), String::new());
    assert!(a.match_labels("label", &labels));
    assert_eq!(
        Filters::parse(r#"{"dangling":["true"]}"#).unwrap().get_bool("dangling").unwrap(),
        Some(true)
    );
    assert!(Filters::parse(r#"{"dangling":["x"]}"#).unwrap().get_bool("dangling").is_err());
}

#[test]
fn build_query_round_trip() {
    let mut o = BuildOptions {
        tags: vec!["a:1".into(), "b:2".into()],
        dockerfile: "d/Dockerfile".into(),
        memory: 1 << 30,
        remove: false,
        no_cache: true,
        ..Default::default()
    };
    o.build_args.insert("A".into(), None);
    o.build_args.insert("B".into(), Some("x y".into()));
    o.ulimits.push(Ulimit { name: "nofile".into(), hard: 20, soft: 10 });
    let q = o.to_query();
    let back = BuildOptions::from_query(q.iter().map(|(k, v)| (*k, v.as_str()))).unwrap();
    assert_eq!(o, back);
    assert!(BuildOptions::from_query([("memory", "x")]).is_err());
    assert!(BuildOptions::from_query([("buildargs", "{")]).is_err());
}

#[test]
fn progress_messages() {
    let m = JsonMessage {
        status: "Pulling fs layer".into(),
        id: "abc".into(),
        progress_detail: Some(ProgressDetail::default()),
        ..Default::default()
    };
    assert_eq!(
        serde_json::to_string(&m).unwrap(),
        r#"{"status":"Pulling fs layer","progressDetail":{},"id":"abc"}"#
    );
    let m: JsonMessage =
        serde_json::from_str(r#"{"errorDetail":{"code":3,"message":"x"},"error":"x"}"#).unwrap();
    assert_eq!(m.error_detail.unwrap().code, 3);
}

#[test]
fn mounts() {
    let m: Mount =
        serde_json::from_value(json!({"Type": "strange", "Target": "/x", "BindOptions": null}))
            .unwrap();
    assert_eq!(m.r#type, MountType::Unknown("strange".into()));
    assert_eq!(serde_json::to_value(&m).unwrap(), json!({"Type": "strange", "Target": "/x"}));
    let m: Mount =
        serde_json::from_value(json!({"Type": "tmpfs", "TmpfsOptions": {"SizeBytes": 5}})).unwrap();
    assert_eq!(m.r#type, MountType::Tmpfs);
}

#[test]
fn versions_and_bools() {
    assert!(ApiVersion::parse("1.9").unwrap() < ApiVersion::parse("1.10").unwrap());
    assert_eq!(ApiVersion::MAX.to_string(), API_VERSION);
    assert_eq!(ApiVersion::MIN.to_string(), MIN_API_VERSION);
    assert!(ApiVersion::parse("1").is_none());
    for (v, want) in
        [("", false), ("0", false), ("False", false), ("none", false), ("1", true), ("x", true)]
    {
        assert_eq!(query_bool(v), want, "{v}");
    }
    assert_eq!(PathStat::mode_from_unix(0o040_755), PathStat::MODE_DIR | 0o755);
}
