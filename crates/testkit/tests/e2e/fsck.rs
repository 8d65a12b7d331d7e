//! `gantry containerd fsck` on a store that a daemon has left, with a registry that wants a password.

use crate::ground::{Ground, in_sandbox};
use testkit::leak::LeakCheck;
use testkit::random;
use testkit::registry::{Access, Registry};
use testkit::sandbox::{Net, Options, Sandbox};

const STORE: &str = "/var/lib/gantry/store";

impl Ground<'_> {
    /// Runs it with a directory for docker's configuration; what it says, and its exit code.
    fn fsck(&self, config: &str, args: &[&str]) -> (String, i32) {
        let script = "PATH=/run/tmp/bin:$PATH exec gantry containerd fsck \"$@\"";
        let words = ["-c", script, "sh"].into_iter().chain(args.iter().copied());
        let command = self.sandbox.command("sh", words).env("DOCKER_CONFIG", config);
        let output = command.output().unwrap();
        let said = output.both();
        eprintln!("fsck {args:?} with {config}: {}\n{said}", output.code());
        (said, output.code())
    }

    /// A blob's file by the digest that a template of `inspect` gives.
    fn blob(&self, digest: &str) -> String {
        format!("{STORE}/content/blobs/{}", digest.trim().replacen(':', "/", 1))
    }
}

/// Damage of each kind is found and repaired with the credentials that pull has.
#[test]
fn a_damaged_store_is_repaired_from_a_registry_with_a_password() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::with(&Options { net: Net::Isolated, ..Options::default() }).unwrap();
    // Layers are directories, of which a file can be lost.
    sandbox.write("/etc/gantry/daemon.json", r#"{"storage-driver":"overlayfs"}"#).unwrap();
    in_sandbox(&sandbox, |ground| {
        let registry = Registry::start(ground.sandbox, Access::Secured).unwrap();
        let target = registry.reference();
        let login = ["login", "-u", &registry.user, "--password-stdin", &registry.address];
        ground.daemon.docker(login).stdin(registry.password.clone()).ok().unwrap();
        ground.docker(&["tag", ground.reference(), &target]);
        ground.docker(&["push", &target]);
        ground.docker(&["rmi", &target, ground.reference()]);
        ground.docker(&["pull", &target]);
        let manifest = ground.blob(&ground.inspect(&target, "{{.Id}}"));
        let config: serde_json::Value =
            serde_json::from_str(&ground.sandbox.read(&manifest).unwrap()).unwrap();
        let config = config["config"]["digest"].as_str().unwrap().to_owned();
        let config_blob = ground.blob(&config);

        let (said, code) = ground.fsck("/run/tmp/none", &[]);
        assert!(code != 0 && said.contains("in use"), "{said}");
        ground.daemon.stop().unwrap();
        let (said, code) = ground.fsck("/run/tmp/none", &[]);
        assert!(code == 0 && said.contains("found: 0"), "{code}: {said}");

        let lost = ground.sandbox.shell(&format!(
            "rm {manifest}
             printf x | dd of={config_blob} bs=1 seek=9 conv=notrunc 2>/dev/null
             f=$(ls -d {STORE}/snapshots/*/fs/bin/busybox {STORE}/snapshots/*/fs/bin/sh | head -1); rm $f; echo $f
             r=$(find {STORE}/records -type f | grep -i image | head -1); rm \"$r\"; echo $r"
        ));
        eprintln!("lost: {}", lost.ok().unwrap().text());
        let (said, code) = ground.fsck("/run/tmp/none", &[]);
        let hex = manifest.rsplit('/').next().unwrap();
        assert_eq!(code, 1, "{said}");
        for object in [
            format!("{hex}: its file is missing"),
            config.clone(),
            "snapshot moby/".into(),
            "record ".into(),
        ] {
            assert!(said.contains(&object), "{object} is not told: {said}");
        }

        // Without a password, and with a wrong one, the registry's content stays lost, and it is said why.
        let (said, code) = ground.fsck("/run/tmp/none", &["--repair"]);
        assert!(code == 1 && said.contains(&registry.address), "{said}");
        assert!(said.to_lowercase().contains("auth"), "{said}");
        let user = format!("{}:{}", registry.user, random::token(9));
        let wrong = ["--repair", "--user", &user, "--registry", &registry.address];
        assert_eq!(ground.fsck("/run/tmp/none", &wrong).1, 1);
        // A helper that fails is told of, as is a registry's own user who is not the one that is meant.
        let helper = format!(
            "#!/bin/sh\n[ \"$1\" = get ] && server=$(cat) && [ \"$server\" = {} ] && [ -e /run/tmp/helps ] || \
             {{ echo no keyring; exit 1; }}\nprintf '{{\"Username\":\"%s\",\"Secret\":\"%s\"}}' {} {}\n",
            registry.address, registry.user, registry.password
        );
        ground.sandbox.write("/run/tmp/bin/docker-credential-random", helper).unwrap();
        ground.sandbox.shell("chmod 755 /run/tmp/bin/docker-credential-random").ok().unwrap();
        let helpers = serde_json::json!({ "credHelpers": { &registry.address: "random" } });
        ground.sandbox.write("/run/tmp/conf/config.json", helpers.to_string()).unwrap();
        let (said, code) = ground.fsck("/run/tmp/conf", &["--repair"]);
        assert!(code == 1 && said.contains("no keyring"), "{said}");

        ground.sandbox.write("/run/tmp/helps", "").unwrap();
        let (said, code) = ground.fsck("/run/tmp/conf", &["--repair"]);
        assert_eq!(said.matches("missing: repaired").count(), 2, "{said}");
        // The bytes that were wrong lie aside since the first attempt, for somebody to look at.
        assert!(code == 1 && said.contains("store/damaged/"), "{code}: {said}");
        ground.sandbox.shell(&format!("rm {STORE}/damaged/*")).ok().unwrap();
        let (said, code) = ground.fsck("/run/tmp/none", &[]);
        assert!(code == 0 && said.contains("found: 0"), "{code}: {said}");

        // And once more with a password on the command line, asking where a hosts.toml says.
        let address = &registry.address;
        let hosts = |server: &str| {
            let file = format!("/run/tmp/hosts/{address}/hosts.toml");
            let toml = format!(
                "server = 'https://{server}'\n[host.'https://{server}']\nca = '{}'\n",
                registry.ca
            );
            ground.sandbox.write(&file, toml).unwrap();
        };
        ground.sandbox.shell(&format!("rm {config_blob} {manifest}")).ok().unwrap();
        let user = format!("{}:{}", registry.user, registry.password);
        let right =
            ["--repair", "-u", &user, "--registry", address, "--hosts-dir", "/run/tmp/hosts"];
        hosts("127.0.0.1:1");
        let (said, code) = ground.fsck("/run/tmp/none", &right);
        assert!(code == 1 && said.contains("127.0.0.1:1/"), "{said}");
        hosts(address);
        let mut elsewhere = right;
        elsewhere[4] = "elsewhere:5000";
        let (said, code) = ground.fsck("/run/tmp/none", &elsewhere);
        assert!(code == 1 && said.contains("no basic auth credentials"), "{said}");
        let (said, code) = ground.fsck("/run/tmp/none", &right);
        assert!(code == 0 && said.contains(": repaired"), "{code}: {said}");
        ground.daemon.start_again().unwrap();
        assert_eq!(ground.read_marker(&target, &ground.image.marker_path), ground.image.marker);
    });
    sandbox.close().unwrap();
    leak.finish().unwrap();
}
