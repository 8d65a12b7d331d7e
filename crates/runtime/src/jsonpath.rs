//! Where in a JSON text something stands: the path of keys to a place that a parser complains about.

/// The path (`process.user.uid`, `mounts[2].type`) of the value that ends at or holds the place
/// `line`, `column` (both from 1), in bytes. Empty for the document itself, and for a text that is no
/// JSON up to there.
pub(crate) fn at(text: &[u8], line: usize, column: usize) -> String {
    let starts = std::iter::once(0)
        .chain(text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1));
    let start = starts.into_iter().nth(line.saturating_sub(1)).unwrap_or(text.len());
    let end = start.saturating_add(column).min(text.len());
    let mut stack: Vec<Level> = Vec::new();
    let mut at = 0;
    while at < end {
        match text[at] {
            b'{' => stack.push(Level::Object { key: String::new(), in_value: false }),
            b'[' => stack.push(Level::Array(0)),
            // Also at the very place: the value that is closed there is the one meant.
            b'}' | b']' => drop(stack.pop()),
            b':' => {
                if let Some(Level::Object { in_value, .. }) = stack.last_mut() {
                    *in_value = true;
                }
            }
            b',' if at + 1 < end => match stack.last_mut() {
                Some(Level::Array(index)) => *index += 1,
                Some(Level::Object { key, in_value }) => (*key, *in_value) = (String::new(), false),
                None => {}
            },
            b'"' => {
                let close = string_end(text, at + 1);
                if let Some(Level::Object { key, in_value: false }) = stack.last_mut() {
                    *key = String::from_utf8_lossy(&text[at + 1..close]).into_owned();
                }
                at = close;
            }
            _ => {}
        }
        at += 1;
    }
    let mut out = String::new();
    for level in stack {
        match level {
            Level::Object { key, in_value: true } if out.is_empty() => out = key,
            Level::Object { key, in_value: true } => out.push_str(&format!(".{key}")),
            Level::Object { .. } => {}
            Level::Array(index) => out.push_str(&format!("[{index}]")),
        }
    }
    out
}

enum Level {
    Object { key: String, in_value: bool },
    Array(usize),
}

/// Where the string that starts at `at` has its closing quote, or the text its end.
fn string_end(text: &[u8], mut at: usize) -> usize {
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    fn path(text: &str) -> String {
        let e = serde_json::from_str::<crate::spec::Spec>(text).unwrap_err();
        super::at(text.as_bytes(), e.line(), e.column())
    }

    #[test]
    fn the_field_that_has_the_wrong_type() {
        assert_eq!(path(r#"{"process":{"user":{"gid":1,"uid":"zero"}}}"#), "process.user.uid");
        assert_eq!(
            path("{\"hostname\":\"a\\\"b,{\",\n \"mounts\":[{},\n {\"type\": 7}]}"),
            "mounts[1].type"
        );
        assert_eq!(
            path(r#"{"linux":{"resources":{"pids":{"limit":true}}}}"#),
            "linux.resources.pids.limit"
        );
        assert_eq!(path(r#"{"mounts":{"a":1}}"#), "mounts");
        assert_eq!(path("nonsense"), "");
    }

    #[test]
    fn an_array_is_no_object() {
        for (text, field) in [
            (r#"{"process":{"user":[1000,1000]}}"#, "process.user"),
            (r#"{"root": [ "/x" ] , "mounts": []}"#, "root"),
            (r#"{"mounts":[{}, [], {}]}"#, "mounts[1]"),
            (r#"{"hooks":{"prestart":[{"path":"/a"},["/b"]]}}"#, "hooks.prestart[1]"),
            (r#"{"linux":{"resources":{"memory":[[1]]}}}"#, "linux.resources.memory"),
            ("[]", ""),
            ("[\"1.0\"]", ""),
        ] {
            assert_eq!(path(text), field, "{text}");
            let e = serde_json::from_str::<crate::spec::Spec>(text).unwrap_err().to_string();
            assert!(e.starts_with("cannot unmarshal array"), "{text}: {e}");
        }
    }
}
