//! What goes over sockets and keyrings between the caller, the runtime and the container.

use super::p;
use super::terminal::receive;
use crate::oci::bundle::Bundle;
use crate::oci::call::Call;
use crate::oci::elf::{self, Arg, SysCall, call};
use crate::oci::{Checked, Failure, Ground, Property, has, same, want};
use serde_json::json;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

pub(super) const ALL: &[Property] = &[
    p("sockets/pidfd-of-create", pidfd_create),
    p("sockets/pidfd-of-exec", pidfd_exec),
    p("sockets/notify-socket", notify),
    p("keyring/a-session-keyring-of-its-own", keyring),
    p("keyring/no-new-keyring", no_new_keyring),
];

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::Violated(format!("{what}: {error}"))
}

/// The process that a pidfd is of.
fn process_of(listener: &UnixListener) -> Checked<String> {
    listener.set_nonblocking(false).map_err(io("set blocking"))?;
    let (fd, _) = receive(listener)?;
    let info = crate::oci::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:\t"));
    pid.map(str::to_owned).ok_or_else(|| Failure::Violated(format!("no pidfd: {info}")))
}

fn pidfd_create(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    let path = b.path("pidfd.sock");
    let listener = UnixListener::bind(&path).map_err(io("bind"))?;
    b.create_with(&["--pidfd-socket", &path.display().to_string()])?;
    same("process", process_of(&listener)?, b.pid()?.to_string())
}

fn pidfd_exec(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    let path = b.path("pidfd.sock");
    let listener = UnixListener::bind(&path).map_err(io("bind"))?;
    let socket = path.display().to_string();
    b.ok(&["exec", "-d", "--pid-file", "e.pid", "--pidfd-socket", &socket, &b.id, "sleep", "99"])?;
    same("process", process_of(&listener)?, crate::oci::read(b.path("e.pid"))?)?;
    b.end()
}

/// As systemd's services do it: what the container says goes on to the caller's socket.
fn notify(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "/probe; exec sleep 1000")?;
    let address = |path: &str| {
        let mut data = vec![1, 0];
        data.extend(path.as_bytes());
        data.push(0);
        data
    };
    let place = address("/run/notify/notify.sock");
    let length = u64::try_from(place.len()).expect("a short path");
    let text = b"READY=1\n";
    let calls = [
        call(41, &[1, 2, 0]), // socket: AF_UNIX, SOCK_DGRAM
        SysCall { number: 42, args: vec![Arg::Result(0), Arg::Data(place), Arg::Number(length)] },
        SysCall { number: 1, args: vec![Arg::Result(0), Arg::Data(text.to_vec()), Arg::Number(8)] },
    ];
    b.file("probe", elf::x86_64(&calls), 0o755)?;
    b.save()?;
    let path = b.path("notify.sock");
    let listener = UnixDatagram::bind(&path).map_err(io("bind"))?;
    listener.set_read_timeout(Some(Duration::from_secs(9))).map_err(io("set a time limit"))?;
    let run = b.call(&["run", &b.id]).env("NOTIFY_SOCKET", &path.display().to_string());
    let _pending = run.start()?;
    let mut data = [0; 512];
    let count = listener.recv(&mut data).map_err(io("receive"))?;
    has("what the caller was told", &String::from_utf8_lossy(&data[..count]), "READY=1")
}

/// keyctl(2): the id of the session's keyring.
fn probe() -> Vec<u8> {
    let session = 0xffff_ffff_ffff_fffd;
    elf::x86_64(&[call(250, &[0, session, 0])])
}

/// The id in a container that is run with these flags, and that of the caller.
fn keyrings(g: &Ground, flags: &[&str]) -> Checked<(Vec<i64>, Vec<i64>)> {
    let mut b = Bundle::new(g, "")?;
    b.file("probe", probe(), 0o755)?;
    b.config["process"]["args"] = json!(["/probe"]);
    b.save()?;
    let mut args = vec!["run"];
    args.extend(flags);
    args.push(&b.id);
    let inside = elf::results(&b.rt(&args)?.raw, true);
    let argv = vec![b.root("probe").display().to_string()];
    let outside = elf::results(&Call::new(&b.path(""), argv).go()?.raw, true);
    want(inside.len() == 1 && outside.len() == 1, "answers", (&inside, &outside))?;
    if outside[0] < 0 {
        return crate::oci::skip("no keyrings here");
    }
    Ok((inside, outside))
}

fn keyring(g: &Ground) -> Checked {
    let (inside, outside) = keyrings(g, &[])?;
    want(inside[0] > 0 && inside != outside, "session keyrings", (inside, outside))
}

fn no_new_keyring(g: &Ground) -> Checked {
    let (inside, outside) = keyrings(g, &["--no-new-keyring"])?;
    same("session keyring", inside, outside)
}
