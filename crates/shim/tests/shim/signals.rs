//! What the shim blocks for its own loop is blocked in nothing that it starts.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{Task, Ttrpc, World, eventually, isolated, random_name};

fn is_clear(status: &str) -> bool {
    status.contains("SigBlk:\t0000000000000000\n")
}

#[test]
fn no_signal_is_blocked_in_what_is_started() {
    isolated("signals::no_signal_is_blocked_in_what_is_started", |runtime| {
        let world = World::new(runtime);
        let id = random_name("c");
        let (hook, logger) = (world.path("hook"), world.path("logger"));
        world.bundle(&id, &["/bin/cat", "/proc/self/status"], |spec| {
            spec["hooks"]["createRuntime"] =
                json!([{"path": "/bin/cp", "args": ["cp", "/proc/self/status", hook]}]);
        });
        let socket = world.start_shim(&id);
        let mut ttrpc = Ttrpc::connect(&socket);
        let mut request = world.create_request(&id);
        let out = world.path("out");
        request.stdout = format!("file://{}", out.display());
        let pid = ttrpc.create(&request).unwrap();
        let mut task = Task { id, socket, ttrpc, pid };
        task.start("").unwrap();
        assert_eq!(task.wait(""), 0);
        for file in [&hook, &out] {
            let status = std::fs::read_to_string(file).unwrap();
            assert!(is_clear(&status), "{}: {status}", file.display());
        }
        task.finish();

        let id = random_name("c");
        let escaped = logger.display().to_string().replace('/', "%2F");
        let url = format!("binary:///bin/cp?%2Fproc%2Fself%2Fstatus={escaped}");
        let mut task = world.create(&id, &["/bin/true"], |r| r.stdout = url);
        task.start("").unwrap();
        task.wait("");
        eventually("the logger has written", || {
            std::fs::read_to_string(&logger).is_ok_and(|status| status.contains("SigBlk"))
        });
        let status = std::fs::read_to_string(&logger).unwrap();
        assert!(is_clear(&status), "{status}");
        task.finish();
    });
}

/// One in C passes on what it finds blocked.
#[test]
fn no_signal_is_blocked_in_another_runtime() {
    isolated("signals::no_signal_is_blocked_in_another_runtime", |_| {
        let mut world = World::new("");
        let (seen, program) = (world.path("seen"), world.path("program"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *create*) exec cp /proc/self/status {};; esac\nexit 1\n",
            seen.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        world.runtime = program.display().to_string();
        let id = random_name("c");
        world.bundle(&id, &["/bin/true"], |_| {});
        let mut ttrpc = Ttrpc::connect(&world.start_shim(&id));
        // It makes nothing.
        assert!(ttrpc.create(&world.create_request(&id)).is_err());
        let status = std::fs::read_to_string(&seen).unwrap();
        assert!(is_clear(&status), "{status}");
    });
}
