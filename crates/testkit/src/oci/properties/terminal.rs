//! `process.terminal`, through the console socket and in the foreground.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Failure, Ground, Property, has, same, want};
use crate::random;
use crate::terminal::Terminal;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

pub(super) const ALL: &[Property] = &[
    p("terminal/console-socket", console_socket),
    p("terminal/size", size),
    p("terminal/input-and-echo", input),
    p("terminal/is-the-controlling-one", controlling),
    p("terminal/dev-console", dev_console),
    p("terminal/owner", owner),
    p("terminal/foreground", foreground),
    p("terminal/detached-without-a-socket", without_socket),
    p("terminal/socket-without-a-terminal", without_terminal),
    p("terminal/socket-that-nobody-listens-at", nobody),
    p("terminal/exec", exec),
    p("terminal/hang-up", hang_up),
];

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::Violated(format!("{what}: {error}"))
}

/// The descriptor and the bytes that come over a console socket.
pub(super) fn receive(listener: &UnixListener) -> Checked<(OwnedFd, String)> {
    let (stream, _) = listener.accept().map_err(io("accept"))?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 512];
    let message = recvmsg(
        &stream,
        &mut [std::io::IoSliceMut::new(&mut data)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| io("recvmsg")(error.into()))?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let name = String::from_utf8_lossy(&data[..message.bytes]).into_owned();
    fd.map(|fd| (fd, name)).ok_or_else(|| Failure::Violated("no descriptor came".to_owned()))
}

/// A container on a terminal: all that it showed until its end.
pub(super) fn session(b: &mut Bundle<'_>, typed: &str) -> Checked<String> {
    let mut master = opened(b)?;
    master.write_all(typed.as_bytes()).map_err(io("type"))?;
    Ok(until_end(&mut master))
}

/// A container on a terminal, and the terminal's other side.
fn opened(b: &mut Bundle<'_>) -> Checked<File> {
    b.config["process"]["terminal"] = json!(true);
    b.save()?;
    let path = b.path("c.sock");
    let listener = UnixListener::bind(&path).map_err(io("bind"))?;
    let socket = path.display().to_string();
    let run = b.call(&["run", "-d", "--console-socket", &socket, &b.id]).start()?;
    // A runtime that fails would leave us waiting for its connection.
    let mut run = run;
    let connected = crate::wait::until("the console", crate::oci::call::LIMIT, || {
        match readable(&listener, 0) {
            true => Some(true),
            false => matches!(run.has_ended(), Ok(true)).then_some(false),
        }
    });
    if !matches!(connected, Ok(true)) {
        return Err(Failure::Violated(format!("no console: {}", run.stderr())));
    }
    let (fd, _) = receive(&listener)?;
    let ran = run.wait_here()?;
    want(ran.code == 0, "run", ran.to_string())?;
    Ok(File::from(fd))
}

/// Reads until `text` has come.
fn until_text(master: &mut File, text: &str) -> Checked<String> {
    let (mut all, mut chunk) = (String::new(), [0; 512]);
    while !all.contains(text) {
        match master.read(&mut chunk) {
            Ok(count @ 1..) => all.push_str(&String::from_utf8_lossy(&chunk[..count])),
            _ => return Err(Failure::Violated(format!("{all:?} has no {text:?}"))),
        }
    }
    Ok(all)
}

/// Whether there is something to read within so many seconds.
fn readable(fd: &impl std::os::fd::AsFd, seconds: i64) -> bool {
    let mut poll = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&limit)).is_ok_and(|count| count > 0)
}

/// So long a terminal may be silent, in seconds.
const SILENCE_SECONDS: i64 = 15;

/// All that comes until the other end is closed, which reads as an error.
fn until_end(master: &mut File) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while readable(master, SILENCE_SECONDS) {
        let Ok(count @ 1..) = master.read(&mut chunk) else { break };
        all.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn console_socket(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b =
        Bundle::new(g, &format!("tty; test -t 0 && test -t 1 && test -t 2 && echo {word}"))?;
    same("output", session(&mut b, "")?, format!("/dev/pts/0\r\n{word}\r\n"))
}

fn size(g: &Ground) -> Checked {
    let (rows, columns) = (random::number(10..90), random::number(30..300));
    let mut b = Bundle::new(g, "stty size")?;
    b.config["process"]["consoleSize"] = json!({"height": rows, "width": columns});
    has("size", &session(&mut b, "")?, &format!("{rows} {columns}"))
}

fn input(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, "read x; echo got-$x")?;
    let got = session(&mut b, &format!("{word}\n"))?;
    same("echo and answer", got, format!("{word}\r\ngot-{word}\r\n"))
}

fn controlling(g: &Ground) -> Checked {
    let mut b =
        Bundle::new(g, "trap 'echo interrupted; exit' INT; echo on > /dev/tty; read x; sleep 9")?;
    let mut master = opened(&mut b)?;
    until_text(&mut master, "on\r\n")?;
    master.write_all(b"\x03").map_err(io("type"))?;
    has("control-C", &until_end(&mut master), "interrupted")
}

fn dev_console(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, &format!("stat -c %F:%a /dev/console; echo {word} > /dev/console"))?;
    let got = session(&mut b, "")?;
    has("what it is", &got, "character special file")?;
    has("what was written to it", &got, &word)
}

fn owner(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "stat -c %u /dev/pts/0; echo own > /dev/pts/0")?;
    b.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let got = session(&mut b, "")?;
    has("owner", &got, "1000")?;
    has("its own", &got, "own")
}

fn foreground(g: &Ground) -> Checked {
    let (word, code) = (random::token(9), random::exit_code());
    let mut b = Bundle::new(
        g,
        &format!(
            "tty; for i in $(seq 200); do stty size 2>/dev/null && break; usleep 9999; done; read x; echo got-$x; exit {code}"
        ),
    )?;
    b.config["process"]["terminal"] = json!(true);
    b.save()?;
    let state = b.path("state").display().to_string();
    let mut words = g.runtime.argv[1..].to_vec();
    words.extend(["--root", &state, "run", "--bundle"].map(str::to_owned));
    words.extend([b.path("").display().to_string(), b.id.clone()]);
    let command =
        crate::command::Cmd::host(&g.runtime.argv[0], words).timeout(crate::oci::call::LIMIT);
    let columns = u16::try_from(random::number(30..200)).expect("small");
    let mut terminal = Terminal::start(&command, columns, 31)?;
    terminal.wait_for("/dev/pts/0", 0)?;
    terminal.wait_for(&format!("31 {columns}"), 0)?;
    terminal.type_in(&format!("{word}\r"))?;
    terminal.wait_for(&format!("got-{word}"), 0)?;
    same("exit code", terminal.wait()?, code)
}

fn without_socket(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["process"]["terminal"] = json!(true);
    b.save()?;
    let wanted = "cannot allocate tty if runc will detach without setting console socket";
    has("create", &b.fails(&["create", &b.id])?, wanted)?;
    has("run -d", &b.fails(&["run", "-d", &b.id])?, wanted)?;
    b.nothing_left()
}

fn without_terminal(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.save()?;
    let said = b.fails(&["create", "--console-socket", "c.sock", &b.id])?;
    has("create", &said, "cannot use console socket if runc will not detach or allocate tty")?;
    b.nothing_left()
}

fn nobody(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "true")?;
    b.config["process"]["terminal"] = json!(true);
    b.save()?;
    b.fails(&["create", "--console-socket", "none.sock", &b.id])?;
    b.nothing_left()
}

fn exec(g: &Ground) -> Checked {
    let word = random::token(9);
    let mut b = Bundle::new(g, "exec sleep 1000")?;
    b.start()?;
    let path = b.path("e.sock");
    let listener = UnixListener::bind(&path).map_err(io("bind"))?;
    let socket = path.display().to_string();
    let script = format!("tty; test -t 1 && echo {word}");
    let run =
        b.call(&["exec", "-t", "-d", "--console-socket", &socket, &b.id, "sh", "-c", &script]);
    let pending = run.start()?;
    let (fd, _) = receive(&listener)?;
    pending.wait()?.ok()?;
    same("output", until_end(&mut File::from(fd)), format!("/dev/pts/0\r\n{word}\r\n"))?;
    b.end()
}

/// When the terminal is gone, the container's session is told.
fn hang_up(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "trap 'exit 0' HUP; echo on; while :; do sleep 0.05; done")?;
    let mut master = opened(&mut b)?;
    until_text(&mut master, "on")?;
    drop(master);
    b.until("stopped")
}
