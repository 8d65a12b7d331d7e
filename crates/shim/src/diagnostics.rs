//! The shim's own messages: to the FIFO `log` that containerd made in the bundle, or to
//! `shim.log` there. Never blocks, never grows without bound.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// `shim.log` does not grow beyond this many bytes; a shim has little to say.
const FILE_BYTES_MAX: usize = 256 << 10;

/// Where messages go.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    file: Option<File>,
    written: Cell<usize>,
    debug: bool,
}

impl Diagnostics {
    /// Opens the bundle's log; without one, messages are dropped.
    pub(crate) fn open(bundle: &Path, debug: bool) -> Diagnostics {
        let fifo = bundle.join("log");
        let is_fifo = std::fs::metadata(&fifo).is_ok_and(|m| m.file_type().is_fifo());
        let mut options = std::fs::OpenOptions::new();
        let file = if is_fifo {
            // Reading too: the open succeeds before containerd reads, and its end is no SIGPIPE.
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            options.read(true).write(true).custom_flags(flags).open(fifo)
        } else {
            options.create(true).append(true).mode(0o600).open(bundle.join("shim.log"))
        };
        Diagnostics { file: file.ok(), written: Cell::new(0), debug }
    }

    /// Something failed that no caller is told of.
    pub(crate) fn error(&self, text: &str) {
        self.write("error", text);
    }

    /// For `-debug`.
    pub(crate) fn debug(&self, text: &str) {
        if self.debug {
            self.write("debug", text);
        }
    }

    fn write(&self, level: &str, text: &str) {
        let time = crate::time::rfc3339_nano(&protos::shim::now());
        let line = format!("time=\"{time}\" level={level} msg={text:?}\n");
        if self.written.get() + line.len() > FILE_BYTES_MAX {
            return;
        }
        self.written.set(self.written.get() + line.len());
        if let Some(mut file) = self.file.as_ref() {
            // There is nobody left to tell.
            drop(file.write_all(line.as_bytes()));
        }
    }
}
