//! Who a process runs as: `user[:group]` against the image's own passwd and group files
//! (moby `daemon/oci_linux.go` `getUser`, moby/sys/user `GetExecUser`). The files come from the image
//! and are read with limits; nothing else of the image is consulted.

use std::os::fd::AsFd;

use crate::{Error, Result, rootfs};

/// Bytes of a passwd or group file: a hundred thousand accounts fit, a sparse giant does not.
const FILE_LIMIT_BYTES: u64 = 8 << 20;
/// Bytes of a line: what glibc reads at most.
const LINE_LIMIT_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Parsed text of the two files.
struct Accounts {
    passwd: Vec<Vec<String>>,
    group: Vec<Vec<String>>,
}

/// Resolves `text` inside a root. `extra` are `--group-add` names or numbers.
pub(crate) fn resolve(root: &impl AsFd, text: &str, extra: &[String]) -> Result<User> {
    let load = |path| -> Result<Vec<Vec<String>>> {
        let bytes = rootfs::read_in(root, path, FILE_LIMIT_BYTES)?.unwrap_or_default();
        Ok(lines(&bytes))
    };
    let accounts = Accounts { passwd: load("/etc/passwd")?, group: load("/etc/group")? };
    accounts.resolve(text, extra)
}

fn lines(bytes: &[u8]) -> Vec<Vec<String>> {
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty() && line[0] != b'#' && line.len() <= LINE_LIMIT_BYTES)
        .map(|line| String::from_utf8_lossy(line).split(':').map(Into::into).collect())
        .collect()
}

/// A number in the range of ids: an explicit refusal of what would wrap around
/// (CVE-2024-40635, CVE-2022-36109).
fn number(text: &str) -> Option<Result<u32>> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // moby/sys/user: ids are 0 to 2^31 - 1.
    let range = || Error::invalid("uids and gids must be in range 0-2147483647".to_string());
    Some(match text.parse::<i64>() {
        Ok(id) => u32::try_from(id).ok().filter(|id| *id <= 2_147_483_647).ok_or_else(range),
        Err(_) => Err(range()),
    })
}

impl Accounts {
    fn resolve(&self, text: &str, extra: &[String]) -> Result<User> {
        let (user_text, group_text) = text.split_once(':').unwrap_or((text, ""));
        let (mut user, name) = self.user(user_text)?;
        user.groups.clear();
        if group_text.is_empty() {
            if let Some(name) = &name {
                user.groups = self.groups_of(name);
            }
        } else {
            user.gid = self.group(group_text, "unable")?;
        }
        // The kernel looks at the supplementary groups alone where a negative permission of a group is
        // meant (CVE-2022-36109).
        user.groups.insert(0, user.gid);
        for group in extra {
            user.groups.push(self.group(group, "Unable")?);
        }
        user.groups.retain({
            let mut seen = std::collections::BTreeSet::new();
            move |gid| seen.insert(*gid)
        });
        Ok(user)
    }

    /// The account and its name, where it has one.
    fn user(&self, text: &str) -> Result<(User, Option<String>)> {
        let text = if text.is_empty() { "0" } else { text };
        let by_name = self.passwd.iter().find(|entry| entry[0] == text);
        let id = number(text).transpose()?;
        // A number is a number, whatever an account is called.
        let entry = match id {
            Some(id) => self.passwd.iter().find(|entry| field(entry, 2) == Some(id)),
            None => by_name,
        };
        match (entry, id) {
            (Some(entry), _) => {
                let uid = field(entry, 2).ok_or_else(|| {
                    Error::invalid(format!("the image's passwd entry of {text:?} has no valid uid"))
                })?;
                let home = entry.get(5).cloned().unwrap_or_default();
                let gid = field(entry, 3).unwrap_or(0);
                Ok((User { uid, gid, groups: Vec::new(), home }, Some(entry[0].clone())))
            }
            (None, Some(uid)) => {
                let home = if uid == 0 { "/root" } else { "/" };
                Ok((User { uid, home: home.into(), ..User::default() }, None))
            }
            (None, None) => Err(Error::invalid(format!(
                "unable to find user {text}: no matching entries in passwd file"
            ))),
        }
    }

    /// `unable` as dockerd writes it for `--user` and for `--group-add`.
    fn group(&self, text: &str, unable: &str) -> Result<u32> {
        if let Some(id) = number(text) {
            return id;
        }
        self.group
            .iter()
            .find(|entry| entry[0] == text)
            .and_then(|entry| field(entry, 2))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{unable} to find group {text}: no matching entries in group file"
                ))
            })
    }

    fn groups_of(&self, name: &str) -> Vec<u32> {
        self.group
            .iter()
            .filter(|entry| {
                entry.get(3).is_some_and(|members| members.split(',').any(|m| m == name))
            })
            .filter_map(|entry| field(entry, 2))
            .collect()
    }
}

fn field(entry: &[String], index: usize) -> Option<u32> {
    entry.get(index).and_then(|text| number(text)).and_then(Result::ok)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: lines(
                b"root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002::/home/app:/bin/sh\n1000:x:0:0::/:/bin/sh\n",
            ),
            group: lines(b"root:x:0:\nwheel:x:10:app,other\ndocker:x:999:app\n"),
        }
    }

    #[test]
    fn names_numbers_and_groups() {
        let app = accounts().resolve("app", &["docker".into(), "77".into()]).unwrap();
        assert_eq!((app.uid, app.gid), (1001, 1002));
        assert_eq!(app.groups, [1002, 10, 999, 77]);
        assert_eq!(app.home, "/home/app");
        let by_id = accounts().resolve("1001:10", &[]).unwrap();
        assert_eq!((by_id.uid, by_id.gid, by_id.groups), (1001, 10, vec![10]));
        let unknown = accounts().resolve("4242", &[]).unwrap();
        assert_eq!((unknown.uid, unknown.gid), (4242, 0));
    }

    #[test]
    fn a_number_is_never_an_accounts_name() {
        // An account called "1000" with uid 0 must not make `--user 1000` root.
        assert_eq!(accounts().resolve("1000", &[]).unwrap().uid, 1000);
    }

    #[test]
    fn ids_out_of_range_are_refused() {
        for text in ["2147483648", "4294967296", "-1", "99999999999999999999", "0:4294967295"] {
            assert!(accounts().resolve(text, &[]).is_err(), "{text}");
        }
        assert!(accounts().resolve("+0", &[]).is_err());
        assert!(accounts().resolve("nobody", &[]).is_err());
    }
}
