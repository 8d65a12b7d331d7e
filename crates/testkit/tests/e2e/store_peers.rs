//! Our store below Debian's dockerd, and our shim below Debian's containerd.

use testkit::engine::{Daemon, gantry_binary};
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::random;
use testkit::sandbox::Sandbox;

const SOCKET: &str = "/run/containerd/containerd.sock";

fn dockerd_on_our_store(release: Release) {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    peer::use_release(&sandbox, release).unwrap();
    sandbox.link("containerd", &gantry_binary().unwrap()).unwrap();
    let mut store = Daemon::start(&sandbox, ["containerd"], SOCKET).unwrap();
    let argv = ["dockerd", "--containerd", SOCKET];
    let mut dockerd = Daemon::start(&sandbox, argv, "/run/docker.sock").unwrap();
    let docker = |args: &[&str]| dockerd.docker(args.iter().copied()).ok().unwrap().text();
    let image = Busybox::new().unwrap();
    dockerd.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    let (name, code) = (random::name("on-ours"), random::exit_code());

    let seen = docker(&["run", "--rm", &image.reference, "cat", &image.marker_path]);
    assert_eq!(seen, image.marker);
    let script = format!("exit {code}");
    let run = ["run", "--rm", &image.reference, "sh", "-c", &script];
    assert_eq!(dockerd.docker(run).output().unwrap().code(), code);
    let script = format!("trap 'exit {code}' TERM; echo begin; while :; do sleep 0.05; done");
    let id = docker(&["run", "-d", "--name", &name, &image.reference, "sh", "-c", &script]);
    // The store holds it, in dockerd's namespace.
    let tasks = ["-n", "moby", "tasks", "ls", "-q"];
    assert_eq!(sandbox.command("ctr", tasks).ok().unwrap().lines(), [id]);
    assert_eq!(docker(&["ps", "--format", "{{.Names}}"]), name);
    assert_eq!(docker(&["exec", &name, "cat", &image.marker_path]), image.marker);
    let exec = ["exec", name.as_str(), "sh", "-c", "exit 7"];
    assert_eq!(dockerd.docker(exec).output().unwrap().code(), 7);
    docker(&["pause", &name]);
    docker(&["unpause", &name]);
    docker(&["stop", &name]);
    let state = docker(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", &name]);
    assert_eq!(state, format!("exited {code}"));
    docker(&["rm", &name]);
    assert_eq!(docker(&["ps", "-aq"]), "");
    assert_eq!(sandbox.command("ctr", tasks).ok().unwrap().text(), "");
    dockerd.stop().unwrap();
    store.stop().unwrap();
    drop((dockerd, store));
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

#[test]
fn dockerd_of_bookworm_runs_containers_on_our_store() {
    dockerd_on_our_store(Release::Bookworm);
}

#[test]
fn dockerd_of_trixie_runs_containers_on_our_store() {
    dockerd_on_our_store(Release::Trixie);
}

/// And our store through Debian's shim.
#[test]
fn shims_are_exchangeable() {
    for (ours, runtime) in
        [(false, "io.containerd.gantry.v2"), (true, "/usr/bin/containerd-shim-runc-v2")]
    {
        let sandbox = Sandbox::new().unwrap();
        peer::use_release(&sandbox, Release::Bookworm).unwrap();
        sandbox.link("containerd-shim-gantry-v2", &gantry_binary().unwrap()).unwrap();
        if ours {
            sandbox.link("containerd", &gantry_binary().unwrap()).unwrap();
        }
        let daemon = Daemon::start(&sandbox, ["containerd"], SOCKET).unwrap();
        let ctr = |args: &[&str]| sandbox.command("ctr", args.iter().copied());
        let image = Busybox::new().unwrap();
        sandbox.write("/run/image.tar", image.oci_archive()).unwrap();
        ctr(&["images", "import", "/run/image.tar"]).ok().unwrap();
        let reference = ctr(&["images", "ls", "-q"]).ok().unwrap().text();
        let (name, code) = (random::name("shim"), random::exit_code());
        let run = ["run", "--rm", "--runtime", runtime, &reference, &name];
        let seen = ctr(&[&run[..], &["cat", &image.marker_path]].concat()).ok().unwrap();
        assert_eq!(seen.text(), image.marker, "{runtime}");
        let script = format!("exit {code}");
        let ended = ctr(&[&run[..], &["sh", "-c", &script]].concat()).output().unwrap();
        assert_eq!(ended.code(), code, "{runtime}: {}", ended.both());
        let run = ["run", "-d", "--runtime", runtime, &reference, &name, "sleep", "1000"];
        ctr(&run).ok().unwrap();
        let exec = ["tasks", "exec", "--exec-id", "e", &name, "cat", &image.marker_path];
        assert_eq!(ctr(&exec).ok().unwrap().text(), image.marker, "{runtime}");
        // Not to be found in the command line of the search itself.
        let program =
            if ours { "[c]ontainerd-shim-runc-v2" } else { "[c]ontainerd-shim-gantry-v2" };
        let script = format!("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c {program}");
        sandbox.shell(&script).ok().unwrap();
        ctr(&["tasks", "rm", "-f", &name]).ok().unwrap();
        ctr(&["containers", "rm", &name]).ok().unwrap();
        drop(daemon);
        sandbox.close().unwrap();
    }
}
