//! What one process of a network namespace holds at a time: the name of a
//! bridge, and the choice of a subnet.
//!
//! A claim is a listening unix socket with an abstract name. Those live in the
//! network namespace, as bridges do, and are gone with the process that holds
//! them, however it ends. A name that somebody other than root or our own user
//! has taken is passed over: nobody without privileges may stop an engine.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, system};

/// A daemon that ends gives its bridges back within this time.
const ENDING: Duration = Duration::from_millis(500);
/// Others choose a subnet and make a bridge with it in a few milliseconds.
const CHOOSING: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(5);
/// So many may ask who holds a name; later ones are not told the pid.
const QUEUE: i32 = 128;

/// A claim; dropping it gives it up.
#[derive(Debug)]
pub struct Claim {
    /// None: somebody who has no say holds the name.
    _socket: Option<OwnedFd>,
}

/// Who holds a name.
#[derive(Clone, Copy)]
enum Holder {
    /// A process of root or of our own user, by its pid if it is seen from here.
    Daemon(Option<u32>),
    Stranger,
}

impl Claim {
    /// Claims the name of a bridge in the calling thread's namespace, for as
    /// long as the bridge is served. Waits half a second for a holder that ends.
    ///
    /// # Errors
    /// [`Error::BridgeClaimed`] when another process holds it.
    pub fn bridge(name: &str) -> Result<Self, Error> {
        take(&format!("gantry/bridge/{name}"), ENDING)?
            .map_err(|pid| Error::BridgeClaimed { name: name.to_owned(), pid })
    }

    /// Claims the choice of a subnet, until the subnet is on a link and so is
    /// seen by others. Waits for the one that holds it.
    ///
    /// # Errors
    /// ETIMEDOUT when it is not given up for 10 seconds.
    pub fn subnets() -> Result<Self, Error> {
        take("gantry/subnets", CHOOSING)?
            .map_err(|_| system("take", "turn in choosing a subnet")(Errno::TIMEDOUT.into()))
    }
}

/// The inner error is the holder's pid.
fn take(name: &str, wait: Duration) -> Result<Result<Claim, Option<u32>>, Error> {
    let failed = |errno: Errno| system("claim", name)(errno.into());
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed)?;
    let until = Instant::now() + wait;
    let mut held_by = None;
    loop {
        let socket = open().map_err(failed)?;
        match rustix::net::bind(&socket, &address) {
            Ok(()) => {
                rustix::net::listen(&socket, QUEUE).map_err(failed)?;
                return Ok(Ok(Claim { _socket: Some(socket) }));
            }
            Err(Errno::ADDRINUSE) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // Asked once: nobody takes these connections.
        let known = match held_by {
            Some(known) => known,
            None => holder(&address).map_err(system("look up the holder of", name))?,
        };
        held_by = Some(known);
        match known {
            Holder::Stranger => {
                tracing::warn!(name, "a process without privileges holds this name");
                return Ok(Ok(Claim { _socket: None }));
            }
            Holder::Daemon(pid) if Instant::now() >= until => return Ok(Err(pid)),
            Holder::Daemon(_) => std::thread::sleep(INTERVAL),
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn holder(address: &SocketAddrUnix) -> io::Result<Holder> {
    let socket = open()?;
    match rustix::net::connect(&socket, address) {
        Ok(()) => {}
        // Not listening yet, gone meanwhile, or asked by too many before us.
        Err(Errno::CONNREFUSED | Errno::AGAIN) => return Ok(Holder::Daemon(None)),
        Err(errno) => return Err(errno.into()),
    }
    // Raw: the pid is 0 when the holder is in another pid namespace.
    let mut credentials = [0u8; 12];
    sys::netns::get_option(&socket, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut credentials)?;
    let word = |n: usize| credentials[4 * n..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
    let (pid, uid) = (word(0), word(1));
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Ok(Holder::Stranger);
    }
    Ok(Holder::Daemon((pid != 0).then_some(pid)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_is_held_once() {
        sys::netns::unshare_net().ok();
        let [a, b] = crate::util::random::<2>().unwrap();
        let name = format!("b{a:02x}{b:02x}");
        let first = Claim::bridge(&name).unwrap();
        let other = Claim::bridge(&format!("{name}x")).unwrap();
        match Claim::bridge(&name) {
            Err(Error::BridgeClaimed { name: held, pid }) => {
                assert_eq!((held, pid), (name.clone(), Some(std::process::id())));
            }
            got => panic!("{got:?}"),
        }
        drop((first, other));
        Claim::bridge(&name).unwrap();
    }

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let turn = Claim::subnets().unwrap();
                        let order = std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(inside.fetch_add(1, order), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, order);
                        drop(turn);
                    }
                });
            }
        });
    }
}
