//! `.dockerignore`: moby's `patternmatcher` and `ignorefile`, in rules though not in code.

use std::path::{Component, Path};

use crate::glob::{BadPattern, Glob, Style, clean};

/// Bytes of a `.dockerignore`: beyond any that people write, far below what hurts.
pub const FILE_BYTES: usize = 4 << 20;
/// Patterns of one file.
pub const PATTERNS: usize = 20_000;

/// Why a `.dockerignore` cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum IgnoreError {
    #[error("line {line}: invalid exclusion pattern")]
    Pattern {
        line: usize,
        #[source]
        source: BadPattern,
    },
    #[error("line {line}: illegal exclusion pattern: \"!\"")]
    LoneExclamation { line: usize },
    #[error("ignore file is larger than {FILE_BYTES} bytes")]
    TooLarge,
    #[error("ignore file has more than {PATTERNS} patterns")]
    TooMany,
}

/// The patterns of a `.dockerignore`. The last pattern that matches a path, or a directory above it,
/// decides; `!pattern` takes the path back in.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    exception: bool,
    glob: Glob,
    text: String,
}

impl Matcher {
    /// Reads the text of a `.dockerignore`: `#` in column 0 starts a comment, blanks at the ends, a
    /// leading slash, `.` and `..` components are dropped. A byte order mark is skipped.
    ///
    /// # Errors
    /// [`IgnoreError`] with the line.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        if text.len() > FILE_BYTES {
            return Err(IgnoreError::TooLarge);
        }
        let mut matcher = Self::default();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            if line.starts_with('#') {
                continue;
            }
            let pattern = line.trim();
            let (exception, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, pattern),
            };
            if pattern.is_empty() {
                if exception {
                    return Err(IgnoreError::LoneExclamation { line: line_number });
                }
                continue;
            }
            matcher
                .add(pattern, exception)
                .map_err(|source| IgnoreError::Pattern { line: line_number, source })?;
            if matcher.rules.len() > PATTERNS {
                return Err(IgnoreError::TooMany);
            }
        }
        Ok(matcher)
    }

    /// From patterns as COPY's `--exclude` gives them; `!` makes an exception.
    ///
    /// # Errors
    /// [`BadPattern`] for the first pattern that is not well-formed.
    pub fn from_patterns<S: AsRef<str>>(patterns: &[S]) -> Result<Self, BadPattern> {
        let mut matcher = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            match pattern.strip_prefix('!') {
                Some("") => return Err(BadPattern(pattern.into())),
                Some(rest) => matcher.add(rest.trim(), true)?,
                None if pattern.is_empty() => {}
                None => matcher.add(pattern, false)?,
            }
        }
        Ok(matcher)
    }

    /// Adds an exception for one literal path: the Dockerfile and `.dockerignore` themselves are sent
    /// to the builder whatever the patterns say.
    pub fn keep(&mut self, path: &Path) {
        let text = relative(path);
        let mut escaped = String::with_capacity(text.len());
        for c in text.chars() {
            if "*?[]\\".contains(c) {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        if let Ok(glob) = Glob::compile(&escaped, Style::Ignore) {
            self.rules.push(Rule { exception: true, glob, text });
        }
    }

    /// No patterns at all: nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    fn add(&mut self, pattern: &str, exception: bool) -> Result<(), BadPattern> {
        let cleaned = clean(pattern);
        let text = match cleaned.strip_prefix('/') {
            Some("") | None => cleaned.as_str(),
            Some(rest) => rest,
        };
        let glob = Glob::compile(text, Style::Ignore)?;
        self.rules.push(Rule { exception, glob, text: text.to_string() });
        Ok(())
    }

    /// Is `path` (relative to the context's root) left out? The root itself never is. Whether it is a
    /// directory makes no difference in this language.
    pub fn is_ignored(&self, path: &Path) -> bool {
        let text = relative(path);
        if text.is_empty() || self.rules.is_empty() {
            return false;
        }
        let prefixes: Vec<&str> =
            text.match_indices('/').map(|(at, _)| &text[..at]).chain([text.as_str()]).collect();
        let mut ignored = false;
        for rule in &self.rules {
            // A rule that would not change the verdict need not be tried.
            if rule.exception == ignored && prefixes.iter().any(|p| rule.glob.matches(p)) {
                ignored = !rule.exception;
            }
        }
        ignored
    }

    /// May a `!` pattern take something below the ignored directory `dir` back in? If not, `dir` need
    /// not be walked. May say yes too often, never no too often.
    pub fn may_contain_exception_below(&self, dir: &Path) -> bool {
        let text = relative(dir);
        if text.is_empty() {
            return self.rules.iter().any(|rule| rule.exception);
        }
        let below = format!("{text}/");
        let exceptions = self.rules.iter().filter(|rule| rule.exception);
        exceptions.into_iter().any(|rule| {
            rule.glob.matches_beyond(&below)
                || below.match_indices('/').any(|(at, _)| rule.glob.matches(&below[..at]))
        })
    }

    /// The patterns, `!` in front of exceptions, cleaned.
    pub fn patterns(&self) -> impl Iterator<Item = String> + '_ {
        self.rules
            .iter()
            .map(|rule| format!("{}{}", if rule.exception { "!" } else { "" }, rule.text))
    }
}

/// The normal components of a path, joined by slashes; bytes that are not UTF-8 are replaced, as no
/// pattern can name them.
fn relative(path: &Path) -> String {
    let mut text = String::new();
    for component in path.components() {
        if let Component::Normal(name) = component {
            if !text.is_empty() {
                text.push('/');
            }
            text.push_str(&name.to_string_lossy());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn ignored(patterns: &str, path: &str) -> bool {
        Matcher::parse(patterns).unwrap().is_ignored(Path::new(path))
    }

    #[test]
    fn single_patterns() {
        // The table follows the rules of docker's documentation and moby's `matchTests`.
        let yes = [
            ("**", "file"),
            ("**", "dir/file"),
            ("**/", "dir/file"),
            ("**/**", "dir/file"),
            ("dir/**", "dir/file"),
            ("dir/**", "dir/dir2/file"),
            ("**/dir", "dir"),
            ("**/dir", "dir/file"),
            ("**/dir2/*", "dir/dir2/file"),
            ("**/dir2/**", "dir/dir2/dir2/file"),
            ("**file", "dir/file"),
            ("**file", "file"),
            ("**/file", "dir/dir/file"),
            ("**/file*", "dir/dir/file.txt"),
            ("**/file*txt", "dir/dir/file.txt"),
            ("**/file*.txt*", "dir/dir/file.txt"),
            ("**/**/*.txt", "dir/dir/file.txt"),
            ("a**/*.txt", "a/file.txt"),
            ("a**/*.txt", "a/dir/file.txt"),
            ("a/*.txt", "a/file.txt"),
            ("a[b-d]e", "ace"),
            ("abc*/e", "abcd/e"),
            ("*/temp*", "a/temporary.txt"),
            ("temp?", "tempa"),
            (".foo", ".foo/x"),
            ("abc.def", "abc.def"),
            ("a/b", "a/b/c/d"),
            ("/a", "a"),
            ("./a/../b/", "b/x"),
            ("  a  ", "a"),
            ("\\!a", "!a"),
            ("[^a]", "b"),
            ("a(b)", "a(b)"),
        ];
        for (pattern, path) in yes {
            assert!(ignored(pattern, path), "{pattern} should match {path}");
        }
        let no = [
            ("*", ""),
            ("**/dir2/*", "dir/dir2"),
            ("**file", "dir/file.txt"),
            ("a**/*.txt", "a/dir/file.txtx"),
            ("a[b-d]e", "aee"),
            ("abc.def", "abcddef"),
            ("abc.def", "abcZdef"),
            ("*/temp*", "temporary"),
            ("temp?", "temp"),
            ("#a", "#a"),
            ("[^a]", "a"),
        ];
        for (pattern, path) in no {
            assert!(!ignored(pattern, path), "{pattern} should not match {path}");
        }
    }

    #[test]
    fn the_last_match_decides() {
        let text = "*\n!src\nsrc/gen\n!src/gen/keep.c\n";
        assert!(ignored(text, "README"));
        assert!(!ignored(text, "src/main.c"));
        assert!(ignored(text, "src/gen/x.c"));
        assert!(!ignored(text, "src/gen/keep.c"));
        assert!(ignored("!README.md\n*.md", "README.md"));
        assert!(!ignored("*.md\n!README*.md", "README-x.md"));
        assert!(ignored("*.md\n!README*.md\nREADME-secret.md", "README-secret.md"));
    }

    #[test]
    fn directories_that_must_be_walked() {
        let matcher = Matcher::parse("*\n!a/b/c.txt\n").unwrap();
        for (dir, walk) in [("a", true), ("a/b", true), ("x", false), ("a/x", false)] {
            assert_eq!(matcher.may_contain_exception_below(Path::new(dir)), walk, "{dir}");
        }
        let anywhere = Matcher::parse("*\n!**/keep\n").unwrap();
        assert!(anywhere.may_contain_exception_below(Path::new("x/y")));
        assert!(!Matcher::parse("a\n").unwrap().may_contain_exception_below(Path::new("a")));
    }

    #[test]
    fn what_is_refused() {
        assert_eq!(Matcher::parse("a\n!").unwrap_err(), IgnoreError::LoneExclamation { line: 2 });
        for bad in ["[", "a[", "[]", "[]a]", "a\\", "[a-"] {
            assert!(Matcher::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kept_paths() {
        let mut matcher = Matcher::parse("*").unwrap();
        matcher.keep(Path::new("Docker[file]"));
        assert!(!matcher.is_ignored(Path::new("Docker[file]")));
        assert!(matcher.is_ignored(Path::new("Dockerf")));
    }

    #[test]
    fn hostile_patterns_are_linear() {
        let pattern = "*a".repeat(200);
        let path = "a".repeat(4000);
        assert!(!ignored(&format!("{pattern}b"), &path));
    }

    proptest! {
        #[test]
        fn never_panics(patterns in "[a-c*?!/\\[\\]\\\\.# \n^-]{0,60}", path in "[a-c/.]{0,20}") {
            if let Ok(matcher) = Matcher::parse(&patterns) {
                let path = Path::new(&path);
                let ignored = matcher.is_ignored(path);
                // What is kept below an ignored directory must be found by a walk.
                if !ignored
                    && let Some(parent) = path.parent()
                    && matcher.is_ignored(parent)
                {
                    prop_assert!(matcher.may_contain_exception_below(parent));
                }
            }
        }
    }
}
