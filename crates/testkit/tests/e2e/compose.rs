//! Compose 2.26 from Debian's packages.

use crate::ground::{example, fetch, in_sandbox};
use testkit::command::{Cmd, DEFAULT_TIMEOUT};
use testkit::leak::LeakCheck;
use testkit::random;
use testkit::sandbox::{INSIDE_ADDRESS, Net, Options, Sandbox};
use testkit::wait;

#[test]
fn a_project_comes_up_and_goes_down() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::with(&Options { net: Net::Isolated, ..Options::default() }).unwrap();
    sandbox.enable_cli_plugins().unwrap();
    in_sandbox(&sandbox, |ground| {
        ground.import_base("tiny");
        let (project, word, port) = (random::name("project"), random::token(12), random::port());
        let file = format!("{}/compose.yaml", example("compose"));
        let compose = |args: &[&str]| -> Cmd {
            let line =
                ["compose", "-p", &project, "-f", &file].into_iter().chain(args.iter().copied());
            ground
                .daemon
                .docker(line)
                .env("PORT", port.to_string())
                .env("GREETING", &word)
                .cwd("/run/tmp")
        };
        compose(&["up", "-d"]).ok().unwrap();
        let services = compose(&["ps", "--services", "--status", "running"]).ok().unwrap();
        let mut services = services.lines();
        services.sort();
        assert_eq!(services, ["web", "writer"]);
        let url = format!("http://{INSIDE_ADDRESS}:{port}/index.html");
        let page = fetch(|| sandbox.outside("curl", ["-sSf", "--max-time", "5", &url])).unwrap();
        assert_eq!(page, word);
        let seen =
            wait::until_ok("the page, fetched by the service's name", DEFAULT_TIMEOUT, || {
                compose(&["exec", "-T", "writer", "cat", "/data/seen"]).ok()
            });
        assert_eq!(seen.unwrap().text(), word);
        let networks = ground.docker(&["network", "ls", "--format", "{{.Name}}"]);
        assert!(networks.contains(&format!("{project}_pages")), "{networks}");
        let volumes = ground.docker(&["volume", "ls", "-q"]);
        assert_eq!(volumes, format!("{project}_pages"));
        let again = compose(&["up", "-d"]).ok().unwrap();
        assert!(!again.both().contains("Recreate"), "unchanged, yet made anew: {}", again.both());
        compose(&["restart", "web"]).ok().unwrap();
        let page = fetch(|| sandbox.outside("curl", ["-sSf", "--max-time", "5", &url])).unwrap();
        assert_eq!(page, word, "after a restart");
        let config = ground.docker(&[
            "ps",
            "--filter",
            &format!("label=com.docker.compose.project={project}"),
            "-q",
        ]);
        assert_eq!(config.lines().count(), 2);
        compose(&["down", "--volumes"]).ok().unwrap();
        assert_eq!(ground.docker(&["ps", "-aq"]), "");
        assert_eq!(ground.docker(&["volume", "ls", "-q"]), "");
        let networks = ground.docker(&["network", "ls", "--format", "{{.Name}}"]);
        assert!(!networks.contains(&project), "{networks}");
    });
    sandbox.close().unwrap();
    leak.finish().unwrap();
}
