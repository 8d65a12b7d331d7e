#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::{expand::Expander, mount::MountKind};

fn one(text: &str) -> Instruction {
    let mut file = parse(&format!("FROM x\n{text}\n")).unwrap();
    file.stages[0].instructions.remove(0).instruction
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_whole_file() {
    let text = "\u{feff}# syntax=docker/dockerfile:1\n# escape=\\\n\nARG V=3.19 W\nFROM --platform=$BUILDPLATFORM alpine:$V AS Build\nRUN echo a && \\\n  # a comment\n\n  echo b\nCOPY --from=0 --chown=1:2 [\"a b\", \"/c\"]\nfrom scratch\n";
    let file = parse(text).unwrap();
    assert_eq!(file.directives.syntax.as_deref(), Some("docker/dockerfile:1"));
    assert_eq!(file.global_args.len(), 1);
    let stage = &file.stages[0];
    assert_eq!(stage.name.as_deref(), Some("build"));
    assert_eq!((stage.base.as_str(), stage.lines.start), ("alpine:$V", 5));
    let run = &stage.instructions[0];
    assert_eq!(run.lines, Lines { start: 6, end: 9 });
    assert_eq!(run.text, "RUN echo a &&   echo b");
    let Instruction::Copy(copy) = &stage.instructions[1].instruction else { panic!() };
    assert_eq!((copy.sources.as_slice(), copy.dest.as_str()), (&["a b".to_string()][..], "/c"));
    assert_eq!((copy.from.as_deref(), copy.chown.as_deref()), (Some("0"), Some("1:2")));
    assert_eq!(file.stages[1].base, "scratch");
    assert_eq!(file.blank_continuations, [8]);
    assert_eq!(file.stage_before("BUILD", 1), Some(0));
    assert_eq!(file.stage_before("0", 1), Some(0));
    assert_eq!(file.stage_before("1", 1), None);
}

#[test]
fn dockers_words() {
    let cases = [
        ("", "file with no instructions"),
        ("# only\n", "file with no instructions"),
        ("RUN x", "dockerfile parse error on line 1: no build stage in current context"),
        (
            "FROM x\n\nRUNN echo",
            "dockerfile parse error on line 3: unknown instruction: RUNN (did you mean RUN?)",
        ),
        ("FROM x\nWHATEVER", "dockerfile parse error on line 2: unknown instruction: WHATEVER"),
        ("not a file", "dockerfile parse error on line 1: unknown instruction: not"),
        (
            "FROM x y",
            "dockerfile parse error on line 1: FROM requires either one or three arguments",
        ),
        (
            "FROM x AS 1a",
            "dockerfile parse error on line 1: invalid name for build stage: \"1a\", name can't start with a number or contain symbols",
        ),
        (
            "FROM x\nCOPY a",
            "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "FROM x\nCOPY --form=a b c",
            "dockerfile parse error on line 2: unknown flag: --form (did you mean from?)",
        ),
        (
            "FROM x\nCOPY --from=a --from=b c d",
            "dockerfile parse error on line 2: duplicate flag specified: --from",
        ),
        (
            "FROM x\nCOPY --from b c d",
            "dockerfile parse error on line 2: missing a value on flag: --from",
        ),
        (
            "FROM x\nCOPY --link=maybe a b",
            "dockerfile parse error on line 2: expecting boolean value for flag --link, not: maybe",
        ),
        ("FROM x\nENV a", "dockerfile parse error on line 2: ENV must have two arguments"),
        (
            "FROM x\nENV a=1 b",
            "dockerfile parse error on line 2: Syntax error - can't find = in \"b\". Must be of the form: name=value",
        ),
        ("FROM x\nENV =1", "dockerfile parse error on line 2: ENV names can not be blank"),
        (
            "FROM x\nCMD [1]",
            "dockerfile parse error on line 2: when using JSON array syntax, arrays must be comprised of strings only",
        ),
        (
            "FROM x\nSHELL sh",
            "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON form",
        ),
        ("FROM x\nRUN cat <<EOF\na", "dockerfile parse error on line 2: unterminated heredoc"),
        (
            "FROM x\nONBUILD ONBUILD RUN x",
            "dockerfile parse error on line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        (
            "FROM x\nONBUILD FROM y",
            "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
        ),
        (
            "FROM x\nHEALTHCHECK x",
            "dockerfile parse error on line 2: Unknown type \"x\" in HEALTHCHECK (try CMD)",
        ),
        (
            "FROM x\nHEALTHCHECK --interval=1us CMD x",
            "dockerfile parse error on line 2: Interval \"interval\" cannot be less than 1ms",
        ),
        (
            "# escape=x\nFROM x",
            "dockerfile parse error on line 1: invalid ESCAPE 'x' does not match ` or \\",
        ),
        (
            "#escape=\\\n#escape=`\nFROM x",
            "dockerfile parse error on line 2: only one escape parser directive can be used",
        ),
        (
            "FROM x\nRUN --mount=type=what,target=/a x",
            "dockerfile parse error on line 2: invalid --mount: unsupported mount type \"what\"",
        ),
    ];
    for (text, want) in cases {
        assert_eq!(error(text), want, "{text}");
    }
}

#[test]
fn directives_end_at_the_first_other_line() {
    let file = parse("# hello\n# escape=`\nFROM x\nRUN a \\\n b\n").unwrap();
    assert_eq!(file.directives.escape, '\\');
    let file = parse("# escape = `\nFROM x\nRUN a `\n b\nCOPY c:\\d\\ e\n").unwrap();
    assert_eq!(file.stages[0].instructions[0].text, "RUN a  b");
    assert_eq!(file.stages[0].instructions.len(), 2);
    let file = parse("# unknown=1\n# escape=`\nFROM x").unwrap();
    assert_eq!(file.directives.escape, '\\');
}

#[test]
fn continuations() {
    let cases = [
        ("RUN a \\  \n b", "RUN a  b"),
        ("RUN a \\\\\nRUN b", "RUN a \\\\"),
        ("RUN a \\\n# c\nb", "RUN a b"),
        ("RUN a \\\n\n\nb", "RUN a b"),
        ("RUN a \\", "RUN a"),
    ];
    for (text, want) in cases {
        let file = parse(&format!("FROM x\n{text}")).unwrap();
        assert_eq!(file.stages[0].instructions[0].text, want, "{text}");
    }
}

#[test]
fn heredocs() {
    let Instruction::Run(run) = one("RUN <<EOF\necho $a\n  b\nEOF") else { panic!() };
    assert_eq!(run.form(), RunForm::Shell("echo $a\n  b\n".into()));
    let Instruction::Run(run) = one("RUN <<-EOF\n\t#!/bin/x\n\tb\n\tEOF") else { panic!() };
    assert_eq!(run.form(), RunForm::Script { name: "EOF".into(), content: "#!/bin/x\nb\n".into() });
    let Instruction::Run(run) = one("RUN cat <<A > /x && cat <<B\n1\nA\n2\nB") else { panic!() };
    assert_eq!(run.form(), RunForm::Shell("cat <<A > /x && cat <<B\n1\nA\n2\nB\n".into()));
    let Instruction::Copy(copy) = one("COPY <<\"a.txt\" <<b c /d/\n$x\na.txt\n$x \\$y\nb") else {
        panic!()
    };
    assert_eq!(copy.sources, ["c"]);
    assert!(!copy.heredocs[0].expand && copy.heredocs[1].expand);
    let lookup = |name: &str| (name == "x").then(|| "1".to_string());
    let Instruction::Copy(copy) =
        Instruction::Copy(copy).expand(&mut Expander::new('\\', &lookup)).unwrap()
    else {
        panic!()
    };
    assert_eq!(copy.heredocs[0].content, "$x\n");
    assert_eq!(copy.heredocs[1].content, "1 $y\n");
    let Instruction::Run(run) = one("RUN echo '<<EOF' x") else { panic!() };
    assert!(run.heredocs.is_empty());
    let Instruction::Run(run) = one("RUN [\"sh\", \"-c\", \"cat <<EOF\"]") else { panic!() };
    assert!(run.heredocs.is_empty());
    let Instruction::Run(run) = one("RUN cat <<<word") else { panic!() };
    assert!(run.heredocs.is_empty());
}

#[test]
fn expansion() {
    let lookup = |name: &str| match name {
        "a" => Some("1".to_string()),
        "e" => Some(String::new()),
        "path" => Some("/usr/local/lib.tar.gz".to_string()),
        "ws" => Some("x y".to_string()),
        _ => None,
    };
    let cases = [
        ("$a", "1"),
        ("${a}b", "1b"),
        ("$ab", ""),
        ("\\$a", "$a"),
        ("'$a'", "$a"),
        ("\"$a\"", "1"),
        ("\"\\$a\"", "$a"),
        ("\"\\x\"", "\\x"),
        ("\\x", "x"),
        ("${u:-d}", "d"),
        ("${e:-d}", "d"),
        ("${e-d}", ""),
        ("${u-d}", "d"),
        ("${a:+s}", "s"),
        ("${e:+s}", ""),
        ("${e+s}", "s"),
        ("${u+s}", ""),
        ("${u:-${a}2}", "12"),
        ("${u:-'$a'}", "$a"),
        ("${path#*/}", "usr/local/lib.tar.gz"),
        ("${path##*/}", "lib.tar.gz"),
        ("${path%.*}", "/usr/local/lib.tar"),
        ("${path%%.*}", "/usr/local/lib"),
        ("${path/l/L}", "/usr/Local/lib.tar.gz"),
        ("${path//l/L}", "/usr/LocaL/Lib.tar.gz"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("${a:?x}", "1"),
    ];
    for (text, want) in cases {
        assert_eq!(Expander::new('\\', &lookup).text(text).unwrap(), want, "{text}");
    }
    let words = |text: &str| Expander::new('\\', &lookup).words(text).unwrap();
    assert_eq!(words("a '$a b' \"\" $ws c\\ d"), ["a", "$a b", "", "x", "y", "c d"]);
    for bad in ["'", "\"", "${a", "${}", "${a!b}", "${a:=b}", "${u:?}", "${u?}"] {
        assert!(Expander::new('\\', &lookup).text(bad).is_err(), "{bad}");
    }
    let message = Expander::new('\\', &lookup).text("${u:?gone}").unwrap_err().to_string();
    assert_eq!(message, "u: gone");
    assert_eq!(Expander::new('`', &lookup).text("c:\\$a `$a").unwrap(), "c:\\1 $a");
}

#[test]
fn pairs_and_arguments() {
    let env = |text: &str| match one(text) {
        Instruction::Env(pairs) | Instruction::Label(pairs) => {
            let Instruction::Env(pairs) =
                Instruction::Env(pairs).expand(&mut Expander::new('\\', &|_| None)).unwrap()
            else {
                panic!()
            };
            pairs
        }
        _ => panic!(),
    };
    let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
    assert_eq!(env("ENV a b  c"), [pair("a", "b  c")]);
    assert_eq!(
        env("ENV a=b c=\"d e\" f=g\\ h"),
        [pair("a", "b"), pair("c", "d e"), pair("f", "g h")]
    );
    assert_eq!(env("LABEL \"x y\"='z'"), [pair("x y", "z")]);
    let Instruction::Arg(args) = one("ARG a b=1 c=") else { panic!() };
    assert_eq!(args.len(), 3);
    assert_eq!(args[2].default.as_deref(), Some(""));
}

#[test]
fn ports() {
    let words = ["80", "90-91/UDP", "8080:81", "127.0.0.1:1:82/tcp"].map(str::to_string);
    let ports = ["80/tcp", "90/udp", "91/udp", "81/tcp", "82/tcp"];
    assert_eq!(exposed_ports(&words).unwrap(), ports);
    for bad in ["x", "70000", "2-1", "80/icmp", "-1", ""] {
        assert!(exposed_ports(&[bad.to_string()]).is_err(), "{bad}");
    }
}

#[test]
fn mounts() {
    let nothing = |_: &str| None;
    let mount = |text: &str| mount::parse(text, &mut Expander::new('\\', &nothing));
    let bind = mount("target=/a,from=b,source=/c,rw").unwrap();
    let want = MountKind::Bind { from: Some("b".into()), source: "/c".into(), read_only: false };
    assert_eq!((bind.kind, bind.target.as_str()), (want, "/a"));
    let MountKind::Cache(cache) = mount("type=cache,dst=/a/,mode=0700,uid=5").unwrap().kind else {
        panic!()
    };
    assert_eq!((cache.id.as_str(), cache.mode, cache.uid), ("/a", 0o700, 5));
    let tmpfs = mount("type=tmpfs,target=/t,size=1m").unwrap().kind;
    assert_eq!(tmpfs, MountKind::Tmpfs { size_bytes: Some(1 << 20) });
    for bad in ["type=cache", "type=tmpfs,target=/a,size=x", "target=/a,what=1", "type=secret"] {
        assert!(mount(bad).is_err(), "{bad}");
    }
}

#[test]
fn build_checks() {
    let text = "FROM x as Build\nMAINTAINER me\nENV a b\nENV API_KEY=1\nCMD a\nCMD [\"b\"]\nWORKDIR rel\nrun a\nFROM $NOPE\nEXPOSE 80/TCP\n";
    let rules: Vec<&str> =
        checks::check(&parse(text).unwrap()).iter().map(|warning| warning.rule).collect();
    for rule in [
        "StageNameCasing",
        "FromAsCasing",
        "MaintainerDeprecated",
        "LegacyKeyValueFormat",
        "SecretsUsedInArgOrEnv",
        "JSONArgsRecommended",
        "MultipleInstructionsDisallowed",
        "WorkdirRelativePath",
        "ConsistentInstructionCasing",
        "UndefinedArgInFrom",
        "ExposeProtoCasing",
    ] {
        assert!(rules.contains(&rule), "{rule} in {rules:?}");
    }
    let skipped = checks::check(&parse(&format!("# check=skip=all\n{text}")).unwrap());
    assert!(skipped.is_empty());
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "(FROM x|RUN|COPY|ENV|ARG|HEALTHCHECK|ONBUILD|#|<<E|E|--from=|\\\\|\n| |\\$\\{|\\}|\\[|\\]|\"|'|=|:|ä|/){0,40}") {
        if let Ok(file) = parse(&text) {
            checks::check(&file);
            for one in file.stages.iter().flat_map(|stage| &stage.instructions) {
                let lookup = |_: &str| Some("v".to_string());
                let _expanded = one.instruction.expand(&mut Expander::new('\\', &lookup)).is_ok();
            }
        }
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        let _answer = parse(&text).is_ok();
        let _answer = parse(&format!("FROM x\nRUN {text}")).is_ok();
        let _answer = Expander::new('\\', &|_| Some("x".into())).text(&text).is_ok();
    }
}
