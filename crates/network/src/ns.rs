//! Network namespaces: made on a thread of their own, kept by descriptor or by
//! a bind mount, entered only by threads that end afterwards.
//!
//! Locks: the pool's list is held for moments only. Threads: one refills the
//! pool; every [`Namespace::run`] uses a short-lived one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;

use crate::error::{Error, file, system};
use crate::link::Rtnl;
use crate::sysctl;

/// A pool larger than this would only hold kernel memory.
pub const MAX_POOL: usize = 64;
/// How many mounts may be stacked on one path before [`remove`] gives up.
const MAX_STACKED_MOUNTS: usize = 16;

/// What identifies a namespace in the kernel: device and inode of its nsfs file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NsId {
    /// Device of nsfs.
    pub dev: u64,
    /// Inode; unique among living namespaces only.
    pub ino: u64,
}

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    path: Option<PathBuf>,
    /// A routing socket inside, opened at the first use.
    route: Mutex<Option<Rtnl>>,
}

impl Namespace {
    /// Makes a namespace and binds it at `path` (an empty file is created there;
    /// missing parent directories too, mode 0755).
    ///
    /// `lo` is up inside. New interfaces start with IPv6 off and router
    /// advertisements refused; attaching an endpoint with an IPv6 address turns
    /// IPv6 on for that interface.
    ///
    /// # Errors
    /// When a system call fails; EEXIST when `path` exists.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let mut ns = Self::create_unbound()?;
        ns.bind(path)?;
        Ok(ns)
    }

    /// Makes a namespace that lives as long as a descriptor or process holds it.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn create_unbound() -> Result<Self, Error> {
        on_thread(|| {
            sys::netns::unshare_net().map_err(system("create", "network namespace"))?;
            let ns = Self::open(Path::new("/proc/thread-self/ns/net"))?;
            let mut route = Rtnl::open()?;
            route.set_up(LOOPBACK_INDEX)?;
            for (key, value) in FRESH_SYSCTLS {
                match sysctl::write(key, value) {
                    // A kernel without IPv6 has no such keys.
                    Err(error) if error.is_not_found() => {}
                    other => other?,
                }
            }
            *lock(&ns.route) = Some(route);
            Ok(Self { path: None, ..ns })
        })?
    }

    /// Opens the namespace that is bound at `path` (or any nsfs path).
    ///
    /// # Errors
    /// When the path cannot be opened, or with EINVAL when it is no nsfs file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| file("open network namespace", path)(e.into()))?;
        let stat = rustix::fs::fstatfs(&fd).map_err(|e| file("examine", path)(e.into()))?;
        if i128::from(stat.f_type) != i128::from(libc::NSFS_MAGIC) {
            let source = rustix::io::Errno::INVAL.into();
            return Err(file("use as a network namespace", path)(source));
        }
        Ok(Self { fd, path: Some(path.to_owned()), route: Mutex::new(None) })
    }

    /// The namespace of a process. The caller makes sure (by pidfd) that the pid
    /// still is the process that it means.
    ///
    /// # Errors
    /// When the process is gone or may not be looked into.
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        let ns = Self::open(Path::new(&format!("/proc/{pid}/ns/net")))?;
        Ok(Self { path: None, ..ns })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When procfs is not there.
    pub fn current() -> Result<Self, Error> {
        let ns = Self::open(Path::new("/proc/thread-self/ns/net"))?;
        Ok(Self { path: None, ..ns })
    }

    /// Takes over a descriptor of a namespace.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, path: None, route: Mutex::new(None) }
    }

    /// Where it is bound, if it is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Its identity.
    ///
    /// # Errors
    /// The errno of fstat(2).
    pub fn id(&self) -> Result<NsId, Error> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|e| system("examine", "network namespace")(e.into()))?;
        Ok(NsId { dev: stat.st_dev, ino: stat.st_ino })
    }

    /// Binds it at `path`; see [`Namespace::create`].
    ///
    /// # Errors
    /// When a system call fails; EEXIST when `path` exists.
    pub fn bind(&mut self, path: &Path) -> Result<(), Error> {
        if let Some(parent) = path.parent() {
            create_dirs(parent)?;
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o444))
            .map_err(|e| file("create", path)(e.into()))?;
        let source = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        if let Err(errno) = rustix::mount::mount_bind(source.as_str(), path) {
            let cause = file("bind-mount network namespace on", path)(errno.into());
            // The empty file is of no use; that it stays behind would only be
            // a second error about the same failure.
            rustix::fs::unlink(path).ok();
            return Err(cause);
        }
        self.path = Some(path.to_owned());
        Ok(())
    }

    /// Runs `work` inside, on a thread that ends afterwards. The calling
    /// thread's namespace never changes. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let fd = self.fd.as_fd();
        on_thread(move || {
            rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))
                .map_err(|e| system("enter", "network namespace")(e.into()))?;
            Ok(work())
        })?
    }

    /// Gives `work` this namespace's routing socket, opened at the first use.
    pub(crate) fn with_route<T>(
        &self,
        work: impl FnOnce(&mut Rtnl) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut slot = lock(&self.route);
        let route = match slot.as_mut() {
            Some(route) => route,
            None => slot.insert(Rtnl::open_in(self)?),
        };
        work(route)
    }

    pub(crate) fn duplicate_fd(&self) -> Result<OwnedFd, Error> {
        self.fd.try_clone().map_err(system("duplicate descriptor of", "network namespace"))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `lo` is the first device of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// What a fresh namespace is given: new interfaces without IPv6 and deaf to
/// router advertisements (CVE-2020-13401). `lo` exists already and keeps `::1`.
const FRESH_SYSCTLS: [(&str, &str); 2] =
    [("ipv6/conf/default/disable_ipv6", "1"), ("ipv6/conf/default/accept_ra", "0")];

/// Unmounts and removes a path that [`Namespace::bind`] made. A path that is
/// not there, or is only the empty file, is fine.
///
/// # Errors
/// When unmount or unlink fails.
pub fn remove(path: &Path) -> Result<(), Error> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(errno) => return Err(file("unmount", path)(errno.into())),
        }
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(file("remove", path)(errno.into())),
    }
}

fn create_dirs(dir: &Path) -> Result<(), Error> {
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(rustix::io::Errno::NOENT) => {
            let parent =
                dir.parent().ok_or_else(|| file("create", dir)(rustix::io::Errno::NOENT.into()))?;
            create_dirs(parent)?;
            match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(errno) => Err(file("create", dir)(errno.into())),
            }
        }
        Err(errno) => Err(file("create", dir)(errno.into())),
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, work)
            .map_err(system("start", "thread for a network namespace"))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Namespaces made ahead of need. They are descriptors only: nothing of the
/// pool is on disk, and all are gone when it is dropped or the process ends.
/// None is ever used twice.
///
/// Not for containers with a user namespace of their own: their network
/// namespace must be made inside that.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    refill: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    size: usize,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Namespace>,
    stop: bool,
}

impl Pool {
    /// A pool that keeps `size` namespaces ready (0 makes all on demand; more
    /// than [`MAX_POOL`] counts as that many). The first are made in the
    /// background.
    ///
    /// # Errors
    /// When the refilling thread cannot be started.
    pub fn new(size: usize) -> Result<Self, Error> {
        let size = size.min(MAX_POOL);
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), changed: Condvar::new(), size });
        let refill = match size {
            0 => None,
            _ => {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new()
                    .name("netns-pool".to_owned())
                    .stack_size(256 << 10)
                    .spawn(move || refill(&shared))
                    .map_err(system("start", "thread of the namespace pool"))?;
                Some(thread)
            }
        };
        Ok(Self { shared, refill })
    }

    /// A namespace, bound at `path`; made on the spot when none is ready.
    ///
    /// # Errors
    /// See [`Namespace::create`].
    pub fn take(&self, path: &Path) -> Result<Namespace, Error> {
        let ready = lock(&self.shared.state).ready.pop_front();
        self.shared.changed.notify_all();
        match ready {
            Some(mut ns) => ns.bind(path).map(|()| ns),
            None => Namespace::create(path),
        }
    }

    /// How many are ready now.
    pub fn ready(&self) -> usize {
        lock(&self.shared.state).ready.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.refill.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the namespace pool panicked");
        }
    }
}

fn refill(shared: &Shared) {
    loop {
        let mut state = lock(&shared.state);
        while !state.stop && state.ready.len() >= shared.size {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return;
        }
        drop(state);
        match Namespace::create_unbound() {
            Ok(ns) => lock(&shared.state).ready.push_back(ns),
            Err(error) => {
                // The next taker makes its own and gets the error itself; the
                // thread tries again when something is taken.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "namespace pool not refilled"
                );
                let state = lock(&shared.state);
                if !state.stop {
                    drop(shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }
}
