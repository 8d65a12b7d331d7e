//! Containers that do what they can to hold up their shim.

use std::time::Duration;

use protos::shim as api;

use crate::support::{Answer, Task, Ttrpc, World, eventually, isolated, process, random_name};

/// Stops whatever is new in the pid namespace.
const STOPPER: &str = "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; \
                       [ $p = 1 ] || kill -STOP $p; done; done 2>/proc/1/fd/1";

/// Starts an exec on a connection of its own.
fn start_aside(task: &Task, exec: &str, timeout: Option<Duration>) -> Aside {
    let mut ttrpc = Ttrpc::connect(&task.socket);
    ttrpc.timeout = timeout;
    let request = api::StartRequest { id: task.id.clone(), exec_id: exec.into() };
    std::thread::spawn(move || ttrpc.call("Start", &request))
}

type Aside = std::thread::JoinHandle<Answer<api::StartResponse>>;

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
}

fn pids(task: &mut Task) -> Vec<u32> {
    let request = api::PidsRequest { id: task.id.clone() };
    let answer: api::PidsResponse = task.call("Pids", &request).unwrap();
    answer.processes.into_iter().map(|p| p.pid).collect()
}

/// Whether anything in this pid namespace, which is the test's own, is stopped before it has become the
/// program that was asked for: runc's processes can be before they are in the container's cgroup.
fn is_one_held() -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.any(|pid| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        is_stopped(pid) && !exe.ends_with("bin/busybox")
    })
}

/// So often an exec gets past who wants to stop it, at most.
const ATTEMPTS: usize = 300;

/// Starts execs until one is held up on its way; those that got past it are killed.
fn held_up(task: &mut Task, timeout: Option<Duration>) -> (String, Aside) {
    for _ in 0..ATTEMPTS {
        let exec = random_name("e");
        task.exec(&exec, &process(&["/bin/sleep", "1000"]), "", "");
        let started = start_aside(task, &exec, timeout);
        eventually("the exec is started or held", || started.is_finished() || is_one_held());
        if !started.is_finished() && task.state(&exec).status == api::status::CREATED {
            return (exec, started);
        }
        drop(started.join().unwrap());
        end(task, &exec);
    }
    panic!("none of {ATTEMPTS} execs was stopped on its way");
}

/// Kills an exec that was started, and deletes it.
fn end(task: &mut Task, exec: &str) {
    if task.kill(exec, 9).is_ok() {
        task.wait(exec);
    }
    task.delete(exec).unwrap();
}

#[test]
fn a_stopped_exec_stops_nothing_else() {
    isolated("hostile::a_stopped_exec_stops_nothing_else", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let log = world.path("c.log");
        let script = format!("(while :; do echo tick; done) & {STOPPER}");
        // The ticking one is a child that must go on.
        let script = script.replace("[ $p = 1 ]", "[ $p = 1 ] || [ $p = $! ]");
        let mut task = world.create(&id, &["/bin/sh", "-c", &script], |r| {
            r.stdout = format!("gantry://json-file{}?max-size=100000", log.display());
        });
        task.start("").unwrap();
        let patience = Duration::from_secs(2);
        let mut held = 0;
        for _ in 0..ATTEMPTS {
            let (exec, started) = held_up(&mut task, Some(patience));
            let written = || std::fs::metadata(&log).unwrap().modified().unwrap();
            let (logged, mut answers, mut goes_on) = (written(), 0, false);
            eventually("the start ends", || {
                assert_eq!(task.state("").status, api::status::RUNNING);
                if started.is_finished() {
                    return true;
                }
                answers += 1;
                goes_on |= written() > logged;
                false
            });
            let Err(refusal) = started.join().unwrap() else {
                // It was stopped right after it had reached its program.
                end(&mut task, &exec);
                continue;
            };
            assert!(refusal.message.contains("not reached in time"), "{}", refusal.message);
            // While one call waits, others are answered.
            assert!(answers >= 3, "{answers} answers");
            assert!(goes_on, "no output");
            // Nothing of the attempt stays, in the container or beside it.
            eventually("what was stopped is gone", || {
                !pids(&mut task).iter().any(|pid| is_stopped(*pid))
            });
            assert_eq!(task.wait(&exec), 255);
            task.delete(&exec).unwrap();
            held += 1;
            if held == 2 {
                break;
            }
        }
        assert_eq!(held, 2);
        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137);
        task.finish();
    });
}

#[test]
fn a_held_exec_ends_with_its_container() {
    isolated("hostile::a_held_exec_ends_with_its_container", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let mut task = world.create(&id, &["/bin/sh", "-c", STOPPER], |_| {});
        task.start("").unwrap();
        let (exec, started) = held_up(&mut task, None);
        // Deleting the exec ends its start.
        task.delete(&exec).unwrap();
        let refusal = started.join().unwrap().unwrap_err();
        assert!(refusal.message.contains("was deleted"), "{}", refusal.message);
        eventually("what was stopped is gone", || {
            !pids(&mut task).iter().any(|pid| is_stopped(*pid))
        });
        let (_, started) = held_up(&mut task, None);
        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137);
        // Either is true: that it was not started, and that it was and has been killed. The answer comes
        // within the test's patience, which is the connection's.
        drop(started.join().unwrap());
        task.finish();
    });
}
