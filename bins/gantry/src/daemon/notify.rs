//! sd_notify(3): telling the service manager how far we are.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    Ready,
    Reloading,
    Stopping,
}

/// Tells it, if anybody asked to be told; a failure is logged, and of no further consequence.
pub(crate) fn notify(state: State) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    if let Err(error) = send(&name, &text(state)) {
        tracing::warn!(%error, socket = %name.display(), "the service manager could not be told");
    }
}

fn text(state: State) -> String {
    match state {
        State::Ready => "READY=1\n".into(),
        State::Stopping => "STOPPING=1\n".into(),
        State::Reloading => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1000;
            format!("RELOADING=1\nMONOTONIC_USEC={micros}\n")
        }
    }
}

fn send(name: &OsStr, text: &str) -> io::Result<()> {
    // `@` stands for the NUL of an abstract name.
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(rest) => SocketAddr::from_abstract_name(rest)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        for state in [State::Ready, State::Reloading, State::Stopping] {
            send(path.as_os_str(), &text(state)).unwrap();
        }
        let mut all = Vec::new();
        for _ in 0..3 {
            let mut buffer = [0; 128];
            let n = socket.recv(&mut buffer).unwrap();
            all.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
        }
        assert_eq!(all[0], "READY=1\n");
        let micros = all[1].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.trim_end().parse::<u64>().unwrap() > 0);
        assert_eq!(all[2], "STOPPING=1\n");
    }
}
