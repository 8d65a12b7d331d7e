//! Layers are inflated within limits: how much becomes of one, and how much memory all of them take for it.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::db::lock;

/// Memory of all committers' decompressors together, bytes: as much as one layer may ask for (`zstd
/// --long=27`), or 16 of `zstd -19`. Helpers have their own, see [`super::ahead`].
const WINDOWS_BYTES: u64 = 128 << 20;
/// A window up to this size is not counted, bytes: gzip's and those of `zstd -3`. There are as many of them
/// as heavy operations at once, 24 at most.
const FREE_BYTES: u64 = 2 << 20;
/// A layer that waits for memory longer is given up. Others have it while they write a layer to the disk.
const WAIT: Duration = Duration::from_secs(1800);

/// How large a layer may become. Programs and texts have 2 to 10 bytes for each compressed one; gzip reaches
/// 1032, zstd 32,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflationLimit {
    /// So many bytes in any case: a layer may be nothing but zeros.
    pub anyway_bytes: u64,
    /// And so many for each byte of its blob, if that is more.
    pub per_byte: u64,
}

impl Default for InflationLimit {
    fn default() -> Self {
        Self { anyway_bytes: 16 << 30, per_byte: 256 }
    }
}

impl InflationLimit {
    fn of(self, blob_bytes: u64) -> u64 {
        blob_bytes.saturating_mul(self.per_byte).max(self.anyway_bytes)
    }
}

/// What all layers of a store are inflated by.
pub(crate) struct Inflation {
    limit: InflationLimit,
    windows: Arc<Windows>,
}

impl Inflation {
    pub(crate) fn new(limit: InflationLimit) -> Self {
        Self { limit, windows: Arc::new(Windows::new(WINDOWS_BYTES, WAIT)) }
    }

    /// The tar in a blob of so many bytes, for who commits it. Its reads fail, with
    /// [`io::ErrorKind::FileTooLarge`], beyond the limit.
    pub(crate) fn inflate<'a>(
        &self,
        input: impl Read + Send + 'a,
        blob_bytes: u64,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        let windows = Arc::clone(&self.windows);
        let ask = move |bytes| {
            Windows::take(&windows, bytes).map(|taken| Box::new(taken) as Box<dyn Send>)
        };
        let tar = archive::decompress_with_leave(input, FREE_BYTES, Box::new(ask))?;
        Ok(Box::new(self.bounded(tar, blob_bytes)))
    }

    /// A tar that was made of a blob of so many bytes.
    pub(super) fn bounded<R>(&self, tar: R, blob_bytes: u64) -> Bounded<R> {
        Bounded { tar, bytes: 0, blob_bytes, limit: self.limit }
    }
}

/// Ends with an error where it becomes too large.
pub(super) struct Bounded<R> {
    tar: R,
    bytes: u64,
    blob_bytes: u64,
    limit: InflationLimit,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.tar.read(buffer)?;
        self.bytes += u64::try_from(n).unwrap_or(0);
        let limit = self.limit.of(self.blob_bytes);
        if self.bytes > limit {
            let InflationLimit { anyway_bytes, per_byte } = self.limit;
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "its {} bytes inflate to more than {limit}: a layer may have {anyway_bytes} bytes, or \
                     {per_byte} for each compressed one if that is more (a file that is mostly zeros is no \
                     more than its data as a sparse entry)",
                    self.blob_bytes
                ),
            ));
        }
        Ok(n)
    }
}

/// Memory that is given to who asks first.
struct Windows {
    state: Mutex<State>,
    changed: Condvar,
    all_bytes: u64,
    wait: Duration,
}

struct State {
    free_bytes: u64,
    /// Who waits, in order.
    queue: VecDeque<u64>,
    next: u64,
}

impl Windows {
    fn new(all_bytes: u64, wait: Duration) -> Self {
        let state = State { free_bytes: all_bytes, queue: VecDeque::new(), next: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new(), all_bytes, wait }
    }

    fn take(windows: &Arc<Self>, bytes: u64) -> io::Result<Taken> {
        let bytes = bytes.min(windows.all_bytes);
        let end = Instant::now() + windows.wait;
        let mut state = lock(&windows.state);
        let ticket = state.next;
        state.next += 1;
        state.queue.push_back(ticket);
        // Who is first waits until there is enough: the small ones behind do not overtake it for ever.
        while state.queue.front() != Some(&ticket) || state.free_bytes < bytes {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.queue.retain(|other| *other != ticket);
                windows.changed.notify_all();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{bytes} bytes of memory to inflate it did not come free in {} s: other layers \
                         have all of {}",
                        windows.wait.as_secs(),
                        windows.all_bytes
                    ),
                ));
            }
            let waited = windows.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.queue.pop_front();
        state.free_bytes -= bytes;
        drop(state);
        windows.changed.notify_all();
        Ok(Taken { windows: Arc::clone(windows), bytes })
    }
}

struct Taken {
    windows: Arc<Windows>,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.windows.state).free_bytes += self.bytes;
        self.windows.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_tar_ends_at_its_limit() {
        let limit = InflationLimit { anyway_bytes: 1000, per_byte: 10 };
        for (blob_bytes, most) in [(1, 1000), (100, 1000), (101, 1010), (1 << 20, 10 << 20)] {
            for (bytes, is_whole) in [(most, true), (most + 1, false)] {
                let inflation = Inflation::new(limit);
                let mut tar = inflation.bounded(io::repeat(0).take(bytes), blob_bytes);
                match io::copy(&mut tar, &mut io::sink()) {
                    Ok(copied) => assert!(is_whole && copied == bytes, "{blob_bytes} {bytes}"),
                    Err(error) => {
                        assert!(!is_whole, "{blob_bytes} {bytes}: {error}");
                        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
                        let limit = format!("more than {most}:");
                        assert!(error.to_string().contains(&limit), "{error}");
                    }
                }
            }
        }
    }

    /// Eight layers, each with a window of 64 MiB, at once: two of them at most have their memory.
    #[test]
    fn windows_together_have_a_limit() {
        let bytes: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let blob = testkit::fixtures::zstd(26, &bytes, 0);
        let inflation = Inflation::new(InflationLimit::default());
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut tar = inflation.inflate(&blob[..], blob.len() as u64).unwrap();
                    let mut first = vec![0; 4096];
                    tar.read_exact(&mut first).unwrap();
                    let count = now.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(count, Ordering::SeqCst);
                    let used = WINDOWS_BYTES - lock(&inflation.windows.state).free_bytes;
                    assert!(used >= count << 26, "{count} have a window, {used} bytes are counted");
                    let mut rest = first;
                    tar.read_to_end(&mut rest).unwrap();
                    assert!(rest == bytes, "other bytes");
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= 2, "more than two at once");
        assert_eq!(lock(&inflation.windows.state).free_bytes, WINDOWS_BYTES);
    }

    #[test]
    fn who_asks_first_is_first_and_nobody_waits_for_ever() {
        let windows = Arc::new(Windows::new(100, Duration::from_millis(50)));
        let half = Windows::take(&windows, 50).unwrap();
        let error = Windows::take(&windows, 60).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let windows =
            Arc::new(Windows { wait: Duration::from_secs(60), ..Windows::new(100, WAIT) });
        drop(half);
        let half = Windows::take(&windows, 50).unwrap();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (place, bytes) in [(1, 100), (2, 10)] {
                let windows = &windows;
                let order = &order;
                scope.spawn(move || {
                    let taken = Windows::take(windows, bytes).unwrap();
                    order.lock().unwrap().push(bytes);
                    drop(taken);
                });
                let end = Instant::now() + Duration::from_secs(60);
                while lock(&windows.state).queue.len() < place {
                    assert!(Instant::now() < end, "nobody comes to wait");
                    std::thread::yield_now();
                }
            }
            drop(half);
        });
        assert_eq!(order.into_inner().unwrap(), [100, 10]);
    }
}
