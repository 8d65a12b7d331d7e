//! A create that is killed on its way, and one that goes on.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::json;

use crate::support::{Bundle, wait};

/// A create that gets no further than to the console socket, where nobody listens any more: cgroups are
/// made, and the process is.
struct Stuck {
    b: Bundle,
    create: Child,
    queue: (UnixListener, Vec<UnixStream>),
}

fn stuck() -> Stuck {
    let mut b = Bundle::new("sleep 1000");
    b.config["process"]["terminal"] = json!(true);
    b.save();
    let path = b.path("console");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let queue = (listener, vec![UnixStream::connect(&path).unwrap()]);
    let mut command = b.command(&["create", "--console-socket", "console", &b.id]);
    let create = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let state = b.path("state").join(&b.id).join("state.json");
    let main = b.cgroup("devices").join("cgroup.procs");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    wait(|| state.exists() && !read(&main).is_empty(), "the process in its cgroup");
    let pid: i32 = read(&main).trim().parse().unwrap();
    // It has done all and waits for its start.
    let link = |fd: std::io::Result<std::fs::DirEntry>| std::fs::read_link(fd.unwrap().path());
    wait(
        || {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let fds: Vec<_> = fds.filter_map(|fd| link(fd).ok()).collect();
            fds.len() == 4 && fds.iter().any(|f| f.ends_with("exec.fifo"))
        },
        "the process at its fifo",
    );
    Stuck { b, create, queue }
}

#[test]
fn what_a_killed_create_leaves_is_found_and_deleted() {
    let Stuck { b, mut create, queue: _queue } = stuck();
    create.kill().unwrap();
    create.wait().unwrap();
    assert_eq!(b.state()["status"], "stopped");
    let got = b.fails(&["create", "--console-socket", "console", &b.id]);
    assert!(got.contains("container with given ID already exists"), "{got}");
    assert!(got.contains("its create was cut short: delete it first"), "{got}");
    assert!(b.fails(&["start", &b.id]).contains("create was cut short"));
    assert!(b.fails(&["kill", "--all", &b.id]).contains("create was cut short"));
    let devices = b.cgroup("devices");
    assert!(devices.exists());
    b.ok(&["delete", &b.id]);
    assert!(!devices.exists() && !b.cgroup("pids").exists());
    assert!(!b.path("state").join(&b.id).exists());
    // Before there is a record.
    std::fs::create_dir(b.path("state").join(&b.id)).unwrap();
    assert!(b.fails(&["create", &b.id]).contains("delete it first"));
    assert!(b.fails(&["delete", &b.id]).contains("does not exist"));
    assert!(!b.path("state").join(&b.id).exists());
}

/// As [`stuck`], killed; its process, too: the cgroup is empty then, and free to take. With its cgroup.procs.
fn killed() -> (Bundle, std::path::PathBuf) {
    let Stuck { b, mut create, queue: _queue } = stuck();
    create.kill().unwrap();
    create.wait().unwrap();
    let procs = b.cgroup("devices").join("cgroup.procs");
    let pid: i32 = std::fs::read_to_string(&procs).unwrap().trim().parse().unwrap();
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    wait(|| std::fs::read_to_string(&procs).unwrap().is_empty(), "the end of its process");
    (b, procs)
}

#[test]
fn a_cgroup_that_another_has_taken_since_is_the_others() {
    let (b, procs) = killed();
    let mut other = Bundle::new("sleep 1000");
    other.config["linux"]["cgroupsPath"] = b.config["linux"]["cgroupsPath"].clone();
    other.start();
    b.ok(&["delete", "-f", &b.id]);
    assert!(!b.path("state").join(&b.id).exists());
    assert_eq!(other.state()["status"], "running");
    assert!(!std::fs::read_to_string(&procs).unwrap().is_empty());
    other.ok(&["delete", "-f", &other.id]);
    assert!(!b.cgroup("devices").exists());
}

/// It leaves no mark there.
#[test]
fn a_cgroup_that_runc_has_taken_since_is_runcs() {
    let (b, procs) = killed();
    let mut other = Bundle::new("sleep 1000");
    other.config["linux"]["cgroupsPath"] = b.config["linux"]["cgroupsPath"].clone();
    other.save();
    let runc = |args: &[&str]| {
        let mut runc = std::process::Command::new("/usr/sbin/runc");
        runc.arg("--root").arg(other.path("runc")).args(args).current_dir(other.path(""));
        let out = std::fs::File::create(other.path("out")).unwrap();
        runc.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        assert!(runc.status().unwrap().success(), "{args:?}: {}", other.out());
    };
    runc(&["run", "-d", &other.id]);
    let there = || std::fs::read_to_string(&procs).unwrap();
    let running = there();
    assert!(!running.is_empty());
    b.ok(&["delete", "-f", &b.id]);
    assert!(!b.path("state").join(&b.id).exists());
    assert_eq!(there(), running);
    runc(&["state", &other.id]);
    let state: serde_json::Value = serde_json::from_str(&other.out()).unwrap();
    runc(&["delete", "-f", &other.id]);
    assert_eq!(state["status"], "running");
    assert!(!b.cgroup("devices").exists());
}

#[test]
fn a_create_that_goes_on_is_told_from_one_that_was_killed() {
    let Stuck { b, mut create, queue: _queue } = stuck();
    assert_eq!(b.state()["status"], "creating");
    assert!(b.fails(&["start", &b.id]).contains("is being created"));
    assert!(b.fails(&["exec", &b.id, "true"]).contains("is being created"));
    assert!(b.fails(&["kill", "--all", &b.id, "KILL"]).contains("is being created"));
    let got = b.fails(&["create", "--console-socket", "console", &b.id]);
    assert!(got.contains("already exists") && !got.contains("cut short"), "{got}");
    assert!(b.fails(&["delete", &b.id]).contains("is not stopped: creating"));
    assert!(b.cgroup("devices").exists() && create.try_wait().unwrap().is_none());
    create.kill().unwrap();
    create.wait().unwrap();
    b.ok(&["delete", "-f", &b.id]);
    assert!(!b.cgroup("devices").exists());
}

/// So it is of one that has run, and whose id is still there.
#[test]
fn a_cgroup_of_a_stopped_container_that_another_has_taken_is_the_others() {
    let mut b = Bundle::new("true");
    b.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "pid");
    b.start();
    b.until("stopped");
    let mut other = Bundle::new("sleep 1000");
    other.config["linux"]["cgroupsPath"] = b.config["linux"]["cgroupsPath"].clone();
    other.start();
    assert!(b.fails(&["kill", &b.id, "KILL"]).contains("not running"));
    assert!(b.fails(&["kill", "--all", &b.id, "KILL"]).contains("not running"));
    b.ok(&["delete", &b.id]);
    assert!(!b.path("state").join(&b.id).exists());
    assert_eq!(other.state()["status"], "running");
    other.ok(&["delete", "-f", &other.id]);
}

/// They are run when all is gone and another may have the id.
#[test]
fn poststop_hooks_of_a_create_that_failed_come_last() {
    let mut b = Bundle::new("true");
    let dir = b.path("state").join(&b.id);
    let line = format!(
        "cat > /dev/null; test -e {} || echo gone > {}",
        dir.display(),
        b.path("seen").display()
    );
    b.config["hooks"]["poststop"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
    b.config["hooks"]["prestart"] = json!([{"path": "/bin/false"}]);
    b.save();
    b.fails(&["create", &b.id]);
    assert_eq!(std::fs::read_to_string(b.path("seen")).unwrap(), "gone\n");
}

fn spawn(b: &Bundle, args: &[&str]) -> Child {
    b.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn is_gone(b: &Bundle) -> bool {
    !b.path("state").join(&b.id).exists()
        && !b.cgroup("devices").exists()
        && !b.cgroup("pids").exists()
}

fn has_open(pid: u32, path: &Path) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|link| link == path)
}

/// There is no record yet, by which it could be killed: it is waited for.
#[test]
fn a_create_that_has_only_begun_is_deleted_whole() {
    let b = Bundle::new("sleep 1000");
    let config = b.path("config.json");
    std::fs::remove_file(&config).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &config, kind, 0o600.into(), 0).unwrap();
    let mut create = spawn(&b, &["create", "--pid-file", "pid", &b.id]);
    let dir = b.path("state").join(&b.id);
    wait(|| has_open(create.id(), &dir), "the create's lock");
    let mut delete = spawn(&b, &["delete", "-f", &b.id]);
    wait(|| has_open(delete.id(), &dir), "the delete at the lock");
    std::fs::write(&config, b.config.to_string()).unwrap();
    assert!(create.wait().unwrap().success());
    assert!(delete.wait().unwrap().success());
    let pid = std::fs::read_to_string(b.path("pid")).unwrap();
    assert!(!Path::new(&format!("/proc/{pid}/ns/mnt")).exists(), "its process lives");
    assert!(is_gone(&b));
}

#[test]
fn a_create_that_goes_on_is_deleted_with_force() {
    let Stuck { b, mut create, queue: _queue } = stuck();
    let since = Instant::now();
    b.ok(&["delete", "-f", &b.id]);
    assert!(!create.wait().unwrap().success());
    assert!(is_gone(&b));
    // Half of what the socket would be waited for.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn a_create_that_waits_for_a_hook_is_deleted_with_force() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut b = Bundle::new("sleep 1000");
        let at = b.path("hook").display().to_string();
        let line = match kind {
            // In the container's pid namespace, with whose end it ends.
            "createContainer" => format!("touch {at}; exec sleep 1000"),
            _ => format!("echo $$ > {at}.new; mv {at}.new {at}; exec sleep 1000"),
        };
        b.config["hooks"][kind] = json!([{
            "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/bin:/usr/bin"],
        }]);
        b.save();
        let mut create = spawn(&b, &["create", &b.id]);
        wait(|| b.path("hook").exists(), "the hook");
        b.ok(&["delete", "-f", &b.id]);
        assert!(!create.wait().unwrap().success());
        assert!(is_gone(&b));
        let pid = std::fs::read_to_string(b.path("hook")).unwrap();
        let hook = Path::new("/proc").join(pid.trim()).join("ns/mnt");
        assert!(pid.is_empty() || !hook.exists(), "{kind}: the hook lives");
    }
}

/// Whoever wins: there is a container, or nothing.
#[test]
fn creates_starts_and_deletes_at_the_same_time() {
    let b = Bundle::new("sleep 1000");
    b.save();
    let (create, start) = (["create", "--pid-file", "pid", &b.id], ["start", &b.id]);
    let (delete, force) = (["delete", &b.id], ["delete", "-f", &b.id]);
    let commands: [&[&str]; 4] = [&create, &start, &delete, &force];
    for _ in 0..25 {
        let mut all: Vec<&[&str]> = [commands, commands].concat();
        let mut children = Vec::new();
        while !all.is_empty() {
            let next = all.swap_remove(rand::rng().random_range(0..all.len()));
            children.push((next[0], spawn(&b, next)));
        }
        for (name, child) in &mut children {
            let status = child.wait().unwrap();
            assert!(status.code().is_some(), "{name}: {status}");
        }
        if b.path("state").join(&b.id).exists() {
            let state = b.state();
            let (status, pid) = (&state["status"], &state["pid"]);
            assert!(status == "created" || status == "running", "{state}");
            assert!(Path::new(&format!("/proc/{pid}/ns/mnt")).exists());
            assert!(b.cgroup("devices").exists());
        }
        b.ok(&force);
        assert!(is_gone(&b));
    }
}

/// A hook that leaves a process of its own in the container's cgroup, and ends as `end` says.
fn with_straggler(end: &str) -> Bundle {
    let mut b = Bundle::new("sleep 1000");
    let line = format!(
        "echo $$ > {}/cgroup.procs; sleep 1000 & echo $! > {at}.new; mv {at}.new {at}; {end}",
        b.cgroup("devices").display(),
        at = b.path("straggler").display(),
    );
    b.config["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
    b.save();
    b
}

#[test]
fn what_a_hook_left_in_the_cgroup_goes_with_it() {
    let lives = |b: &Bundle| {
        let pid = std::fs::read_to_string(b.path("straggler")).unwrap();
        Path::new(&format!("/proc/{}/ns/mnt", pid.trim())).exists()
    };
    let b = with_straggler("exit 1");
    assert!(b.fails(&["create", &b.id]).contains("createRuntime hook #0"));
    assert!(is_gone(&b) && !lives(&b));

    let b = with_straggler("sleep 1000");
    let mut create = spawn(&b, &["create", &b.id]);
    wait(|| b.path("straggler").exists(), "the hook");
    create.kill().unwrap();
    create.wait().unwrap();
    assert!(lives(&b));
    b.ok(&["delete", &b.id]);
    assert!(is_gone(&b) && !lives(&b));
}
