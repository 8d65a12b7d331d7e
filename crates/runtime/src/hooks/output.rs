//! What a hook writes, read while it runs: it never waits for a reader, and only the end is kept.

use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How much of each stream's end goes into an error.
const TAIL_LIMIT_BYTES: usize = 4096;
/// As much is read at once.
const PART_BYTES: usize = 16 << 10;
/// How often it is looked for the end of a hook that has no pidfd (a filter, a kernel before 5.3).
const ROUND: Duration = Duration::from_millis(10);

/// One of a hook's output streams.
struct Stream {
    /// Gone once its writers are.
    pipe: Option<OwnedFd>,
    tail: Vec<u8>,
    /// There was more.
    cut: bool,
}

impl Stream {
    fn new(pipe: Option<impl Into<OwnedFd>>) -> Stream {
        Stream { pipe: pipe.map(Into::into), tail: Vec::new(), cut: false }
    }

    /// Reads once; only when there is something to read, or nobody left to write.
    fn read(&mut self) -> Result<(), Errno> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let mut part = [0; PART_BYTES];
        match rustix::io::read(pipe, &mut part[..]) {
            Ok(0) => self.pipe = None,
            Ok(n) => {
                self.tail.extend_from_slice(&part[..n]);
                let over = self.tail.len().saturating_sub(TAIL_LIMIT_BYTES);
                self.cut |= over > 0;
                self.tail.drain(..over);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        format!("{}{}", if self.cut { "…" } else { "" }, text.trim())
    }
}

/// stdout and stderr of a hook.
pub(super) struct Output([Stream; 2]);

/// What has ended first.
pub(super) enum Waited {
    Hook(ExitStatus),
    /// The process that the hook is for.
    Process,
    TimeOver(Duration),
}

impl Output {
    /// Of a child that was started with pipes.
    pub(super) fn of(child: &mut Child) -> Output {
        Output([Stream::new(child.stdout.take()), Stream::new(child.stderr.take())])
    }

    /// Reads until the hook has ended, or the process has (by its pidfd), or the time is over. Whoever else
    /// has the pipes by then is not waited for: runc waits for all of a hook's children that write to them.
    pub(super) fn wait(
        &mut self,
        hook: &mut Child,
        process: Option<&OwnedFd>,
        timeout: Option<Duration>,
    ) -> std::io::Result<Waited> {
        let pidfd = pidfd_open(Pid::from_child(hook), PidfdFlags::empty()).ok();
        let round = if pidfd.is_some() { None } else { Some(ROUND) };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut has_ended = false;
        loop {
            if let Some(status) = hook.try_wait()? {
                return Ok(Waited::Hook(status));
            }
            if has_ended {
                return Ok(Waited::Process);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if let (Some(Duration::ZERO), Some(timeout)) = (left, timeout) {
                return Ok(Waited::TimeOver(timeout));
            }
            let limit = [left, round].into_iter().flatten().min();
            has_ended = self.next([pidfd.as_ref(), process], limit)?.ended[1];
        }
    }

    /// What is still in the pipes of a hook that has ended; its children have this long to write the rest.
    pub(super) fn finish(&mut self, grace: Duration) -> Result<(), Errno> {
        /// As much as the largest pipe holds: children may write without end.
        const READS: usize = (1 << 20) / PART_BYTES;
        let deadline = Instant::now() + grace;
        for _ in 0..READS {
            let left = deadline.saturating_duration_since(Instant::now());
            let is_open = self.0.iter().any(|stream| stream.pipe.is_some());
            if !is_open || (!self.next([None, None], Some(left))?.has_read && left.is_zero()) {
                break;
            }
        }
        Ok(())
    }

    /// In runc's words.
    pub(super) fn text(&self) -> String {
        let Output([stdout, stderr]) = self;
        format!("stdout: {}, stderr: {}", stdout.text(), stderr.text())
    }

    /// Waits for output, which is read, or for the end of one of the processes.
    fn next(
        &mut self,
        pidfds: [Option<&OwnedFd>; 2],
        limit: Option<Duration>,
    ) -> Result<Next, Errno> {
        let pipes = self.0.iter().filter_map(|stream| stream.pipe.as_ref());
        let all = pipes.chain(pidfds.into_iter().flatten());
        let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // One that is beyond the clock's end is none.
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Next { has_read: false, ended: [false; 2] }),
            Err(e) => return Err(e),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        let mut has_read = false;
        for stream in self.0.iter_mut().filter(|stream| stream.pipe.is_some()) {
            if ready.next() == Some(true) {
                stream.read()?;
                has_read = true;
            }
        }
        let ended = pidfds.map(|pidfd| pidfd.is_some() && ready.next() == Some(true));
        Ok(Next { has_read, ended })
    }
}

/// What [`Output::next`] has found.
struct Next {
    has_read: bool,
    /// The processes, as they were given.
    ended: [bool; 2],
}
