//! Attacks on our runtime by itself ([`testkit::oci::security`]), and from inside containers of the whole
//! engine on what its default profile has to keep shut.

use crate::conformance::{our_name, ours, suite};
use crate::list;
use testkit::engine::Daemon;
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::oci::elf::{self, Arg, SysCall, call, text};
use testkit::oci::{Outcome, Verdict};
use testkit::sandbox::Sandbox;

#[test]
fn on_our_runtime() {
    let mut flags = vec!["--security"];
    if std::env::var_os("CONFORMANCE_LONG").is_some() {
        flags.push("--long");
    }
    let verdicts = suite("", &flags, &ours());
    let known = list::of(&our_name());
    let of = |outcome| verdicts.iter().filter(|v: &&Verdict| v.outcome == outcome).count();
    eprintln!(
        "{} attacks and proofs as they should be, {} not, {} skipped",
        of(Outcome::Pass),
        of(Outcome::Fail),
        of(Outcome::Skip)
    );
    for verdict in verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Skip) {
        eprintln!("skipped: {}: {}", verdict.property, verdict.text);
    }
    let complaints = list::complaints(&verdicts, &known);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// S17: a call that the default profile has to refuse, and whether a container without a profile and
/// with all capabilities gets further: that shows that it was the profile.
struct Shut {
    name: &'static str,
    /// For 64 bit, or 32.
    wide: bool,
    calls: Vec<SysCall>,
}

const EPERM: i64 = -1;

/// The names of what is asked here.
pub(crate) fn names() -> Vec<&'static str> {
    shut().iter().map(|program| program.name).collect()
}

fn shut() -> Vec<Shut> {
    let sixty_four =
        |name, number, args: &[u64]| Shut { name, wide: true, calls: vec![call(number, args)] };
    let new_user = 0x1000_0000;
    let mount = |kind: &str| SysCall {
        number: 165,
        args: vec![text("none"), text("/tmp"), text(kind), Arg::Number(0), Arg::Number(0)],
    };
    // socket(2) by the old door: its arguments are behind a pointer, where no filter looks.
    let behind: Vec<u8> = [38u32, 5, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let multiplexed = vec![Arg::Number(1), Arg::Data(behind)];
    vec![
        sixty_four("S17/socket-of-AF_ALG", 41, &[38, 5, 0]),
        sixty_four("S17/socket-of-AF_VSOCK", 41, &[40, 1, 0]),
        // The kernel looks at the lower half only.
        sixty_four("S17/socket-of-AF_ALG-and-more", 41, &[0x7_0000_0026, 5, 0]),
        sixty_four("S17/socket-of-AF_VSOCK-and-more", 41, &[0x7_0000_0028, 1, 0]),
        sixty_four("S17/unshare-user", 272, &[new_user]),
        sixty_four("S17/clone-user", 56, &[new_user | 17, 0, 0, 0, 0]),
        sixty_four("S17/bpf", 321, &[0, 0, 0]),
        sixty_four("S17/keyctl", 250, &[0, 0xffff_fffd, 0]),
        sixty_four("S17/add_key", 248, &[0, 0, 0, 0, 0]),
        sixty_four("S17/userfaultfd", 323, &[0]),
        sixty_four("S17/perf_event_open", 298, &[0, 0, 0, 0, 0]),
        sixty_four("S17/open_by_handle_at", 304, &[0, 0, 0]),
        sixty_four("S17/io_uring_setup", 425, &[1, 0]),
        Shut { name: "S17/mount-of-cgroups", wide: true, calls: vec![mount("cgroup")] },
        Shut {
            name: "S17/32-bit-socket-of-AF_ALG",
            wide: false,
            calls: vec![call(359, &[38, 5, 0])],
        },
        Shut {
            name: "S17/32-bit-socket-of-AF_VSOCK",
            wide: false,
            calls: vec![call(359, &[40, 1, 0])],
        },
        Shut {
            name: "S17/32-bit-socketcall-of-AF_ALG",
            wide: false,
            calls: vec![SysCall { number: 102, args: multiplexed }],
        },
        Shut {
            name: "S17/32-bit-keyctl",
            wide: false,
            calls: vec![call(288, &[0, 0xffff_fffd, 0])],
        },
    ]
}

/// Runs each program in one container with these flags; its first answer, in order.
fn answers(daemon: &Daemon<'_>, image: &str, flags: &[&str], programs: &[Shut]) -> Vec<i64> {
    let script = "cd /probes; for p in $(ls | sort -n); do ./$p | od -An -v -t x1 | tr -d ' \\n'; echo; done";
    let mut args = vec!["run", "--rm", "--network", "none", "-v", "/run/probes:/probes:ro"];
    args.extend(flags);
    args.extend([image, "sh", "-c", script]);
    let output = daemon.docker(args).ok().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), programs.len(), "{}", output.both());
    let parsed = lines.iter().zip(programs).map(|(line, program)| {
        let bytes: Vec<u8> = (0..line.len() / 2)
            .filter_map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).ok())
            .collect();
        // A program that was killed has said nothing.
        elf::results(&bytes, program.wide).first().copied().unwrap_or(i64::MIN)
    });
    parsed.collect()
}

#[test]
fn s17_the_default_profile_keeps_shut_what_it_should() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let image = Busybox::new().unwrap();
    let mut daemon = Daemon::gantry(&sandbox, &[]).unwrap();
    daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    let mut programs = shut();
    let closed = programs.len();
    // What has to work still: TCP of 32 and of 64 bit.
    programs.push(Shut { name: "S17/tcp-works", wide: true, calls: vec![call(41, &[2, 1, 0])] });
    programs.push(Shut {
        name: "S17/32-bit-tcp-works",
        wide: false,
        calls: vec![call(359, &[2, 1, 0])],
    });
    for (at, program) in programs.iter().enumerate() {
        let path = format!("/run/probes/{at}");
        let file =
            if program.wide { elf::x86_64(&program.calls) } else { elf::i386(&program.calls) };
        sandbox.write(&path, file).unwrap();
        sandbox.command("chmod", ["755", &path]).ok().unwrap();
    }
    let kept = answers(&daemon, &image.reference, &[], &programs);
    let open = ["--security-opt", "seccomp=unconfined", "--cap-add", "ALL"];
    let free = answers(&daemon, &image.reference, &open, &programs);
    let (mut bites, mut blunt, mut verdicts) = (0, Vec::new(), Vec::new());
    for (at, program) in programs.iter().enumerate() {
        let (kept, free) = (kept[at], free[at]);
        // Refused by the filter, perhaps as unknown, so that a library goes another way.
        let holds = if at < closed { [EPERM, -38, -13].contains(&kept) } else { kept >= 0 };
        verdicts.push(Verdict {
            property: program.name.to_owned(),
            outcome: if holds { Outcome::Pass } else { Outcome::Fail },
            text: format!("the answer is {kept}, without a profile {free}"),
            took_ms: 0,
        });
        if at < closed && free != kept {
            bites += 1;
        } else if at < closed {
            blunt.push(program.name);
        }
    }
    let complaints = list::complaints(&verdicts, &list::of("gantry"));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    eprintln!("{bites} of {closed} calls get further without a profile; not here: {blunt:?}");
    assert!(bites > closed / 2, "with a profile {kept:?}, without one {free:?}");
    release_agent(&daemon, &image.reference);
    daemon.stop().unwrap();
    drop(daemon);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// The file that makes the host's kernel run a program can be neither written nor mounted anew.
fn release_agent(daemon: &Daemon<'_>, image: &str) {
    let script = "for f in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do \
                  [ -e $f ] && { echo /x > $f; } 2>/dev/null && echo written $f; done; \
                  mkdir /tmp/m; for c in memory pids cpu rdma; do \
                  mount -t cgroup -o $c cgroup /tmp/m 2>/dev/null && echo mounted $c; done; echo done";
    for flags in [&[][..], &["--security-opt", "seccomp=unconfined"], &["--cgroupns", "host"]] {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend([image, "sh", "-c", script]);
        assert_eq!(daemon.docker(args).ok().unwrap().text(), "done", "{flags:?}");
    }
    // Who has the capability mounts it: that is what the others lack.
    let mut args = vec!["run", "--rm", "--network", "none", "--cap-add", "SYS_ADMIN"];
    args.extend(["--security-opt", "seccomp=unconfined", image, "sh", "-c", script]);
    let got = daemon.docker(args).ok().unwrap().text();
    assert!(got.contains("mounted"), "{got}");
}

/// Tells of each socket below /run/gantry, and of each without a path, how another user fares with it.
const OTHER_USER: &str = r#"
import os, socket, stat
paths = [os.path.join(at, name) for at, _, names in os.walk("/run/gantry") for name in names]
paths = [path for path in paths if stat.S_ISSOCK(os.lstat(path).st_mode)]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for line in open("/proc/net/unix").read().splitlines()[1:]:
    field = line.split()
    # A connected one takes nothing from others.
    if len(field) > 7 and field[7].startswith("@") and field[5] != "03":
        paths.append(field[7])
for name in paths:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(2)
    try:
        peer.connect(name.replace("@", "\0", 1) if name.startswith("@") else name)
        peer.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        print("answers" if peer.recv(1) else "turned-away", name)
    except (PermissionError, ConnectionRefusedError):
        print("refused", name)
    except (BrokenPipeError, ConnectionResetError):
        print("turned-away", name)
    except TimeoutError:
        print("silent", name)
"#;

/// S16: those of our sockets that have a path are closed to other users, and a shim turns them away even
/// if its socket's mode does not. Of those without a path, which whoever is on the host's network can
/// reach, there are the claims on a bridge's name only, which no one reads from.
#[test]
fn s16_sockets_are_closed_to_others() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let image = Busybox::new().unwrap();
    let look = || sandbox.command("python3", ["-c", OTHER_USER]).ok().unwrap().lines();
    assert_eq!(look(), Vec::<String>::new(), "before there is an engine");
    let mut daemon = Daemon::gantry(&sandbox, &[]).unwrap();
    daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    let run =
        ["run", "-d", "--name", "box", "--network", "host", &image.reference, "sleep", "1000"];
    daemon.docker(run).ok().unwrap();
    let closed = look();
    let shim = |line: &&String| line.contains("/s/");
    assert!(closed.iter().any(|line| line.ends_with("/gantry.sock")), "{closed:?}");
    assert!(closed.iter().filter(shim).count() > 0, "no socket of a shim: {closed:?}");
    let claim = |line: &str| {
        line.starts_with("refused @gantry/bridge/") || line.starts_with("silent @gantry/bridge/")
    };
    let kept = |line: &String| claim(line) || line.starts_with("refused /run/gantry/");
    assert!(closed.iter().all(kept), "{closed:?}");
    // The same with modes that let everybody in: the daemon answers, which shows that the look bites, and
    // a shim does not.
    let open = "find /run/gantry -type d -exec chmod a+rx {} +; find /run/gantry -type s -exec chmod a+rw {} +";
    sandbox.shell(open).ok().unwrap();
    let opened = look();
    let answers = |line: &String| line.starts_with("answers ") && line.ends_with("/gantry.sock");
    assert!(opened.iter().any(answers), "{opened:?}");
    let turned_away = |line: &String| line.starts_with("turned-away ");
    assert!(opened.iter().filter(shim).all(turned_away), "{opened:?}");
    daemon.docker(["rm", "-f", "box"]).ok().unwrap();
    daemon.stop().unwrap();
    drop(daemon);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// S18: docker's own lists, in a container of the engine.
#[test]
fn s18_the_default_paths_are_shut() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let image = Busybox::new().unwrap();
    let mut daemon = Daemon::gantry(&sandbox, &[]).unwrap();
    daemon.docker(["load"]).stdin(image.docker_archive()).ok().unwrap();
    let masked = "/proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats \
                  /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware \
                  /sys/devices/virtual/powercap";
    let read_only = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger";
    let script = format!(
        "for p in {masked}; do if [ -d $p ]; then [ -z \"$(ls -A $p)\" ] || echo full $p; \
         elif [ -e $p ]; then [ -z \"$(head -c 9 $p)\" ] || echo full $p; fi; done; \
         for p in {read_only}; do [ ! -e $p ] || grep -q \" $p ro\" /proc/self/mountinfo || \
         echo writable $p; done; n=$(cat /proc/sys/kernel/pid_max); \
         {{ echo $n > /proc/sys/kernel/pid_max; }} 2>/dev/null && echo written; echo done"
    );
    let walk = |flags: &[&str]| {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend([image.reference.as_str(), "sh", "-c", &script]);
        daemon.docker(args).ok().unwrap().text()
    };
    assert_eq!(walk(&[]), "done");
    let open = walk(&["--security-opt", "systempaths=unconfined"]);
    assert!(open.contains("full /proc/") && open.contains("writable"), "{open}");
    daemon.stop().unwrap();
    drop(daemon);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}
