//! Every flag of docker's core commands exists here, with its letter, kind and default.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use cli::flags::Kind;

/// Name, letter, type, default.
type Wanted = (String, String, String, String);

fn kind(name: &str) -> Kind {
    match name {
        "string" => Kind::Str,
        "bool" => Kind::Bool,
        "list" => Kind::List,
        "int64" | "int" => Kind::Int,
        "bytes" => Kind::Bytes,
        "duration" => Kind::Duration,
        "stringSlice" => Kind::Slice,
        "filter" => Kind::Filter,
        "map" => Kind::Map,
        "ip" => Kind::Ip,
        "network" => Kind::Network,
        "ulimit" => Kind::Ulimit,
        "uint16" => Kind::Uint16,
        "decimal" => Kind::Decimal,
        "gpu-request" => Kind::Gpus,
        "uint64" => Kind::Uint64,
        "mount" => Kind::Mount,
        "stringToString" => Kind::StrMap,
        "ipSlice" => Kind::IpSlice,
        "ipNetSlice" => Kind::NetSlice,
        other => panic!("unknown type {other}"),
    }
}

/// Commands that are refused as a whole.
const ABSENT: [&str; 2] = ["context export", "context import"];

#[test]
fn all_of_dockers_flags() {
    let wanted: BTreeMap<String, Vec<Wanted>> =
        serde_json::from_str(include_str!("fixtures/flags.json")).unwrap();
    let have: BTreeMap<String, _> =
        cli::catalogue().into_iter().map(|(p, a, f)| (p, (a, f))).collect();
    let groups: Vec<&str> = have.keys().filter_map(|p| p.split_once(' ')).map(|(g, _)| g).collect();
    let mut missing = Vec::new();
    let mut seen = 0;
    for (path, flags) in &wanted {
        let path = path.strip_prefix("docker").unwrap().trim();
        if path.is_empty() || groups.contains(&path) || ABSENT.contains(&path) {
            continue;
        }
        let Some((_, sets)) = have.get(path) else {
            missing.push(format!("command {path}"));
            continue;
        };
        for (name, short, ty, default) in flags {
            seen += 1;
            let Some(flag) = sets.iter().flat_map(|s| s.iter()).find(|f| f.name == name) else {
                missing.push(format!("{path} --{name}"));
                continue;
            };
            let letter = flag.short.map(String::from).unwrap_or_default();
            assert_eq!(&letter, short, "{path} --{name}");
            assert_eq!(flag.kind, kind(ty), "{path} --{name}");
            if ty == "bool" {
                assert_eq!(flag.default == "true", default == "true", "{path} --{name}");
            }
            if matches!(ty.as_str(), "string" | "int" | "int64")
                && !matches!(default.as_str(), "" | "0")
            {
                assert_eq!(flag.default, default, "{path} --{name}");
            }
        }
    }
    assert!(missing.is_empty(), "missing: {missing:#?}");
    assert!(seen > 500, "only {seen} flags were looked at");
}

#[test]
fn help_pages_have_dockers_layout() {
    let page = cli::help_page("docker", &["ps"]).unwrap();
    assert!(page.starts_with("Usage:  docker ps [OPTIONS]\n\nList containers\n\nAliases:\n  docker container ls, docker container list, docker container ps, docker ps\n\nOptions:\n  -a, --all             "), "{page}");
    assert!(page.contains("\n  -f, --filter filter   "));
    assert!(page.contains("\n      --no-trunc        "));
    assert!(page.lines().all(|line| line.chars().count() < 80));
    let page = cli::help_page("gantry", &["network"]).unwrap();
    assert!(page.starts_with(
        "Usage:  gantry network COMMAND\n\nManage networks\n\nCommands:\n  connect     Connect"
    ));
    assert!(
        page.ends_with(
            "\nRun 'gantry network COMMAND --help' for more information on a command.\n"
        )
    );
    for (path, _, _) in cli::catalogue() {
        let words: Vec<&str> = path.split(' ').collect();
        let page = cli::help_page("docker", &words).unwrap();
        assert!(page.starts_with(&format!("Usage:  docker {path}")), "{page}");
    }
    assert!(cli::help_page("docker", &["nope"]).is_none());
}
