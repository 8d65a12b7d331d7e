/// Why a Dockerfile cannot be used, and where. The words are docker's (BuildKit's frontend 1.x).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Lines of the instruction, counted from 1; both 0: the file as a whole.
    pub lines: crate::Lines,
    pub kind: ParseErrorKind,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.lines.start == 0 {
            return write!(f, "{}", self.kind);
        }
        write!(f, "dockerfile parse error on line {}: {}", self.lines.start, self.kind)
    }
}

impl std::error::Error for ParseError {}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseErrorKind {
    #[error("the Dockerfile is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the Dockerfile has more than {0} instructions")]
    TooMany(usize),
    #[error("file with no instructions")]
    Empty,
    #[error("only one {0} parser directive can be used")]
    DuplicateDirective(String),
    #[error("invalid ESCAPE '{0}' does not match ` or \\")]
    Escape(String),
    #[error("unknown instruction: {0}{1}")]
    UnknownInstruction(String, Suggestion),
    #[error("no build stage in current context")]
    NoStage,
    #[error("unterminated heredoc")]
    UnterminatedHeredoc,
    #[error("{0} requires at least one argument")]
    AtLeastOne(&'static str),
    #[error("{0} requires exactly one argument")]
    ExactlyOne(&'static str),
    #[error(
        "{0} requires at least two arguments, but only one was provided. Destination could not be determined"
    )]
    NoDestination(&'static str),
    #[error("{0} requires at least two arguments")]
    AtLeastTwo(&'static str),
    #[error("{0} must have two arguments")]
    TwoArguments(&'static str),
    #[error("{0} names can not be blank")]
    BlankName(&'static str),
    #[error("Syntax error - can't find = in {0:?}. Must be of the form: name=value")]
    NoEquals(String),
    #[error("FROM requires either one or three arguments")]
    From,
    #[error(
        "invalid name for build stage: {0:?}, name can't start with a number or contain symbols"
    )]
    StageName(String),
    #[error("when using JSON array syntax, arrays must be comprised of strings only")]
    JsonStrings,
    #[error("SHELL requires the arguments to be in JSON form")]
    ShellJson,
    #[error("unknown flag: --{0}{1}")]
    UnknownFlag(String, Suggestion),
    #[error("duplicate flag specified: --{0}")]
    DuplicateFlag(String),
    #[error("missing a value on flag: --{0}")]
    FlagValue(String),
    #[error("expecting boolean value for flag --{0}, not: {1}")]
    FlagBool(String, String),
    #[error("{command} does not know {value:?} for --{flag}")]
    FlagWord { command: &'static str, flag: &'static str, value: String },
    #[error("HEALTHCHECK NONE takes no arguments")]
    HealthNone,
    #[error("Missing command after HEALTHCHECK CMD")]
    HealthCommand,
    #[error("Unknown type {0:?} in HEALTHCHECK (try CMD)")]
    HealthType(String),
    #[error("Interval {0:?} is not a duration: {1:?}")]
    Duration(&'static str, String),
    #[error("Interval {0:?} cannot be less than 1ms")]
    ShortDuration(&'static str),
    #[error("--retries must be at least 0 (not {0:?})")]
    Retries(String),
    #[error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")]
    OnbuildChain,
    #[error("{0} isn't allowed as an ONBUILD trigger")]
    OnbuildTrigger(String),
    #[error("ONBUILD cannot hold a heredoc")]
    OnbuildHeredoc,
    #[error("invalid --mount: {0}")]
    Mount(String),
    #[error("invalid containerPort: {0}")]
    Port(String),
    #[error(transparent)]
    Expand(#[from] crate::expand::ExpandError),
}

/// ` (did you mean X?)`, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion(pub Option<&'static str>);

impl std::fmt::Display for Suggestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(word) => write!(f, " (did you mean {word}?)"),
            None => Ok(()),
        }
    }
}

impl Suggestion {
    /// The nearest of `known` at an edit distance of one or two, ignoring case.
    pub(crate) fn nearest(word: &str, known: &[&'static str]) -> Self {
        let word = word.to_lowercase();
        let near = known
            .iter()
            .map(|known| (distance(&word, &known.to_lowercase()), *known))
            .filter(|(distance, _)| (1..=2).contains(distance))
            .min_by_key(|(distance, _)| *distance);
        Self(near.map(|(_, known)| known))
    }
}

/// Levenshtein's distance; words longer than any of ours are far from all.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 32 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
