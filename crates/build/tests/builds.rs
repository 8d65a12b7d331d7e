//! Whole builds on a real store.
#![allow(clippy::unwrap_used)]

mod ground;

use std::{collections::BTreeMap, os::unix::fs::symlink};

use build::{BuildEvent, CancellationToken, Context, PruneRequest};
use ground::Ground;
use serde_json::json;
use testkit::random;
use types::ErrorKind;

fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, Option<String>> {
    pairs.iter().map(|(name, value)| (name.to_string(), Some(value.to_string()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_explained_and_tagged() {
    let ground = Ground::new().await;
    let word = random::name("w");
    ground.write("src/main.c", &word);
    ground.write("src/deep/other.c", "2");
    ground.dockerfile(
        "FROM BASE\nWORKDIR /app\nCOPY src ./src/\nRUN cat src/main.c > out && echo built\nCMD [\"cat\", \"out\"]\n",
    );
    let mut request = ground.request();
    request.tags = vec!["app:1".parse().unwrap(), "x.test/app:2".parse().unwrap()];
    let outcome = ground.build(request.clone()).await;
    let id = outcome.events.iter().find_map(|event| match event {
        BuildEvent::Aux { id } => Some(id.clone()),
        _ => None,
    });
    let (first, text) = outcome.ok();
    assert_eq!(id.as_ref(), Some(&first.target.digest));
    for part in [
        &format!("Step 1/5 : FROM {}\n ---> ", ground.base),
        "Step 2/5 : WORKDIR /app\n ---> Cache miss: never built before\n",
        "Step 4/5 : RUN cat src/main.c > out && echo built\n ---> Cache miss: never built before\n ---> Running in ",
        "\nbuilt\n ---> Removed intermediate container ",
        // The last step is the image.
        &format!(
            " ---> {0}\nSuccessfully built {0}\nSuccessfully tagged app:1\n",
            first.target.digest.short()
        ),
        "Successfully tagged x.test/app:2\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let files = ground.files(&first.target).await;
    assert_eq!(files.read("app/out"), word);
    assert_eq!(files.read("app/src/deep/other.c"), "2");
    let image = ground.services.images.get("docker.io/library/app:1").await.unwrap();
    assert_eq!(image.target.digest, first.target.digest);
    ground.assert_clean().await;

    let (second, text) = ground.build(request.clone()).await.ok();
    assert_eq!(second, first, "{text}");
    assert_eq!(text.matches("---> Using cache").count(), 4, "{text}");
    assert!(!text.contains("Cache miss") && !text.contains("intermediate"), "{text}");
    request.no_cache = true;
    let (_, text) = ground.build(request.clone()).await.ok();
    assert!(!text.contains("Using cache"), "{text}");
    request.no_cache = false;
    assert_eq!(ground.host.steps.lock().unwrap().len(), 2);

    ground.write("src/main.c", "changed");
    let (third, text) = ground.build(request).await.ok();
    assert_ne!(third.target.digest, first.target.digest);
    for part in [
        " ---> Cache miss: file src/main.c changed\n",
        " ---> Cache miss: the parent step 3/5 (COPY src ./src/) changed\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    // The image that lost its names has a nameless record.
    let nameless = format!("{}{}", build::DANGLING_PREFIX, first.target.digest);
    assert!(ground.services.images.get(&nameless).await.is_ok());
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons() {
    let ground = Ground::new().await;
    ground
        .dockerfile("FROM BASE\nARG VERSION=1\nARG API_TOKEN\nRUN echo $VERSION > /v\nRUN true\n");
    let mut request = ground.request();
    let canary = random::name("canary");
    request.build_args = args(&[("API_TOKEN", &canary)]);
    ground.build(request.clone()).await.ok();
    request.build_args = args(&[("API_TOKEN", &canary), ("VERSION", "2")]);
    let (built, text) = ground.build(request.clone()).await.ok();
    assert!(
        text.contains("Cache miss: build argument VERSION changed from \"1\" to \"2\"\n"),
        "{text}"
    );
    assert_eq!(ground.files(&built.target).await.read("v"), "2\n");
    request.build_args = args(&[("API_TOKEN", "other"), ("VERSION", "2"), ("UNKNOWN", "x")]);
    let (_, text) = ground.build(request.clone()).await.ok();
    assert!(text.contains("Cache miss: build argument API_TOKEN changed\n"), "{text}");
    assert!(
        text.contains("[Warning] One or more build-args [UNKNOWN] were not consumed"),
        "{text}"
    );
    // Build arguments are nowhere in the builder's files.
    let found = testkit::command::Cmd::host(
        "grep",
        ["-r", "-l", &canary, ground.directory.path().join("build").to_str().unwrap()]
            .map(String::from),
    );
    assert_eq!(found.output().unwrap().text(), "");
    request.no_cache = true;
    let (_, text) = ground.build(request.clone()).await.ok();
    assert_eq!(text.matches("Cache miss: the build does not use the cache").count(), 2, "{text}");
    request.no_cache = false;
    // The instruction itself.
    ground.dockerfile("FROM BASE\nARG VERSION=1\nARG API_TOKEN\nRUN echo $VERSION >/v\nRUN true\n");
    let (_, text) = ground.build(request.clone()).await.ok();
    assert!(text.contains("the instruction changed (it was: RUN echo $VERSION > /v)"), "{text}");
    // Pruned.
    let images = ground.services.images.list(&[]).await.unwrap();
    for image in images.iter().filter(|image| image.name.starts_with(build::DANGLING_PREFIX)) {
        ground.services.images.delete(&image.name, true).await.unwrap();
    }
    let pruned =
        ground.builder.prune(PruneRequest { all: true, ..PruneRequest::default() }).await.unwrap();
    assert!(pruned.ids.len() >= 4 && pruned.bytes > 0, "{pruned:?}");
    ground.services.extras.collect_garbage().await.unwrap();
    assert_eq!(ground.builder.usage().await.unwrap(), []);
    let (_, text) = ground.build(request).await.ok();
    assert!(text.contains("Cache miss: its cached result was removed\n"), "{text}");
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_outlives_garbage_collection() {
    let ground = Ground::new().await;
    ground.dockerfile("FROM BASE\nRUN echo 1 > /one\n");
    let (built, _) = ground.again().await;
    for name in &built.names {
        ground.services.images.delete(name, true).await.unwrap();
    }
    ground.services.extras.collect_garbage().await.unwrap();
    assert!(ground.services.content.info(&built.target.digest).await.is_err());
    let (again, text) = ground.again().await;
    assert_eq!(again.target, built.target);
    assert!(text.contains("Using cache"), "{text}");
    let entries = ground.builder.usage().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].uses, 2);
    assert!(entries[0].shared && !entries[0].in_use);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_stages() {
    let ground = Ground::new().await;
    ground.write("a.txt", "a");
    ground.dockerfile(
        "ARG WHERE=scratch\nFROM BASE AS one\nRUN echo one > /result && echo x > /other\nFROM BASE AS two\nRUN echo two > /result\nFROM BASE AS never\nRUN exit 3\nFROM $WHERE\nCOPY --from=one /result /1\nCOPY --from=TWO /res* /2/\nCOPY --from=BASE /marker /m\nCOPY a.txt /\n",
    );
    let (built, text) = ground.again().await;
    assert!(text.contains("Step 1/9 : FROM") && !text.contains("exit 3"), "{text}");
    let files = ground.files(&built.target).await;
    assert_eq!((files.read("1"), files.read("2/result")), ("one\n".into(), "two\n".into()));
    assert_eq!((files.read("m"), files.read("a.txt")), ("here".into(), "a".into()));
    assert_eq!(files.names(""), ["1", "2", "a.txt", "m"]);
    // Stages are told one after the other.
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
    assert!(at("Step 2/9") < at("Step 3/9") && at("Step 4/9") < at("Step 5/9"));
    // A change that leaves what is copied alone leaves the copy cached.
    ground.dockerfile(
        "ARG WHERE=scratch\nFROM BASE AS one\nRUN echo one > /result && echo y > /other\nFROM BASE AS two\nRUN echo two > /result\nFROM BASE AS never\nRUN exit 3\nFROM $WHERE\nCOPY --from=one /result /1\nCOPY --from=TWO /res* /2/\nCOPY --from=BASE /marker /m\nCOPY a.txt /\n",
    );
    let (_, text) = ground.again().await;
    assert_eq!(text.matches("Cache miss").count(), 1, "{text}");
    // A target in the middle, and one that is not there.
    let mut request = ground.request();
    request.target = Some("two".into());
    let (two, text) = ground.build(request.clone()).await.ok();
    assert!(text.contains("Step 2/2"), "{text}");
    assert_eq!(ground.files(&two.target).await.read("result"), "two\n");
    request.target = Some("nope".into());
    let outcome = ground.build(request).await;
    assert_eq!(outcome.error(), "target stage \"nope\" could not be found");
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies() {
    let ground = Ground::new().await;
    ground.write("dir/a.txt", "a");
    ground.write("dir/sub/b.md", "b");
    ground.write("dir/skip.log", "log");
    ground.write("dir/keep.log", "log");
    ground.write("c.txt", "c");
    ground.write(".dockerignore", "*.log\n**/*.log\n!dir/keep.log\nDockerfile\n");
    symlink("../c.txt", ground.context().join("dir/link")).unwrap();
    symlink("/etc/passwd", ground.context().join("out")).unwrap();
    ground.dockerfile(concat!(
        "FROM BASE\n",
        "RUN ln -s /real /linked && mkdir -p /real /etc && echo me:x:1234:77:::>>/etc/passwd",
        " && echo us:x:88:>>/etc/group\n",
        "COPY dir /linked/d\n",
        "COPY --chown=me dir/*.txt c.txt /own/\n",
        "COPY --chown=me:us --chmod=u=rwX,go=rX dir /own2/\n",
        "COPY c.txt /new/name\n",
        "COPY --parents ./dir/./sub/b.md /par/\n",
        "COPY --exclude=*.txt dir /ex/\n",
        "COPY <<one <<\"two\" /here/\n$PATH\none\n$PATH\ntwo\n",
        "COPY . /all/\n",
    ));
    let (built, _) = ground.again().await;
    let files = ground.files(&built.target).await;
    assert_eq!(files.read("real/d/a.txt"), "a");
    assert_eq!(files.names("real/d"), ["a.txt", "keep.log", "link", "sub"]);
    assert_eq!(std::fs::read_link(files.path("real/d/link")).unwrap().to_str(), Some("../c.txt"));
    assert_eq!(files.names("own"), ["a.txt", "c.txt"]);
    assert_eq!(files.look("own/a.txt"), (0o644, 1234, 77));
    assert_eq!(files.look("own2/sub"), (0o755, 1234, 88));
    assert_eq!(files.look("own2/sub/b.md"), (0o644, 1234, 88));
    assert_eq!(files.read("new/name"), "c");
    assert_eq!(files.names("par"), ["sub"]);
    assert_eq!(files.names("ex"), ["keep.log", "link", "sub"]);
    assert_eq!(
        (files.read("here/one"), files.read("here/two")),
        ("/bin\n".into(), "$PATH\n".into())
    );
    assert_eq!(files.names("all"), [".dockerignore", "c.txt", "dir", "out"]);
    ground.assert_clean().await;
    // Owners and times of the context do not matter; modes do.
    let path = ground.context().join("c.txt");
    std::os::unix::fs::chown(&path, Some(5), Some(5)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let (_, text) = ground.again().await;
    assert!(!text.contains("Cache miss"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn linked_copies_outlive_their_base() {
    let ground = Ground::new().await;
    ground.write("f", "f");
    let text = |word: &str| {
        format!(
            "FROM BASE\nRUN echo {word} > /w && echo u:x:9:8::: >> /etc/passwd\nCOPY --link --chown=u f /l/\nCOPY f /n/\n"
        )
    };
    ground.dockerfile(&text("one"));
    ground.again().await;
    ground.dockerfile(&text("two"));
    let (built, text) = ground.again().await;
    assert!(text.contains("COPY --link --chown=u f /l/\n ---> Using cache"), "{text}");
    assert_eq!(text.matches("Cache miss").count(), 2, "{text}");
    let files = ground.files(&built.target).await;
    assert_eq!((files.read("w"), files.read("l/f")), ("two\n".into(), "f".into()));
    assert_eq!(files.look("l/f"), (0o644, 9, 8));
    assert!(files.exists("n/f") && files.exists("marker"));
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_caches_do_not_deadlock() {
    let ground = Ground::new().await;
    let mounts = |one: &str, two: &str| {
        format!(
            "RUN --mount=type=cache,target=/{one},sharing=locked --mount=type=cache,target=/{two},sharing=locked --mount=type=cache,target=/x,id=/{one},sharing=locked touch /{one}{two}\n"
        )
    };
    ground.dockerfile(&format!(
        "FROM BASE AS a\n{}FROM BASE AS b\n{}FROM scratch\nCOPY --from=a /ab /\nCOPY --from=b /ba /\n",
        mounts("a", "b"),
        mounts("b", "a")
    ));
    ground.again().await;
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_copy_refuses() {
    let ground = Ground::new().await;
    ground.write("a", "a");
    ground.write("d/x", "x");
    ground.write("ignored", "");
    ground.write(".dockerignore", "ignored\n");
    symlink("/etc/passwd", ground.context().join("out")).unwrap();
    symlink("loop", ground.context().join("loop")).unwrap();
    let fifo = ground.context().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    let cases = [
        (
            "COPY nope /",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist",
        ),
        (
            "COPY ignored /",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat ignored: file does not exist",
        ),
        (
            "COPY ../../etc/passwd /",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat ../../etc/passwd: file does not exist",
        ),
        (
            "COPY out /",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat out: file does not exist",
        ),
        ("COPY no*pe /", "COPY failed: no source files were specified"),
        (
            "COPY loop /",
            "COPY failed: forbidden path: loop leads outside of its root or into a loop of links",
        ),
        ("COPY fifo /", "COPY failed: cannot copy fifo: it is a FIFO"),
        (
            "COPY a d /file",
            "When using COPY with more than one source file, the destination must be a directory and end with a /",
        ),
        (
            "COPY d /marker",
            "COPY failed: cannot copy /marker: a file is there, and a directory cannot replace it",
        ),
        (
            "COPY --chown=nobodyhere a /",
            "unable to convert uid/gid chown string to host mapping: can't find uid for nobodyhere",
        ),
        ("COPY --chown=4294967296 a /", "user or group id 4294967296 is out of range"),
        (
            "COPY --chmod=9 a /",
            "invalid chmod parameter: '9'. it should be octal up to 7777, or like u=rwX,go=rX",
        ),
        ("COPY --from=9 a /", "invalid from flag value 9: refers to current or later build stage"),
        (
            "ADD https://example.org/x.git /",
            "ADD of a git repository (https://example.org/x.git) is not built yet",
        ),
    ];
    for (line, want) in cases {
        ground.dockerfile(&format!("FROM BASE\n{line}\n"));
        let outcome = ground.build(ground.request()).await;
        assert_eq!(outcome.error(), want, "{line}");
    }
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_unpacked() {
    let ground = Ground::new().await;
    let word = random::name("w");
    let tar = testkit::fixtures::tar::TarStream::new()
        .dir("in/")
        .file("in/word", 0o600, word.as_bytes())
        .finish();
    ground.write("x.bin", testkit::fixtures::gzip(&tar));
    ground.write("plain.tar", "not a tar");
    ground.dockerfile("FROM BASE\nADD x.bin plain.tar /to/\nADD --unpack=false x.bin /raw/\nCOPY x.bin /copied/\n");
    let (built, _) = ground.again().await;
    let files = ground.files(&built.target).await;
    assert_eq!(files.names("to"), ["in", "plain.tar"]);
    assert_eq!(files.read("to/in/word"), word);
    assert_eq!(files.names("raw"), ["x.bin"]);
    assert_eq!(files.names("copied"), ["x.bin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_as_a_tar() {
    let ground = Ground::new().await;
    let word = random::name("w");
    let tar = testkit::fixtures::tar::TarStream::new()
        .file("build/my.file", 0o644, format!("FROM {}\nCOPY f /f\n", ground.base).as_bytes())
        .file("f", 0o644, word.as_bytes())
        .file(".dockerignore", 0o644, b"f\n")
        .file("build/my.file.dockerignore", 0o644, b"nothing\n")
        .finish();
    let path = ground.directory.path().join("context.tar");
    std::fs::write(&path, testkit::fixtures::gzip(&tar)).unwrap();
    let mut request = ground.request();
    request.context = Context::Tar(path);
    request.dockerfile = "build/my.file".into();
    let (built, _) = ground.build(request.clone()).await.ok();
    assert_eq!(ground.files(&built.target).await.read("f"), word);
    let (again, text) = ground.build(request.clone()).await.ok();
    assert!(again.target == built.target && text.contains("Using cache"), "{text}");
    request.dockerfile = "other".into();
    let outcome = ground.build(request).await;
    assert_eq!(outcome.error(), "Cannot locate specified Dockerfile: other");
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands() {
    let ground = Ground::new().await;
    ground.write("lib/tool", "tool");
    ground.dockerfile(concat!(
        "FROM BASE AS src\nRUN mkdir /d && echo s > /d/s\n",
        "FROM BASE\nARG A=1\nENV B=2\nWORKDIR /w\nUSER 1:1\n",
        "RUN <<EOF\n#!/bin/sh\necho \"$A $B $HTTP_PROXY $PWD\" > /env\nEOF\n",
        "RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/t ",
        "--mount=target=/bound,source=lib --mount=from=src,source=/d/s,target=/s ",
        "echo x >> /cache/count && cat /cache/count > /count && touch /t/x && cat /bound/tool /s > /got\n",
        "RUN [\"/bin/sh\", \"-c\", \"printf '\\\\303\\\\244'\"]\n",
    ));
    let mut request = ground.request();
    request.build_args = args(&[("HTTP_PROXY", "p")]);
    let (built, text) = ground.build(request.clone()).await.ok();
    let files = ground.files(&built.target).await;
    assert_eq!(files.read("env"), "1 2 p /w\n");
    assert_eq!((files.read("count"), files.read("got")), ("x\n".into(), "tools\n".into()));
    // Mount points and what a runtime makes are not in the image.
    for gone in ["cache", "t", "bound", "s", "dev/pipes", "etc/resolv.conf"] {
        assert!(!files.exists(gone), "{gone}");
    }
    assert!(text.contains('ä'), "{text}");
    // The cache mount keeps its contents, and no proxy makes a miss.
    request.no_cache = true;
    let (built, _) = ground.build(request.clone()).await.ok();
    assert_eq!(ground.files(&built.target).await.read("count"), "x\nx\n");
    request.no_cache = false;
    request.build_args = args(&[("HTTP_PROXY", "q")]);
    let (_, text) = ground.build(request).await.ok();
    assert!(!text.contains("Cache miss"), "{text}");
    let usage = ground.builder.usage().await.unwrap();
    assert!(usage.iter().any(|entry| entry.kind == "exec.cachemount" && !entry.in_use));
    let step = ground.host.steps.lock().unwrap()[1].clone();
    assert_eq!((step.user.as_str(), step.cwd.as_str()), ("1:1", "/w"));
    ground.assert_clean().await;
    // What a mount shows is part of the key.
    ground.write("lib/tool", "other");
    let (_, text) = ground.again().await;
    assert!(text.contains("Cache miss: file lib/tool changed\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures() {
    let ground = Ground::new().await;
    let code = random::number(1..100);
    ground.dockerfile(&format!("FROM BASE\nRUN echo said && exit {code}\nRUN true\n"));
    let outcome = ground.build(ground.request()).await;
    let want = format!(
        "The command '/bin/sh -c echo said && exit {code}' returned a non-zero code: {code}"
    );
    assert_eq!(outcome.error(), want);
    assert_eq!(outcome.result.unwrap_err().exit_code(), Some(i32::try_from(code).unwrap()));
    assert!(
        outcome.text.contains("\nsaid\n") && !outcome.text.contains("Step 3"),
        "{}",
        outcome.text
    );
    let cases = [
        (
            "FROM BASE\nRUN --security=insecure x",
            "RUN --security=insecure is not allowed in this build",
        ),
        ("FROM BASE\nRUN --network=host x", "RUN --network=host is not allowed in this build"),
        ("FROM BASE\nRUN --mount=type=secret,id=a,required x", "secret a: not found"),
        (
            "FROM BASE\nFRM x",
            "dockerfile parse error on line 2: unknown instruction: FRM (did you mean FROM?)",
        ),
        ("FROM BASE\nWORKDIR ${", "dockerfile parse error on line 2: syntax error: missing '}'"),
        (
            "# syntax=evil/frontend\nFROM BASE",
            "the Dockerfile frontend evil/frontend (# syntax) is not built yet",
        ),
        ("FROM $NOPE", "base name ($NOPE) should not be blank"),
        (
            "# check=error=true\nFROM BASE\nMAINTAINER x",
            "lint violation found for rules: MaintainerDeprecated",
        ),
    ];
    for (text, want) in cases {
        ground.dockerfile(text);
        assert_eq!(ground.build(ground.request()).await.error(), want, "{text}");
    }
    let mut request = ground.request();
    request.cache_from = vec!["x".into()];
    let outcome = ground.build(request).await;
    assert_eq!(outcome.error(), "--cache-from is not built yet");
    assert_eq!(outcome.result.unwrap_err().kind(), ErrorKind::NotImplemented);
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled() {
    let ground = Ground::new().await;
    ground.dockerfile(
        "FROM BASE AS a\nRUN sleep 1000\nFROM BASE\nRUN sleep 1001\nCOPY --from=a / /x\n",
    );
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let watch = async {
        while ground.host.steps.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(ground.build_until(ground.request(), cancel), watch);
    assert_eq!(outcome.error(), "build was cancelled");
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration() {
    let ground = Ground::new().await;
    ground.dockerfile(concat!(
        "FROM BASE\nMAINTAINER me\nENV A=1 B=\"$PATH x\"\nENV A=2 C=$A\nLABEL l=\"m n\"\n",
        "EXPOSE 80 90-91/udp\nVOLUME /v [\"/no\"]\nSTOPSIGNAL SIGINT\nUSER u\n",
        "WORKDIR /a\nWORKDIR b/../c\nSHELL [\"/bin/sh\", \"-ec\"]\n",
        "HEALTHCHECK --interval=5s --retries=2 CMD check me\nONBUILD RUN echo t > /t\n",
        "ENTRYPOINT [\"e\"]\n",
    ));
    let mut request = ground.request();
    request.labels = BTreeMap::from([("from".into(), "request".into())]);
    request.tags = vec!["parent".parse().unwrap()];
    request.build_args = args(&[("SOURCE_DATE_EPOCH", "1000000000")]);
    let (built, _) = ground.build(request).await.ok();
    let image = ground.config(&built).await;
    let config = &image["config"];
    assert_eq!(image["author"], "me");
    assert_eq!(image["created"], "2001-09-09T01:46:40Z");
    assert_eq!(config["Env"], json!(["PATH=/bin", "A=2", "B=/bin x", "C=1"]));
    assert_eq!(config["Labels"], json!({ "l": "m n", "from": "request" }));
    assert_eq!(config["ExposedPorts"], json!({ "80/tcp": {}, "90/udp": {}, "91/udp": {} }));
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!((&config["User"], &config["WorkingDir"]), (&json!("u"), &json!("/a/c")));
    assert_eq!(config["Entrypoint"], json!(["e"]));
    assert_eq!(config["Cmd"], serde_json::Value::Null);
    let health =
        json!({ "Test": ["CMD-SHELL", "check me"], "Interval": 5_000_000_000_i64, "Retries": 2 });
    assert_eq!(config["Healthcheck"], health);
    let history = image["history"].as_array().unwrap();
    let layers = history.iter().filter(|entry| entry["empty_layer"] != true).count();
    assert_eq!(layers, image["rootfs"]["diff_ids"].as_array().unwrap().len());
    assert!(history.iter().any(|entry| entry["created_by"] == "WORKDIR /a/c"), "{history:?}");

    ground.dockerfile("FROM parent\nCMD x\n");
    let (child, text) = ground.again().await;
    assert!(text.contains("# Executing 1 build trigger\n"), "{text}");
    let config = ground.config(&child).await["config"].clone();
    assert_eq!(config["OnBuild"], serde_json::Value::Null);
    assert_eq!(config["Cmd"], json!(["/bin/sh", "-ec", "x"]));
    assert_eq!(ground.files(&child.target).await.read("t"), "t\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn squashed() {
    let ground = Ground::new().await;
    ground.dockerfile(
        "FROM BASE\nRUN echo 1 > /one && echo 2 > /two\nRUN rm /one\nRUN echo 3 > /three\n",
    );
    let mut request = ground.request();
    request.squash = true;
    request.tags = vec!["flat".parse().unwrap()];
    let (built, _) = ground.build(request).await.ok();
    let image = ground.services.extras.resolve_image(&built.target, None).await.unwrap();
    assert_eq!((image.layers.len(), &image.config.digest), (2, &built.config));
    let files = ground.files(&built.target).await;
    assert!(!files.exists("one") && files.exists("two") && files.exists("three"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_step_runs_once() {
    let ground = Ground::new().await;
    let line = random::name("x");
    ground.dockerfile(&format!(
        "FROM BASE AS a\nRUN echo {line} > /f\nFROM BASE AS b\nRUN echo {line} > /f\nFROM scratch\nCOPY --from=a /f /a\nCOPY --from=b /f /b\n"
    ));
    let (one, two) = tokio::join!(ground.build(ground.request()), ground.build(ground.request()));
    let (one, two) = (one.ok().0, two.ok().0);
    assert_eq!(one.target, two.target);
    assert_eq!(ground.host.steps.lock().unwrap().len(), 1);
    ground.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovered() {
    let ground = Ground::new().await;
    let labels = store_api::Labels::from([
        ("containerd.io/gc.root".to_string(), "x".to_string()),
        ("io.gantry.build".to_string(), "gone".to_string()),
    ]);
    ground.services.snapshots.prepare("left", None, labels.clone()).await.unwrap();
    ground.services.leases.create("gantry-build-run-gone", labels).await.unwrap();
    std::fs::create_dir(ground.directory.path().join("build/tmp/gone")).unwrap();
    ground.builder.recover().await.unwrap();
    ground.assert_clean().await;
}
