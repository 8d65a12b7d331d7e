//! S01 to S03: the engine's binary, processes that join, working directories.

use super::ground::{failed, naive_join};
use super::p;
use crate::command::PROGRAM_FILES;
use crate::oci::bundle::{Bundle, DOCKER_CAPABILITIES};
use crate::oci::call::Pending;
use crate::oci::elf::{self, Arg, SysCall};
use crate::oci::{Checked, Ground, Property, has, lacks, read, same, want};
use serde_json::json;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

pub(super) const ALL: &[Property] = &[
    p("S01/entry-point-is-the-binary", entry_point),
    p("S01/opened-during-execs", opened),
    p("S01/bites", opened_bites),
    p("S02/no-host-descriptor-is-seen", descriptors),
    p("S02/no-attach-before-exec", attach),
    p("S02/bites", join_bites),
    p("S03/run-in-a-descriptor", run_in_descriptor),
    p("S03/exec-in-a-descriptor", exec_in_descriptor),
    p("S03/bites", descriptor_bites),
];

/// The runtime as a file that can be written to.
fn own_copy(g: &Ground, b: &Bundle<'_>) -> Checked<(Ground, std::path::PathBuf)> {
    let copy = b.path("runtime");
    let lock = PROGRAM_FILES.write().unwrap_or_else(PoisonError::into_inner);
    std::fs::copy(&g.runtime.argv[0], &copy).map_err(failed("copy the runtime"))?;
    drop(lock);
    let mut own = g.clone();
    own.runtime.argv[0] = copy.display().to_string();
    Ok((own, copy))
}

fn unchanged(g: &Ground, copy: &Path) -> Checked {
    let bytes = |path: &Path| std::fs::read(path).map_err(failed("read the runtime"));
    let same = bytes(copy)? == bytes(Path::new(&g.runtime.argv[0]))?;
    want(same, "the runtime's binary is another one", copy)
}

const STRONG: [&str; 4] =
    ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN"];

fn strong(b: &mut Bundle<'_>) {
    let mut all = DOCKER_CAPABILITIES.to_vec();
    all.extend(STRONG);
    b.capabilities(&all);
}

fn entry_point(g: &Ground) -> Checked {
    let holder = Bundle::new(g, "true")?;
    let (own, copy) = own_copy(g, &holder)?;
    for program in ["/evil", "/proc/self/exe"] {
        let mut b = Bundle::new(&own, "")?;
        strong(&mut b);
        b.file("evil", "#!/proc/self/exe\n", 0o755)?;
        b.config["process"]["args"] = json!([program]);
        // Whatever runs then, another process tries to write to it.
        b.run()?;
    }
    unchanged(g, &copy)
}

/// Opens what every other process runs, and writes to it when that one has ended.
const WRITER: &str = "hit() { exe=$(readlink /proc/$1/exe) || return; case $exe in */bin/busybox) return;; esac; \
    { echo $exe >> /seen; usleep 20000; echo pwned > /proc/self/fd/8; } 8< /proc/$1/exe; }; \
    echo ready; while :; do for p in /proc/[0-9]*; do ( hit ${p#/proc/} ) 2>/dev/null & done; wait; done";

fn writer(b: &mut Bundle<'_>) -> Checked<Pending> {
    strong(b);
    b.config["process"]["args"] = json!(["sh", "-c", WRITER]);
    let pending = b.start()?;
    pending.wait_for("ready")?;
    Ok(pending)
}

fn opened(g: &Ground) -> Checked {
    let holder = Bundle::new(g, "true")?;
    let (own, copy) = own_copy(g, &holder)?;
    let mut b = Bundle::new(&own, "")?;
    let _writer = writer(&mut b)?;
    let rounds = if g.long { 250 } else { 60 };
    for _ in 0..rounds {
        let four: Vec<Pending> = (0..4)
            .map(|_| b.call(&["exec", &b.id, "/bin/true"]).start())
            .collect::<Result<_, _>>()?;
        for pending in four {
            pending.wait()?.ok()?;
        }
    }
    b.end()?;
    unchanged(g, &copy)
}

/// The same against a program that joins without a protected file.
fn opened_bites(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    let victim = b.path("victim");
    let lock = PROGRAM_FILES.write().unwrap_or_else(PoisonError::into_inner);
    std::fs::copy("/bin/busybox", &victim).map_err(failed("copy busybox"))?;
    drop(lock);
    let before = std::fs::read(&victim).map_err(failed("read"))?;
    let _writer = writer(&mut b)?;
    for _ in 0..100 {
        let join = naive_join(&b, "9<victim", &["/proc/self/fd/9", "sleep", "0.05"])?;
        join.go()?;
        if std::fs::read(&victim).map_err(failed("read"))? != before {
            return b.end();
        }
    }
    want(false, "the binary is as before", read(b.root("seen")).unwrap_or_default())
}

/// Reads the names of all descriptors of all processes.
const READER: &str = "echo ready; while :; do for p in /proc/[0-9]*; do for f in $p/fd/*; do \
    readlink $f; done; done >> /seen 2>/dev/null; done";

fn reader(b: &mut Bundle<'_>) -> Checked<Pending> {
    strong(b);
    b.config["process"]["args"] = json!(["sh", "-c", READER]);
    crate::oci::write(b.path("of-the-host"), "")?;
    let pending = b.start()?;
    pending.wait_for("ready")?;
    Ok(pending)
}

fn descriptors(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    let _reader = reader(&mut b)?;
    for _ in 0..100 {
        let exec = b.call(&["exec", &b.id, "/bin/true"]);
        exec.redirects("7<of-the-host 9</ 12<of-the-host").go()?.ok()?;
    }
    lacks("descriptors that were seen", &read(b.root("seen"))?, "of-the-host")?;
    b.end()
}

/// Attaches to every pid that there may be, and asks to be told of their exec, at which they stop.
fn attacher() -> Vec<u8> {
    const SEIZE: u64 = 0x4206;
    const TRACE_EXEC: u64 = 0x10;
    const NO_HANG_ALL: u64 = 0x4000_0001;
    let mut calls: Vec<SysCall> =
        (8..60).map(|pid| elf::call(101, &[SEIZE, pid, 0, TRACE_EXEC])).collect();
    let wait = vec![Arg::Number(u64::MAX), Arg::Scratch, Arg::Number(NO_HANG_ALL), Arg::Number(0)];
    calls.push(SysCall { number: 61, args: wait });
    elf::x86_64_repeated(&calls, u64::MAX)
}

fn attached(g: &Ground) -> Checked<Bundle<'_>> {
    // The attacker has pid 1 to 3, and what joins later the next ones.
    let mut b = Bundle::new(g, "echo ready; exec /attacher")?;
    strong(&mut b);
    b.file("attacher", attacher(), 0o755)?;
    let pending = b.start()?;
    pending.wait_for("ready")?;
    Ok(b)
}

fn attach(g: &Ground) -> Checked {
    let b = attached(g)?;
    // One that is attached to before its exec never ends.
    for round in 0..40 {
        let exec = b.call(&["exec", &b.id, "/bin/true"]).limit(Duration::from_secs(3));
        let ran = exec.go();
        want(ran.is_ok(), "an exec was held at its program's start", (round, ran.is_ok()))?;
    }
    b.end()
}

/// A program that joins naively is attached to, and shows what it has open.
fn join_bites(g: &Ground) -> Checked {
    let b = attached(g)?;
    let mut held = false;
    for _ in 0..60 {
        let join = naive_join(&b, "9<config.json", &["/bin/true"])?;
        held |= join.limit(Duration::from_secs(2)).go().is_err();
        if held {
            break;
        }
    }
    want(held, "nobody was attached to", "")?;
    b.end()?;
    let mut b = Bundle::new(g, "")?;
    let _reader = reader(&mut b)?;
    for _ in 0..50 {
        naive_join(&b, "7<of-the-host", &["/bin/sleep", "0.05"])?.go()?;
        if read(b.root("seen"))?.contains("of-the-host") {
            return b.end();
        }
    }
    want(false, "no descriptor was seen", "")
}

/// Descriptors 3 to 64 on the host's root.
fn open_roots() -> String {
    (3..65).map(|fd| format!("{fd}</ ")).collect()
}

fn run_in_descriptor(g: &Ground) -> Checked {
    for fd in 3..65 {
        let mut b =
            Bundle::new(g, "ls -d ../../../../../../usr/share 2>/dev/null; ls -d usr/share")?;
        b.config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        b.save()?;
        let ran = b.call(&["run", &b.id]).redirects(&open_roots()).go()?;
        want(ran.code != 0 && ran.stdout.is_empty(), "run", (fd, ran.to_string()))?;
        b.nothing_left()?;
    }
    Ok(())
}

fn exec_in_descriptor(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    for fd in 3..65 {
        let cwd = format!("/proc/self/fd/{fd}");
        let exec = b.call(&["exec", "--cwd", &cwd, &b.id, "ls", "-d", "usr/share"]);
        let ran = exec.redirects(&open_roots()).go()?;
        want(ran.code != 0 && ran.stdout.is_empty(), "exec", (fd, ran.to_string()))?;
    }
    let exec = b.call(&["exec", &b.id, "ls", "/proc/self/fd"]);
    let got = exec.redirects(&open_roots()).go()?.ok()?;
    same("descriptors inside", got.split_whitespace().count(), 4)?;
    b.end()
}

fn descriptor_bites(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    let script = "cd /proc/self/fd/40 && ls -d usr/share";
    let ran = naive_join(&b, &open_roots(), &["/bin/sh", "-c", script])?.go()?;
    has("the host's files", &ran.stdout, "usr/share")?;
    b.end()
}
