//! The terminal: size, raw mode, detach keys.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Height and width of our terminal; zeros without one.
pub(crate) fn size() -> [u32; 2] {
    match tcgetwinsize(std::io::stdout().as_fd()) {
        Ok(size) => [size.ws_row.into(), size.ws_col.into()],
        Err(_) => [0, 0],
    }
}

/// Columns to write help and progress in.
pub(crate) fn columns(default: usize) -> usize {
    match size()[1] {
        0 => default,
        width => usize::try_from(width).unwrap_or(default),
    }
}

/// Stdin in raw mode, until dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    saved: Option<Termios>,
}

impl Raw {
    /// Makes stdin raw if it is a terminal.
    pub(crate) fn enter() -> Raw {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Raw { saved: None };
        }
        let Ok(saved) = tcgetattr(stdin.as_fd()) else { return Raw { saved: None } };
        let mut raw = saved.clone();
        raw.make_raw();
        match tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw) {
            Ok(()) => Raw { saved: Some(saved) },
            Err(_) => Raw { saved: None },
        }
    }

    /// Stdin without echo, for passwords.
    pub(crate) fn silent() -> Raw {
        let stdin = std::io::stdin();
        let Ok(saved) = tcgetattr(stdin.as_fd()) else { return Raw { saved: None } };
        let mut quiet = saved.clone();
        quiet.local_modes.remove(rustix::termios::LocalModes::ECHO);
        match tcsetattr(stdin.as_fd(), OptionalActions::Now, &quiet) {
            Ok(()) => Raw { saved: Some(saved) },
            Err(_) => Raw { saved: None },
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // A terminal that is gone needs no restoring.
            tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, saved).ok();
        }
    }
}

/// `ctrl-p,ctrl-q` or `ctrl-@,a`: the bytes of a key sequence.
pub(crate) fn keys(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for key in text.split(',') {
        let unknown = || format!("Unknown character: '{key}'");
        let byte = match key.as_bytes() {
            [b] => *b,
            _ => match key.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([b @ b'a'..=b'z']) => b - b'a' + 1,
                Some([b'@']) => 0,
                Some([b @ (b'[' | b'\\' | b']' | b'^' | b'_')]) => b - b'[' + 27,
                _ => return Err(unknown()),
            },
        };
        out.push(byte);
    }
    Ok(out)
}

/// Looks for the detach keys in what is typed.
#[derive(Debug)]
pub(crate) struct Escape {
    keys: Vec<u8>,
    matched: usize,
}

impl Escape {
    pub(crate) fn new(keys: Vec<u8>) -> Escape {
        Escape { keys, matched: 0 }
    }

    /// Passes `input` on, but for keys that may begin the sequence; true when it is complete.
    pub(crate) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in input {
            if self.keys.is_empty() {
                out.push(byte);
                continue;
            }
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if byte == self.keys[0] {
                self.matched = 1;
            } else {
                out.push(byte);
            }
        }
        false
    }

    /// What was held back, at the end of the input.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let held = self.keys[..self.matched].to_vec();
        self.matched = 0;
        held
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn detach_keys() {
        assert_eq!(keys("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(keys("a,ctrl-@,ctrl-_").unwrap(), [b'a', 0, 31]);
        assert!(keys("ctrl-1").is_err() && keys("ab").is_err() && keys("").is_err());
        for split in 0..5 {
            let mut e = Escape::new(vec![16, 17]);
            let mut out = Vec::new();
            let text = [b'x', 16, 16, 17, b'y'];
            let done = e.feed(&text[..split], &mut out) || e.feed(&text[split..], &mut out);
            assert!(done);
            assert_eq!(out, [b'x', 16]);
        }
        let mut e = Escape::new(vec![16, 17]);
        let mut out = Vec::new();
        assert!(!e.feed(&[16, b'a', 16], &mut out));
        assert_eq!((out, e.rest()), (vec![16, b'a'], vec![16]));
    }
}
