//! A create that is killed on its way, and one that goes on.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};

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

#[test]
fn a_create_that_goes_on_is_told_from_one_that_was_killed() {
    let Stuck { b, mut create, queue: _queue } = stuck();
    assert_eq!(b.state()["status"], "creating");
    assert!(b.fails(&["start", &b.id]).contains("is being created"));
    assert!(b.fails(&["exec", &b.id, "true"]).contains("is being created"));
    let got = b.fails(&["create", "--console-socket", "console", &b.id]);
    assert!(got.contains("already exists") && !got.contains("cut short"), "{got}");
    assert!(b.fails(&["delete", &b.id]).contains("is not stopped: creating"));
    assert!(b.cgroup("devices").exists() && create.try_wait().unwrap().is_none());
    create.kill().unwrap();
    create.wait().unwrap();
    b.ok(&["delete", "-f", &b.id]);
    assert!(!b.cgroup("devices").exists());
}
