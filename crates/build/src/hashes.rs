//! Contents of files as digests, remembered by inode, size, modification and change time.

use std::{
    collections::HashMap,
    io::{Read, Write},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    tree::{self, Node},
};

pub(crate) type Hash = [u8; 32];

const READ_BYTES: usize = 128 << 10;
/// dev, ino, size, mtime, ctime, hash.
const RECORD_BYTES: usize = 8 * 7 + 32;
/// Files remembered per directory tree.
const RECORDS: usize = 2_000_000;
/// A file that changed so recently may change again within the clock's tick without a trace.
const SETTLED_SECONDS: i64 = 2;
/// Records of files that were not seen that are kept in any case.
const STALE: usize = 50_000;
const MAGIC: &[u8; 16] = b"gantry-hashes-1\n";

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    fn of(node: &Node) -> Self {
        let Node { dev, ino, size, mtime, ctime, .. } = node;
        Self { dev: *dev, ino: *ino, size: *size, mtime: *mtime, ctime: *ctime }
    }
}

/// The memory of one context.
pub(crate) struct Memo {
    /// Where it is kept; `None`: nowhere, as for a context that exists only once.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<Identity, Hash>,
    /// Those seen in this build: what is written back.
    seen: HashMap<Identity, Hash>,
    changed: bool,
}

impl Memo {
    /// Reads what is remembered; a damaged file counts as empty.
    pub(crate) fn open(file: Option<PathBuf>) -> Self {
        let known = file.as_deref().and_then(|path| std::fs::read(path).ok());
        let known = known.and_then(|bytes| decode(&bytes)).unwrap_or_default();
        Self { file, state: Mutex::new(State { known, ..State::default() }) }
    }

    fn lookup(&self, node: &Node) -> Option<Hash> {
        let identity = Identity::of(node);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = *state.known.get(&identity)?;
        state.seen.insert(identity, hash);
        Some(hash)
    }

    fn remember(&self, node: &Node, hash: Hash) {
        let newest = node.ctime.0.max(node.mtime.0);
        if store_api::Timestamp::now().seconds - newest < SETTLED_SECONDS {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = Identity::of(node);
        state.known.insert(identity, hash);
        state.seen.insert(identity, hash);
        state.changed = true;
    }

    /// Writes down what was seen, if there was anything new. Failure only costs time later.
    pub(crate) fn save(&self) {
        let Some(file) = &self.file else { return };
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.changed || state.seen.len() > RECORDS {
            return;
        }
        // What other targets of the same context read is kept, unless most of it is stale.
        let keep_all = state.known.len() <= (4 * state.seen.len() + STALE).min(RECORDS);
        let kept = if keep_all { &state.known } else { &state.seen };
        if let Err(error) = crate::files::replace(file, &encode(kept)) {
            tracing::debug!(error = %error, "hashes of a context are not remembered");
        }
    }
}

fn encode(known: &HashMap<Identity, Hash>) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAGIC.len() + known.len() * RECORD_BYTES);
    out.extend_from_slice(MAGIC);
    for (id, hash) in known {
        for number in [id.dev, id.ino, id.size] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [id.mtime.0, id.mtime.1, id.ctime.0, id.ctime.1] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(hash);
    }
    out
}

fn decode(bytes: &[u8]) -> Option<HashMap<Identity, Hash>> {
    let body = bytes.strip_prefix(MAGIC.as_slice())?;
    if body.len() % RECORD_BYTES != 0 {
        return None;
    }
    let mut known = HashMap::with_capacity(body.len() / RECORD_BYTES);
    for record in body.chunks_exact(RECORD_BYTES) {
        let word = |index: usize| <[u8; 8]>::try_from(&record[index * 8..index * 8 + 8]).ok();
        let unsigned = |index| word(index).map(u64::from_le_bytes);
        let signed = |index| word(index).map(i64::from_le_bytes);
        let identity = Identity {
            dev: unsigned(0)?,
            ino: unsigned(1)?,
            size: unsigned(2)?,
            mtime: (signed(3)?, signed(4)?),
            ctime: (signed(5)?, signed(6)?),
        };
        known.insert(identity, record[56..].try_into().ok()?);
    }
    Some(known)
}

/// Digests of regular files, in the order given. What is not remembered is read by several threads.
///
/// # Errors
/// The first file that cannot be read, or is not what it was when it was looked at.
pub(crate) fn hash_all(
    root: BorrowedFd<'_>,
    files: &[(&Path, &Node)],
    memo: &Memo,
) -> Result<Vec<Hash>> {
    let mut hashes: Vec<Option<Hash>> = files.iter().map(|(_, node)| memo.lookup(node)).collect();
    let missing: Vec<usize> = (0..files.len()).filter(|at| hashes[*at].is_none()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let next = AtomicUsize::new(0);
    let found: Result<Vec<Vec<(usize, Hash)>>> = std::thread::scope(|scope| {
        let worker = || {
            let mut mine = Vec::new();
            while let Some(at) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (path, node) = files[*at];
                mine.push((*at, hash_file(root, path, node)?));
            }
            Ok(mine)
        };
        let count = threads.min(missing.len().div_ceil(16));
        let handles: Vec<_> = (1..count).map(|_| scope.spawn(worker)).collect();
        let mut all = vec![worker()];
        // A panic aborts the process (profile), so join cannot fail otherwise.
        all.extend(handles.into_iter().filter_map(|handle| handle.join().ok()));
        all.into_iter().collect()
    });
    for (at, hash) in found?.into_iter().flatten() {
        memo.remember(files[at].1, hash);
        hashes[at] = Some(hash);
    }
    Ok(hashes.into_iter().flatten().collect())
}

/// Contents and portable attributes of one file.
fn hash_file(root: BorrowedFd<'_>, path: &Path, node: &Node) -> Result<Hash> {
    let fd = tree::open_file(root, path).map_err(Error::errno("open", path))?;
    let stat = rustix::fs::fstat(&fd).map_err(Error::errno("stat", path))?;
    let attributes = tree::xattrs(fd.as_fd()).map_err(Error::errno("read attributes of", path))?;
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::from(fd);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    if !node.same_as(&stat) {
        return Err(changed(path));
    }
    if attributes.is_empty() {
        return Ok(hasher.finalize().into());
    }
    let contents: Hash = hasher.finalize().into();
    let mut hasher = Sha256::new();
    hasher.update(contents);
    for (name, value) in attributes {
        for part in [name.as_bytes(), &value] {
            hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
    }
    Ok(hasher.finalize().into())
}

pub(crate) fn changed(path: &Path) -> Error {
    Error::Io {
        op: "read",
        path: path.into(),
        source: std::io::Error::other("the file changed while the build read it"),
    }
}

/// A hash as hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to memory cannot fail.
        if write!(text, "{byte:02x}").is_err() {
            break;
        }
    }
    String::from_utf8(text).unwrap_or_default()
}
