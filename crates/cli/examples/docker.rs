//! The command line alone, against whatever `DOCKER_HOST` or the default socket names.

fn main() {
    let socket = match std::env::args_os().next() {
        Some(name) if name.to_string_lossy().ends_with("gantry") => "/run/gantry/gantry.sock",
        _ => "/var/run/docker.sock",
    };
    let build = cli::Build::default();
    let hooks = cli::Hooks { default_socket: socket.into(), ensure_daemon: None, build };
    std::process::exit(cli::main(std::env::args_os().collect(), hooks));
}
