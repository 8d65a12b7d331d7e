//! The built binary: static, and not too big.

use crate::config::Config;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Program header types of an ELF file that make it need a loader or libraries.
const PT_INTERP: u32 = 3;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;

/// The binary of the tree that was built last, in any profile.
pub(crate) fn last_built(top: &Path) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(top.join("target"), PathBuf::from);
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(&triple).join(profile).join("gantry"))
        .filter_map(|file| Some((std::fs::metadata(&file).ok()?.modified().ok()?, file)))
        .max()
        .map(|(_, file)| file)
}

pub(crate) fn check(file: &Path, config: &Config) -> Result<Vec<String>> {
    let shown = file.display();
    let data = std::fs::read(file).with_context(|| format!("read {shown}"))?;
    let mut complaints = Vec::new();
    let needs = needs(&data).with_context(|| format!("{shown}: not a 64-bit ELF file"))?;
    complaints.extend(needs.iter().map(|need| format!("binary: {shown} needs {need}")));
    let release = file.components().any(|part| part.as_os_str() == "release");
    let (size, limit) = (data.len() as u64, config.limits.binary_bytes);
    if release && size > limit {
        complaints.push(format!("binary: {shown} has {size} bytes, more than {limit}"));
    }
    Ok(complaints)
}

/// What a loader would have to bring; `None` if this is no little-endian 64-bit ELF file.
fn needs(data: &[u8]) -> Option<Vec<String>> {
    if data.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let at = |offset: u64| usize::try_from(offset).ok();
    let half =
        |offset: usize| Some(u16::from_le_bytes(data.get(offset..offset + 2)?.try_into().ok()?));
    let word =
        |offset: usize| Some(u32::from_le_bytes(data.get(offset..offset + 4)?.try_into().ok()?));
    let long =
        |offset: usize| Some(u64::from_le_bytes(data.get(offset..offset + 8)?.try_into().ok()?));
    let (table, size, count) = (at(long(32)?)?, usize::from(half(54)?), usize::from(half(56)?));
    let mut found = Vec::new();
    for index in 0..count {
        let header = table + index * size;
        let (kind, offset, length) =
            (word(header)?, at(long(header + 8)?)?, at(long(header + 32)?)?);
        match kind {
            PT_INTERP => {
                let name = data.get(offset..offset + length)?;
                let name = String::from_utf8_lossy(name);
                found.push(format!("the loader {}", name.trim_end_matches('\0')));
            }
            PT_DYNAMIC => {
                let entries = (offset..offset + length).step_by(16);
                let libraries = entries.filter(|entry| long(*entry) == Some(DT_NEEDED)).count();
                if libraries > 0 {
                    found.push(format!("{libraries} dynamic libraries"));
                }
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs(&own).unwrap(), Vec::<String>::new()); // this tree links statically
        let dynamic = std::fs::read("/bin/sh").unwrap();
        let found = needs(&dynamic).unwrap();
        assert!(found[0].starts_with("the loader /lib"), "{found:?}");
        assert!(found[1].ends_with("dynamic libraries"), "{found:?}");
        assert_eq!(needs(b"#!/bin/sh\n"), None);
    }
}
