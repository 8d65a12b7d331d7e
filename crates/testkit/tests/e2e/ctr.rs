//! containerd's own client on the socket of our store.

use crate::ground::{assert_in_order, on_engine};
use testkit::command::Cmd;
use testkit::random;
use testkit::sandbox::Net;

const SOCKET: &str = "/run/gantry/containerd/containerd.sock";

#[test]
fn ctr_sees_and_runs_what_the_store_holds() {
    on_engine(Net::Isolated, |ground| {
        let ctr = |args: &[&str]| -> Cmd {
            let line: Vec<String> = ["-a", SOCKET, "-n", "moby"]
                .iter()
                .chain(args)
                .map(|&word| word.to_owned())
                .collect();
            ground.sandbox.command("ctr", line)
        };
        let version = ctr(&["version"]).ok().unwrap();
        assert_in_order(&version.text(), &["Client:", "Server:", "Version:", "UUID:"]);
        let namespaces = ctr(&["namespaces", "ls", "-q"]).ok().unwrap().lines();
        assert!(namespaces.contains(&"moby".to_owned()), "{namespaces:?}");
        let images = ctr(&["images", "ls", "-q"]).ok().unwrap().lines();
        let reference = images.iter().find(|name| name.ends_with(ground.reference()));
        let reference = reference.unwrap_or_else(|| panic!("{images:?}")).clone();
        let listed = ctr(&["images", "ls"]).ok().unwrap().text();
        assert_in_order(&listed, &["REF", "DIGEST", "SIZE", &reference, "sha256:", "linux/"]);

        let id = ground.start(&[], &["sleep", "1000"]);
        let containers = ctr(&["containers", "ls", "-q"]).ok().unwrap().lines();
        assert_eq!(containers, std::slice::from_ref(&id));
        let tasks = ctr(&["tasks", "ls"]).ok().unwrap().text();
        let pid = ground.inspect(&id, "{{.State.Pid}}");
        assert_in_order(&tasks, &["TASK", "PID", "STATUS", &id, &pid, "RUNNING"]);

        let (name, code) = (random::name("ctr"), random::exit_code());
        let run = ctr(&["run", "--rm", &reference, &name, "cat", &ground.image.marker_path]);
        assert_eq!(run.ok().unwrap().text(), ground.image.marker);
        let script = format!("exit {code}");
        let run = ctr(&["run", "--rm", &reference, &name, "sh", "-c", &script]).output().unwrap();
        assert_eq!(run.code(), code, "{}", run.both());
        let containers = ctr(&["containers", "ls", "-q"]).ok().unwrap().lines();
        assert_eq!(containers, [id]);
    });
}

#[test]
fn ctr_imports_and_exports() {
    on_engine(Net::Isolated, |ground| {
        let other = testkit::fixtures::busybox::Busybox::new().unwrap();
        ground.sandbox.write("/run/tmp/other.tar", other.oci_archive()).unwrap();
        let ctr = |args: &[&str]| -> Cmd {
            let line: Vec<String> =
                ["-a", SOCKET, "-n", "moby"].iter().chain(args).map(|&w| w.to_owned()).collect();
            ground.sandbox.command("ctr", line)
        };
        ctr(&["images", "import", "/run/tmp/other.tar"]).ok().unwrap();
        let seen = ground.docker(&["run", "--rm", &other.reference, "cat", &other.marker_path]);
        assert_eq!(seen, other.marker, "what ctr has imported, the engine runs");
        let names = ctr(&["images", "ls", "-q"]).ok().unwrap().lines();
        let name = names.iter().find(|name| name.ends_with(&other.reference)).unwrap();
        ctr(&["images", "export", "/run/tmp/out.tar", name]).ok().unwrap();
        let index =
            ground.sandbox.shell("tar -xOf /run/tmp/out.tar index.json").ok().unwrap().json();
        assert_eq!(index.unwrap()["manifests"][0]["digest"], other.image.manifest_digest());
        ctr(&["images", "rm", name]).ok().unwrap();
        let gone = ground.daemon.docker(["image", "inspect", &other.reference]).output().unwrap();
        assert_eq!(gone.code(), 1, "{}", gone.both());
    });
}
