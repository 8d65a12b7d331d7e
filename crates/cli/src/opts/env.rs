//! Environment variables and labels, from flags and files.

use std::path::Path;

use api_types::Map;

use crate::values;

/// An environment or label file may not be larger.
const MAX_FILE_BYTES: u64 = 16 << 20;

fn lines(path: &Path) -> Result<Vec<String>, String> {
    let shown = path.display();
    let open = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => format!("open {shown}: no such file or directory"),
        _ => format!("open {shown}: {e}"),
    };
    let size = std::fs::metadata(path).map_err(open)?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{shown} is larger than {MAX_FILE_BYTES} bytes"));
    }
    let bytes = std::fs::read(path).map_err(open)?;
    let text =
        String::from_utf8(bytes).map_err(|_| format!("invalid env file ({shown}): not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err(format!("invalid env file ({shown}): no variable name on line '{line}'"));
        }
        if name.contains([' ', '\t']) {
            return Err(format!(
                "invalid env file ({shown}): variable '{name}' contains whitespaces"
            ));
        }
        out.push(line.to_owned());
    }
    Ok(out)
}

/// Files first, then flags; `NAME` alone takes our own variable and is dropped if there is none.
pub(crate) fn env_list(files: &[String], given: &[String]) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    for file in files {
        out.extend(lines(Path::new(file))?);
    }
    for entry in given {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(format!("invalid environment variable: {entry}"));
        }
        out.push(entry.clone());
    }
    Ok(out
        .into_iter()
        .filter_map(|entry| match entry.contains('=') {
            true => Some(entry),
            false => std::env::var(&entry).ok().map(|value| format!("{entry}={value}")),
        })
        .collect())
}

/// Files first, then flags; `NAME` alone has an empty value.
pub(crate) fn label_map(files: &[String], given: &[String]) -> Result<Map<String>, String> {
    let mut map = Map::new();
    for file in files {
        map.extend(lines(Path::new(file))?.iter().map(|line| values::key_value(line)));
    }
    map.extend(given.iter().map(|label| values::key_value(label)));
    Ok(map)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_and_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env").display().to_string();
        std::fs::write(&file, "\u{feff}# comment\n\nA=1\n  B = x\n").unwrap();
        assert!(
            env_list(std::slice::from_ref(&file), &[])
                .unwrap_err()
                .contains("contains whitespaces")
        );
        std::fs::write(&file, "A=1 # kept\n\tPATH\nNOT_SET_ANYWHERE\n").unwrap();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        let got = env_list(std::slice::from_ref(&file), &["C=3".into(), "D=".into()]).unwrap();
        assert_eq!(got, ["A=1 # kept".to_owned(), path, "C=3".into(), "D=".into()]);
        assert!(env_list(&[], &["=x".into()]).is_err());
        let labels = label_map(&[], &["a=b=c".into(), "d".into()]).unwrap();
        assert_eq!((labels["a"].as_str(), labels["d"].as_str()), ("b=c", ""));
        assert_eq!(
            env_list(&["/nonexistent".into()], &[]).unwrap_err(),
            "open /nonexistent: no such file or directory"
        );
    }
}
