//! `--chown` names from an image's own `/etc/passwd` and `/etc/group`, and `--chmod`.
//!
//! The files are the image's: they are read up to a limit, only if they are regular files, and never
//! through the host's name service.

use std::{io::Read, os::fd::BorrowedFd, path::Path};

use rustix::io::Errno;

use crate::{
    error::{Error, Result},
    tree::{self, Kind},
};

/// Bytes of a passwd or group file: ten thousands of users.
const FILE_BYTES: u64 = 4 << 20;
/// The kernel's and docker's largest id.
const LARGEST_ID: u32 = 2_147_483_647;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A number within range; `None` for a name; an error for what looks like a number and is none.
fn number(text: &str) -> Result<Option<u32>> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let signed = text
        .strip_prefix(['+', '-'])
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()));
    if signed {
        return Err(Error::Invalid(format!("invalid user or group id {text:?}")));
    }
    if !digits {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= LARGEST_ID => Ok(Some(id)),
        _ => Err(Error::Invalid(format!("user or group id {text} is out of range"))),
    }
}

/// Reads `user[:group]`. A user alone: by name with the group of its passwd entry, by number with the
/// group of the same number.
///
/// # Errors
/// Unknown names, numbers out of range, files that cannot be used.
pub(crate) fn resolve(spec: &str, root: BorrowedFd<'_>) -> Result<Owner> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let (uid, own_group) = match number(user)? {
        Some(uid) => (uid, uid),
        None if user.is_empty() => (0, 0),
        None => user_entry(user, root)?,
    };
    let gid = match group {
        None => own_group,
        Some(group) => match number(group)? {
            Some(gid) => gid,
            None => group_entry(group, root)?,
        },
    };
    Ok(Owner { uid, gid })
}

fn user_entry(name: &str, root: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let file = read(root, "/etc/passwd")?;
    let entry = fields(&file).find(|fields| fields.first() == Some(&name));
    let ids = entry.and_then(|fields| {
        let uid = number(fields.get(2)?).ok()??;
        let gid = number(fields.get(3)?).ok()??;
        Some((uid, gid))
    });
    ids.ok_or_else(|| Error::NoSuchUser { what: "uid", name: name.into() })
}

fn group_entry(name: &str, root: BorrowedFd<'_>) -> Result<u32> {
    let file = read(root, "/etc/group")?;
    let entry = fields(&file).find(|fields| fields.first() == Some(&name));
    let gid = entry.and_then(|fields| number(fields.get(2)?).ok()?);
    gid.ok_or_else(|| Error::NoSuchUser { what: "gid", name: name.into() })
}

fn fields(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.splitn(8, ':').collect())
}

fn read(root: BorrowedFd<'_>, path: &'static str) -> Result<String> {
    let fail = |problem: &str| Error::UserFile { path, problem: problem.into() };
    let (place, node) = match tree::resolve(root, Path::new(path), true) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(fail(&errno.to_string())),
    };
    if node.kind != Kind::File {
        return Err(fail("it is not a regular file"));
    }
    if node.size > FILE_BYTES {
        return Err(fail("it is larger than 4 MiB"));
    }
    let file = tree::open_file(root, &place).map_err(|errno| fail(&errno.to_string()))?;
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(&error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `--chmod` does to a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    /// Bits of the classes: 0o700, 0o070, 0o007 together with their special bits.
    who: u32,
    actions: Vec<(char, String)>,
}

impl Chmod {
    /// # Errors
    /// [`Error::Mode`]
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = || Error::Mode(text.into());
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| bad())?;
            return if mode <= 0o7777 { Ok(Self::Octal(mode)) } else { Err(bad()) };
        }
        let clauses = text.split(',').map(|clause| Self::clause(clause).ok_or_else(bad));
        clauses.collect::<Result<Vec<_>>>().map(Self::Symbolic)
    }

    fn clause(text: &str) -> Option<Clause> {
        let end = text.find(['+', '-', '='])?;
        let (who, mut rest) = text.split_at(end);
        let mut bits = 0;
        for c in who.chars() {
            bits |= match c {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return None,
            };
        }
        if who.is_empty() {
            bits = 0o7777;
        }
        let mut actions = Vec::new();
        while let Some(operator) = rest.chars().next() {
            let tail = &rest[1..];
            let end = tail.find(['+', '-', '=']).unwrap_or(tail.len());
            let permissions = &tail[..end];
            if !permissions.bytes().all(|b| b"rwxXstugo".contains(&b)) {
                return None;
            }
            actions.push((operator, permissions.to_string()));
            rest = &tail[end..];
        }
        Some(Clause { who: bits, actions })
    }

    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let clauses = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(clauses) => clauses,
        };
        let mut mode = mode;
        for clause in clauses {
            for (operator, permissions) in &clause.actions {
                let bits = bits(permissions, mode, is_dir) & clause.who;
                mode = match operator {
                    '+' => mode | bits,
                    '-' => mode & !bits,
                    _ => (mode & !(clause.who & 0o777)) | bits,
                };
            }
        }
        mode
    }
}

fn bits(permissions: &str, mode: u32, is_dir: bool) -> u32 {
    let mut bits = 0;
    for c in permissions.chars() {
        bits |= match c {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            'X' if is_dir || mode & 0o111 != 0 => 0o111,
            's' => 0o6000,
            't' => 0o1000,
            'u' => ((mode >> 6) & 7) * 0o111,
            'g' => ((mode >> 3) & 7) * 0o111,
            'o' => (mode & 7) * 0o111,
            _ => 0,
        };
    }
    bits
}
