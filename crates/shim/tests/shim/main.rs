//! The shim as a whole, with a real container under it. Needs root and busybox-static; the peer
//! runs need runc.
#![allow(clippy::unwrap_used)]

mod hostile;
mod signals;
mod support;

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use protos::shim as api;
use shim::attach::kind;
use support::{Attach, Ttrpc, World, eventually, isolated, process, random_name};

const NONE: &str = "gantry://none";

#[test]
fn life_and_exit() {
    isolated("life_and_exit", |runtime| {
        let mut world = World::new(runtime);
        let code = rand::random_range(1..=120u32);
        let word = random_name("w");
        let id = random_name("c");
        let script = format!("echo {word}; echo e{word} >&2; exit {code}");
        let mut task = world.create(&id, &["/bin/sh", "-c", &script], |r| r.stdout = NONE.into());
        let created: api::TaskCreate = world.event("/tasks/create");
        assert_eq!((created.container_id.as_str(), created.pid), (id.as_str(), task.pid));
        assert_eq!(task.state("").status, api::status::CREATED);
        let attach = task.attach("", false);
        assert!(!attach.answer.terminal);
        assert_eq!(task.start("").unwrap().pid, task.pid);
        let (out, err, status) = attach.rest();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{word}\n"));
        assert_eq!(String::from_utf8(err).unwrap(), format!("e{word}\n"));
        assert_eq!(status, code);
        assert_eq!(task.wait(""), code);
        let state = task.state("");
        assert_eq!((state.status, state.exit_status), (api::status::STOPPED, code));
        let on_disk = shim::bundle::read_exit(&world.path(&id)).unwrap().unwrap();
        assert_eq!((on_disk.pid, on_disk.status), (task.pid, code));
        let started: api::TaskStart = world.event("/tasks/start");
        assert_eq!(started.pid, task.pid);
        let exit: api::TaskExit = world.event("/tasks/exit");
        assert_eq!((exit.id.as_str(), exit.exit_status), (id.as_str(), code));
        // Afterwards: what has ended says so, in the words that clients look for.
        let refusal = task.kill("", 15).unwrap_err();
        assert_eq!(refusal.code, 5);
        assert!(refusal.message.contains("process already finished"), "{}", refusal.message);
        assert_eq!(task.start("").unwrap_err().code, 9);
        let (_, _, again) = task.attach("", false).rest();
        assert_eq!(again, code);
        assert!(world.path(&id).join("rootfs/bin/busybox").exists());
        task.finish();
        let deleted: api::TaskDelete = world.event("/tasks/delete");
        assert_eq!(deleted.exit_status, code);
        assert!(!world.path(&id).join("rootfs/bin/busybox").exists(), "still mounted");
    });
}

#[test]
fn slow_readers_lose_nothing() {
    isolated("slow_readers_lose_nothing", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let log = world.path("c.log");
        let script = "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); done";
        let mut task = world.create(&id, &["/bin/sh", "-c", script], |r| {
            r.stdout = format!("gantry://json-file{}", log.display());
        });
        let expected: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        assert!(expected.len() > 1_000_000);
        let fast = task.attach("", false);
        let mut slow = task.attach("", false);
        let leaver = task.attach("", false);
        let reader = std::thread::spawn(move || fast.rest());
        task.start("").unwrap();
        let mut some = vec![0; 10_000];
        slow.stream.read_exact(&mut some).unwrap();
        drop(leaver);
        // The process is still there: it waits for the slow one.
        let pipe_and_buffers = 600_000;
        eventually("the process is stopped by the slow reader", || {
            let size = std::fs::metadata(&log).map(|m| m.len()).unwrap_or_default();
            std::thread::sleep(Duration::from_millis(100));
            let later = std::fs::metadata(&log).map(|m| m.len()).unwrap_or_default();
            size > 0 && size == later
        });
        assert_eq!(task.state("").status, api::status::RUNNING);
        let logged = std::fs::read_to_string(&log).unwrap().lines().count();
        assert!(logged * 10 < pipe_and_buffers, "{logged} lines went past a slow reader");
        let mut bytes = some;
        slow.stream.read_to_end(&mut bytes).unwrap();
        let (out, status) = unframe(&bytes);
        assert_eq!(status, 0);
        assert!(out == expected.as_bytes());
        let (out, _, status) = reader.join().unwrap();
        assert_eq!(status, 0);
        assert!(out == expected.as_bytes());
        let logged: String = std::fs::read_to_string(&log)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line["log"].as_str().unwrap().to_owned())
            .collect();
        assert!(logged == expected);
        assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o640);
        task.finish();
    });
}

fn unframe(mut bytes: &[u8]) -> (Vec<u8>, u32) {
    let mut out = Vec::new();
    loop {
        let (head, rest) = bytes.split_first_chunk::<{ shim::attach::HEADER_BYTES }>().unwrap();
        let (kind, length) = shim::attach::parse_header(*head);
        let (payload, rest) = rest.split_at(length);
        bytes = rest;
        match kind {
            1 => out.extend_from_slice(payload),
            6 => return (out, u32::from_be_bytes(payload.try_into().unwrap())),
            _ => panic!("frame {kind}"),
        }
    }
}

#[test]
fn stdin_reaches_the_process_and_ends() {
    isolated("stdin_reaches_the_process_and_ends", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sh", "-c", "sleep 0.3; wc -c; exit 7"], |r| {
            r.stdin = "gantry://attach".into();
            r.stdout = NONE.into();
        });
        let mut attach = task.attach("", true);
        let size = rand::random_range(1_000_000..2_000_000usize);
        let input = vec![b'x'; size];
        // Before the start: what is sent waits.
        let mut writer = Attach { stream: attach.stream.try_clone().unwrap(), ..attach };
        let sent = std::thread::spawn(move || {
            for part in input.chunks(60_000) {
                writer.send(kind::STDIN, part);
            }
            writer.send(kind::STDIN_END, &[]);
            writer
        });
        task.start("").unwrap();
        attach = sent.join().unwrap();
        let (out, _, status) = attach.rest();
        assert_eq!(String::from_utf8(out).unwrap().trim(), size.to_string());
        assert_eq!(status, 7);
        task.finish();

        // A client that closes its connection at once, with everything sent; then it is over.
        let id = random_name("c");
        let log = world.path("once.log");
        let mut task = world.create(&id, &["/bin/sh", "-c", "sleep 0.2; wc -c"], |r| {
            r.stdin = "gantry://attach?once=true".into();
            r.stdout = format!("gantry://json-file{}", log.display());
        });
        let mut attach = task.attach("", true);
        task.start("").unwrap();
        for _ in 0..10 {
            attach.send(kind::STDIN, &[b'y'; 50_000]);
        }
        drop(attach);
        assert_eq!(task.wait(""), 0);
        assert!(std::fs::read_to_string(&log).unwrap().contains("500000"));
        task.finish();
    });
}

#[test]
fn terminal_and_its_size() {
    isolated("terminal_and_its_size", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sh"], |r| {
            r.terminal = true;
            r.stdin = "gantry://attach".into();
            r.stdout = NONE.into();
        });
        let mut attach = task.attach("", true);
        assert!(attach.answer.terminal);
        task.start("").unwrap();
        let (width, height) = (rand::random_range(20..200u16), rand::random_range(20..90u16));
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        attach.send(kind::RESIZE, &size);
        attach.send(kind::STDIN, b"stty size; echo do''ne\n");
        let text = attach.until("done");
        assert!(text.contains(&format!("{height} {width}\r\n")), "{text:?}");
        let resize =
            api::ResizePtyRequest { id: id.clone(), width: 81, height: 31, ..Default::default() };
        task.call::<()>("ResizePty", &resize).unwrap();
        attach.send(kind::STDIN, b"stty size; tty; echo do''ne\n");
        let text = attach.until("done");
        assert!(text.contains("31 81\r\n"), "{text:?}");
        attach.send(kind::STDIN, b"exit 3\n");
        let (_, _, status) = attach.rest();
        assert_eq!(status, 3);
        task.finish();
    });
}

#[test]
fn a_terminals_log_is_whole_when_the_exit_is_told() {
    isolated("a_terminals_log_is_whole_when_the_exit_is_told", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let log = world.path("c.log");
        // As much as a terminal holds, about, without stopping the writer.
        let script = "stty -opost; yes 0123456789abcde | head -c 8000";
        let mut task = world.create(&id, &["/bin/sh", "-c", script], |r| {
            r.terminal = true;
            r.stdout = format!("gantry://json-file{}", log.display());
        });
        let connect = api::ConnectRequest { id: id.clone() };
        let shim: api::ConnectResponse = task.call("Connect", &connect).unwrap();
        let shim = rustix::process::Pid::from_raw(i32::try_from(shim.shim_pid).unwrap()).unwrap();
        task.start("").unwrap();
        // The shim finds the output and the exit at the same time.
        rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
        let stat = format!("/proc/{}/stat", task.pid);
        eventually("the container has ended", || {
            std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "))
        });
        rustix::process::kill_process(shim, rustix::process::Signal::CONT).unwrap();
        assert_eq!(task.wait(""), 0);
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let bytes: usize = lines.map(|l| l["log"].as_str().unwrap().len()).sum();
        assert_eq!(bytes, 8000);
        task.finish();
    });
}

#[test]
fn a_root_of_many_layers_is_mounted() {
    isolated("a_root_of_many_layers_is_mounted", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let tmpfs = world.path("tmpfs");
        std::fs::create_dir(&tmpfs).unwrap();
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&tmpfs).status();
        assert!(mounted.unwrap().success());
        let long = "x".repeat(60);
        let mut layers = vec![world.path(&format!("{id}.d")).display().to_string()];
        for n in 0..60 {
            let layer = tmpfs.join(format!("{long}/{n}/fs"));
            std::fs::create_dir_all(layer.join(format!("layer{n}"))).unwrap();
            layers.push(layer.display().to_string());
        }
        for name in ["upper", "work"] {
            std::fs::create_dir(tmpfs.join(name)).unwrap();
        }
        let mut task =
            world.create(&id, &["/bin/sh", "-c", "exit $(ls -d /layer* | wc -l)"], |r| {
                r.rootfs = vec![api::Mount {
                    kind: "overlay".into(),
                    source: "overlay".into(),
                    options: vec![
                        format!("workdir={}", tmpfs.join("work").display()),
                        format!("upperdir={}", tmpfs.join("upper").display()),
                        format!("lowerdir={}", layers.join(":")),
                    ],
                    ..Default::default()
                }];
            });
        task.start("").unwrap();
        assert_eq!(task.wait(""), 60);
        task.finish();
    });
}

#[test]
fn exec_in_a_running_container() {
    isolated("exec_in_a_running_container", |runtime| {
        let mut world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sleep", "1000"], |_| {});
        task.start("").unwrap();
        let code = rand::random_range(1..=120u32);
        let word = random_name("w");
        task.exec(
            "one",
            &process(&["/bin/sh", "-c", &format!("read a; echo got $a; exit {code}")]),
            "gantry://attach",
            NONE,
        );
        let mut attach = task.attach("one", true);
        attach.send(kind::STDIN, format!("{word}\n").as_bytes());
        let pid = task.start("one").unwrap().pid;
        let (out, _, status) = attach.rest();
        assert_eq!(String::from_utf8(out).unwrap(), format!("got {word}\n"));
        assert_eq!((status, task.wait("one")), (code, code));
        let added: api::TaskExecAdded = world.event("/tasks/exec-added");
        assert_eq!(added.exec_id, "one");
        let started: api::TaskExecStarted = world.event("/tasks/exec-started");
        assert_eq!(started.pid, pid);
        let exit: api::TaskExit = world.event("/tasks/exit");
        assert_eq!((exit.id.as_str(), exit.exit_status, exit.pid), ("one", code, pid));
        let deleted = task.delete("one").unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, code));
        assert_eq!(task.delete("one").unwrap_err().code, 5);

        // With a terminal; and a signal.
        let mut shell = process(&["/bin/sh"]);
        shell["terminal"] = true.into();
        task.exec("two", &shell, "gantry://attach", NONE);
        let mut attach = task.attach("two", true);
        task.start("two").unwrap();
        attach.send(kind::STDIN, b"tty && echo o''k\n");
        assert!(attach.until("ok").contains("/dev/"));
        let pids: api::PidsResponse =
            task.call("Pids", &api::PidsRequest { id: id.clone() }).unwrap();
        assert!(pids.processes.len() >= 2);
        task.kill("two", 9).unwrap();
        assert_eq!(attach.rest().2, 137);
        task.delete("two").unwrap();

        // What cannot be started says why, and can be removed.
        task.exec("three", &process(&["/bin/nothing-here"]), "", NONE);
        let refusal = task.start("three").unwrap_err();
        assert!(refusal.message.contains("no such file or directory"), "{}", refusal.message);
        task.delete("three").unwrap();
        assert_eq!(task.state("").status, api::status::RUNNING);

        // A process that is left behind holds the pipe: the exec's exit is told all the same.
        let script = "sleep 500 & echo here";
        task.exec("four", &process(&["/bin/sh", "-c", script]), "", NONE);
        let attach = task.attach("four", false);
        task.start("four").unwrap();
        let (out, _, status) = attach.rest();
        assert_eq!((out.as_slice(), status), (&b"here\n"[..], 0));

        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137);
        task.finish();
    });
}

#[test]
fn fifos_as_containerd_uses_them() {
    isolated("fifos_as_containerd_uses_them", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let fifo = |name: &str| {
            let path = world.path(name);
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
            assert!(path.metadata().unwrap().file_type().is_fifo());
            path
        };
        let (input, output) = (fifo("in"), fifo("out"));
        let mut task = world.create(&id, &["/bin/cat"], |r| {
            r.stdin = input.display().to_string();
            r.stdout = output.display().to_string();
        });
        task.start("").unwrap();
        let mut writer = std::fs::OpenOptions::new().write(true).open(&input).unwrap();
        let mut reader = std::fs::File::open(&output).unwrap();
        writer.write_all(b"first\n").unwrap();
        let mut buffer = [0; 6];
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"first\n");
        // The reader goes and comes; nothing is lost and nobody is killed.
        drop(reader);
        writer.write_all(b"second\n").unwrap();
        let mut reader = std::fs::File::open(&output).unwrap();
        drop(writer);
        let mut rest = String::new();
        assert_eq!(task.wait(""), 0);
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "second\n");
        task.finish();
    });
}

#[test]
fn logs_rotate_and_compress() {
    isolated("logs_rotate_and_compress", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let log = world.path("c.log");
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
        let mut task = world.create(&id, &["/bin/sh", "-c", script], |r| {
            r.stdout = format!(
                "gantry://json-file{}?max-size=200000&max-file=3&compress=true&attrs=%7B%22a%22%3A%22b%22%7D",
                log.display()
            );
        });
        task.start("").unwrap();
        assert_eq!(task.wait(""), 0);
        let text = std::fs::read_to_string(&log).unwrap();
        let last: serde_json::Value =
            serde_json::from_str(text.lines().next_back().unwrap()).unwrap();
        assert_eq!(last["log"], "line 19999\n");
        assert_eq!(last["attrs"]["a"], "b");
        let numbered = |n: u32| world.path(&format!("c.log.{n}"));
        eventually("rotated files are compressed", || {
            !numbered(1).exists() && !numbered(2).exists()
        });
        assert!(world.path("c.log.1.gz").exists());
        assert!(world.path("c.log.2.gz").exists());
        assert!(!world.path("c.log.3.gz").exists());
        task.finish();
    });
}

#[test]
fn a_killed_shim_is_cleaned_up_after() {
    isolated("a_killed_shim_is_cleaned_up_after", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sleep", "1000"], |r| r.stdout = NONE.into());
        task.start("").unwrap();
        let connect = api::ConnectRequest { id: id.clone() };
        let answer: api::ConnectResponse = task.call("Connect", &connect).unwrap();
        assert_eq!(answer.task_pid, task.pid);
        let pid = i32::try_from(answer.shim_pid).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let child = std::path::PathBuf::from(format!("/proc/{}", task.pid));
        assert!(child.exists(), "the container outlives its shim");
        let deleted = world.delete_action(&id);
        assert_eq!(deleted.exit_status, 137);
        eventually("the container is killed", || {
            std::fs::read_to_string(child.join("stat")).map_or(true, |s| s.contains(") Z "))
        });
        assert!(!world.path(&id).join("rootfs/bin/busybox").exists(), "still mounted");
        assert!(!task.socket.exists());
        // A shim can be started for it again.
        let socket = world.start_shim(&id);
        let mut ttrpc = Ttrpc::connect(&socket);
        ttrpc.create(&world.create_request(&id)).unwrap();
    });
}

#[test]
fn one_shim_for_a_pod() {
    isolated("one_shim_for_a_pod", |runtime| {
        let world = World::new(runtime);
        let pod = random_name("p");
        let ids = [random_name("a"), random_name("b")];
        let mut sockets = Vec::new();
        for id in &ids {
            world.bundle(id, &["/bin/sleep", "1000"], |spec| {
                spec["annotations"] =
                    serde_json::json!({"io.kubernetes.cri.sandbox-id": pod.clone()});
            });
            sockets.push(world.start_shim(id));
        }
        assert_eq!(sockets[0], sockets[1]);
        let mut ttrpc = Ttrpc::connect(&sockets[0]);
        for id in &ids {
            ttrpc.create(&world.create_request(id)).unwrap();
        }
        let delete = |id: &str| api::DeleteRequest { id: id.into(), ..Default::default() };
        let shutdown = api::ShutdownRequest { id: ids[0].clone(), now: false };
        // Never started: deleting kills.
        ttrpc.call::<api::DeleteResponse>("Delete", &delete(&ids[0])).unwrap();
        ttrpc.call::<()>("Shutdown", &shutdown).unwrap();
        let state = api::StateRequest { id: ids[1].clone(), ..Default::default() };
        assert_eq!(
            ttrpc.call::<api::StateResponse>("State", &state).unwrap().status,
            api::status::CREATED
        );
        ttrpc.call::<api::DeleteResponse>("Delete", &delete(&ids[1])).unwrap();
        ttrpc.call::<()>("Shutdown", &shutdown).unwrap();
        eventually("the shim ends", || !sockets[0].exists());
    });
}

#[test]
fn refusals_have_codes_and_names() {
    isolated("refusals_have_codes_and_names", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sleep", "1000"], |_| {});
        let again = task.ttrpc.create(&world.create_request(&id)).unwrap_err();
        assert_eq!(again.code, 6);
        let state = api::StateRequest { id: "nobody".into(), ..Default::default() };
        assert_eq!(task.call::<api::StateResponse>("State", &state).unwrap_err().code, 5);
        let checkpoint = api::CheckpointTaskRequest { id: id.clone(), ..Default::default() };
        let refusal = task.call::<()>("Checkpoint", &checkpoint).unwrap_err();
        assert_eq!(refusal.code, 12);
        assert!(refusal.message.contains("Checkpoint"));
        assert_eq!(task.call::<()>("Dance", &checkpoint).unwrap_err().code, 12);
        let bad = api::CreateTaskRequest {
            id: random_name("d"),
            stdout: "gantry://quantum".into(),
            ..world.create_request(&id)
        };
        assert!(task.ttrpc.create(&bad).unwrap_err().message.contains("gantry://quantum"));
        // A frame that is too long: told, then closed; others go on.
        let mut other = std::os::unix::net::UnixStream::connect(&task.socket).unwrap();
        other.write_all(&[0, 0x80, 0, 0, 0, 0, 0, 1, 1, 0]).unwrap();
        let mut answer = Vec::new();
        other.read_to_end(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("exceed maximum message size"));
        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137);
        task.finish();
    });
}

#[test]
fn published_ports_are_taken_and_forwarded() {
    isolated("published_ports_are_taken_and_forwarded", |runtime| {
        let world = World::new(runtime);
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        let id = random_name("c");
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().port();
        let host = rand::random_range(20_000..30_000u16);
        let port = shim::forward::Port {
            proto: shim::forward::Proto::Tcp,
            host_ip: "0.0.0.0".parse().unwrap(),
            host_port: host,
            container_ip: "127.0.0.1".parse().unwrap(),
            container_port: target,
        };
        let with_ports = |request: &mut api::CreateTaskRequest| {
            let ours = api::GantryOptions {
                runtime: request.options.take(),
                ports: serde_json::to_vec(&[&port]).unwrap(),
            };
            request.options = Some(api::pack(api::GANTRY_OPTIONS, &ours));
        };
        let mut task = world.create(&id, &["/bin/sleep", "1000"], with_ports);
        let mut client = std::net::TcpStream::connect(("127.0.0.1", host)).unwrap();
        let (mut conn, _) = server.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut buffer = [0; 5];
        conn.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"hello");
        // Another container cannot have it; nothing of that attempt stays.
        let other = random_name("d");
        world.bundle(&other, &["/bin/true"], |_| {});
        let socket = world.start_shim(&other);
        let mut request = world.create_request(&other);
        with_ports(&mut request);
        let refusal = Ttrpc::connect(&socket).create(&request).unwrap_err();
        let words = format!("Bind for 0.0.0.0:{host} failed: port is already allocated");
        assert_eq!(refusal.message, words);
        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137);
        task.finish();
        assert!(std::net::TcpStream::connect(("127.0.0.1", host)).is_err());
        Ttrpc::connect(&socket).create(&request).unwrap();
    });
}

#[test]
fn shims_are_small_and_clean() {
    isolated("shims_are_small_and_clean", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sleep", "1000"], |r| r.stdout = NONE.into());
        task.start("").unwrap();
        let connect = api::ConnectRequest { id: id.clone() };
        let shim: api::ConnectResponse = task.call("Connect", &connect).unwrap();
        let proc = std::path::PathBuf::from(format!("/proc/{}", shim.shim_pid));
        assert_eq!(std::fs::read_dir(proc.join("task")).unwrap().count(), 1, "one thread");
        let rollup = std::fs::read_to_string(proc.join("smaps_rollup")).unwrap();
        // Pages of its own. The program's text is not: all shims and the daemon share it.
        let private = rollup.lines().find_map(|l| l.strip_prefix("Anonymous:")).unwrap();
        let private: u64 = private.trim().trim_end_matches(" kB").parse().unwrap();
        eprintln!("private memory of a shim: {private} kB");
        // The budget is half a megabyte for a release build; this one is not optimised.
        assert!(private < 1024, "{private} kB private");
        assert_eq!(std::fs::read_link(proc.join("cwd")).unwrap(), std::path::Path::new("/"));
        let line = std::fs::read_to_string(proc.join("cmdline")).unwrap();
        let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
        assert!(words[0].ends_with("containerd-shim-gantry-v2"), "{words:?}");
        assert!(words.windows(2).any(|pair| pair == ["-id", &*id]), "{words:?}");
        assert!(!words.contains(&"start"), "{words:?}");
        let fds = format!("/proc/{}/fd", task.pid);
        eventually("the container has three descriptors", || {
            // Until its program is executed it has more.
            std::fs::read_dir(&fds).unwrap().count() == 3
        });
        task.kill("", 9).unwrap();
        task.wait("");
        task.finish();
    });
}

#[test]
fn out_of_memory_is_told_before_the_exit() {
    isolated("out_of_memory_is_told_before_the_exit", |runtime| {
        if !runtime.is_empty() {
            // Another runtime's containers are not watched.
            return;
        }
        let mut world = World::new(runtime);
        let id = random_name("c");
        // The whole input is one line, which the shell holds in memory.
        let script = "x=$(yes | head -c 200000000)";
        world.bundle(&id, &["/bin/sh", "-c", script], |spec| {
            spec["linux"]["resources"] =
                serde_json::json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
        });
        let socket = world.start_shim(&id);
        let mut ttrpc = Ttrpc::connect(&socket);
        let pid = ttrpc.create(&world.create_request(&id)).unwrap();
        let mut task = support::Task { id: id.clone(), socket, ttrpc, pid };
        task.start("").unwrap();
        assert_eq!(task.wait(""), 137);
        let mut topics = Vec::new();
        while topics.last().map(String::as_str) != Some("/tasks/exit") {
            topics.push(world.any_event().topic);
        }
        assert!(topics.contains(&"/tasks/oom".to_owned()), "{topics:?}");
        task.finish();
    });
}

#[test]
fn logging_binaries_get_both_streams() {
    isolated("logging_binaries_get_both_streams", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let (out, err) = (world.path("out"), world.path("err"));
        let logger = world.path("logger");
        let script = format!(
            "#!/bin/busybox sh\nexec 5>&-\nbusybox cat <&3 >{}\nbusybox cat <&4 >{}\n\
             echo $1 $2 $CONTAINER_ID $CONTAINER_NAMESPACE >>{}\n",
            out.display(),
            err.display(),
            out.display()
        );
        std::fs::write(&logger, script).unwrap();
        std::fs::set_permissions(&logger, std::fs::Permissions::from_mode(0o755)).unwrap();
        let word = random_name("w");
        let script = format!("echo {word}; echo e{word} >&2");
        let url = format!("binary://{}?-key=a%20b", logger.display());
        let mut task = world.create(&id, &["/bin/sh", "-c", &script], |r| {
            r.stdout = url.clone();
            r.stderr = url.clone();
        });
        task.start("").unwrap();
        assert_eq!(task.wait(""), 0);
        let expected = format!("{word}\n-key a b {id} test\n");
        eventually("the logger has written", || {
            std::fs::read_to_string(&out).is_ok_and(|text| text == expected)
        });
        assert_eq!(std::fs::read_to_string(&err).unwrap(), format!("e{word}\n"));
        task.finish();

        let id = random_name("c");
        let file = world.path("deep/er/file");
        let url = format!("file://{}", file.display());
        let mut task = world.create(&id, &["/bin/sh", "-c", &script], |r| {
            r.stdout = url.clone();
            r.stderr = url.clone();
        });
        task.start("").unwrap();
        assert_eq!(task.wait(""), 0);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(&format!("{word}\n")) && text.contains(&format!("e{word}\n")));
        task.finish();
    });
}
