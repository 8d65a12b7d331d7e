//! The table of commands: from it flags are parsed and help is printed.

use super::flags::{Flag, number, switch, value};
use super::{Context, Outcome, events, features, manage, run, spec};
use crate::cli::flags::Parsed;

/// What carries a command out.
type Action = fn(&Context, &Parsed) -> Outcome;

/// One command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What it does, in a line.
    pub(super) about: &'static str,
    /// The words after the flags.
    pub(super) usage: &'static str,
    /// More of it, in whole lines; may be empty.
    pub(super) more: &'static str,
    /// At least and at most so many words.
    pub(super) words: (usize, usize),
    pub(super) flags: &'static [&'static [Flag]],
    /// What its errors begin with.
    pub(super) stage: &'static str,
    /// The exit code of its errors.
    pub(super) failed: i32,
    /// `None`: not offered.
    pub(super) action: Option<Action>,
}

impl Command {
    /// `None` if the number of words fits; runc's text if it does not.
    pub(super) fn wrong_words(&self, count: usize) -> Option<String> {
        let (least, most) = self.words;
        let rule = match count {
            _ if least == most && count != least => format!("exactly {least}"),
            n if n < least => format!("a minimum of {least}"),
            n if n > most => format!("a maximum of {most}"),
            _ => return None,
        };
        Some(format!("{:?} requires {rule} argument(s)", self.name))
    }
}

pub(super) const GLOBAL: &[Flag] = &[
    switch(&["debug"], "write what is done to the log, too"),
    value(&["log"], "file that log lines are appended to (default: standard error)"),
    value(&["log-format"], "form of the log: text or json (default: \"text\")"),
    value(
        &["root"],
        "directory of the containers' states, on a tmpfs (default: \"/run/gantry/runtime\")",
    ),
    value(&["criu"], "accepted and ignored: there is no checkpointing"),
    switch(
        &["systemd-cgroup"],
        "have systemd make the cgroups; cgroupsPath is \"slice:prefix:name\"",
    ),
    value(
        &["rootless"],
        "let cgroup failures for lack of permission pass: true, false or auto (default: \"auto\")",
    ),
    switch(&["help", "h"], "show help"),
    switch(&["version", "v"], "print the version"),
];

const CREATE: &[Flag] = &[
    value(&["bundle", "b"], "the bundle's directory (default: the current directory)"),
    value(&["console-socket"], "unix socket that gets the terminal's master end"),
    value(&["pidfd-socket"], "unix socket that gets a pidfd of the process"),
    value(&["pid-file"], "file that the process id is written to"),
    switch(&["no-pivot"], "do not use pivot_root(2), for bundles on a ramdisk"),
    switch(&["no-new-keyring"], "keep the caller's session keyring"),
    number(
        &["preserve-fds"],
        "pass so many more descriptors, after the standard streams and $LISTEN_FDS (default: 0)",
    ),
];

const RUN: &[Flag] = &[
    switch(&["detach", "d"], "do not wait for the container's process"),
    switch(&["keep"], "do not delete the container when it has ended"),
    switch(&["no-subreaper"], "do not adopt processes that lose their parent"),
];

const EXEC: &[Flag] = &[
    value(&["console-socket"], "unix socket that gets the terminal's master end"),
    value(&["pidfd-socket"], "unix socket that gets a pidfd of the process"),
    value(&["cwd"], "working directory in the container"),
    value(&["env", "e"], "a variable, NAME=value; may be repeated"),
    switch(&["tty", "t"], "give it a terminal"),
    value(&["user", "u"], "user as UID[:GID]"),
    value(&["additional-gids", "g"], "a further group id; may be repeated"),
    value(&["process", "p"], "file with the process as JSON, in place of flags and words"),
    switch(&["detach", "d"], "do not wait for the process"),
    value(&["pid-file"], "file that the process id is written to"),
    value(&["process-label"], "SELinux label of the process"),
    value(&["apparmor"], "AppArmor profile of the process"),
    switch(&["no-new-privs"], "the process and its children gain no privileges by execve(2)"),
    value(&["cap", "c"], "a further capability; may be repeated"),
    number(
        &["preserve-fds"],
        "pass so many more descriptors after the standard streams (default: 0)",
    ),
    value(
        &["cgroup"],
        "an existing cgroup below the container's, [CONTROLLER:]PATH; may be repeated",
    ),
    switch(&["ignore-paused"], "also in a paused container"),
    // Hidden in runc: exec makes no subreaper of itself here.
    switch(&["no-subreaper"], ""),
];

const LISTING: Flag = value(&["format", "f"], "table or json (default: \"table\")");

const UPDATE: &[Flag] = &[
    value(
        &["resources", "r"],
        "file with linux.resources as JSON, \"-\" for standard input; other flags are ignored then, \
         but for the schemata",
    ),
    number(&["blkio-weight"], "weight for block devices, 10 to 1000"),
    value(&["cpu-period"], "period of the CPU limit in microseconds"),
    value(&["cpu-quota"], "CPU time in each period in microseconds"),
    value(&["cpu-burst"], "CPU time saved up for later periods, at most, in microseconds"),
    value(&["cpu-share"], "share of the CPUs in relation to others"),
    value(&["cpu-rt-period"], "period of the realtime limit in microseconds"),
    value(&["cpu-rt-runtime"], "realtime CPU time in each period in microseconds"),
    value(&["cpuset-cpus"], "CPUs to use, such as 0-2,4"),
    value(&["cpuset-mems"], "memory nodes to use"),
    value(&["cpu-idle"], "1: run only when nothing else does (SCHED_IDLE); 0: not so"),
    value(&["memory"], "memory limit in bytes, or with a unit (512m)"),
    value(&["memory-reservation"], "memory that is left to it when it gets scarce, in bytes"),
    value(&["memory-swap"], "memory and swap together in bytes; -1: no limit of swap"),
    number(
        &["pids-limit"],
        "most processes and threads in the container; -1: no limit; 0 counts from ociVersion 1.3 on",
    ),
    value(&["l3-cache-schema"], "Intel RDT: schema of the L3 cache"),
    value(&["mem-bw-schema"], "Intel RDT: schema of the memory bandwidth"),
    // Linux has no such limits any more.
    value(&["kernel-memory"], ""),
    value(&["kernel-memory-tcp"], ""),
];

const ID: &str = "<container-id>";
const OPTIONS_ID: &str = "[command options] <container-id>";
/// What every command has that says nothing else.
const BASE: Command = Command {
    name: "",
    about: "",
    usage: OPTIONS_ID,
    more: "",
    words: (1, 1),
    flags: &[],
    stage: "",
    failed: 1,
    action: None,
};

pub(super) const ALL: &[Command] = &[
    Command {
        name: "checkpoint",
        about: "save a running container (not offered: it needs CRIU)",
        usage: ID,
        ..BASE
    },
    Command {
        name: "create",
        about: "create a container from a bundle",
        more: "The process is made and waits for \"start\". The bundle is a directory with the file\n\
               \"config.json\" (see \"spec\") and the root file system that it names.",
        flags: &[CREATE],
        stage: "runc create failed: ",
        action: Some(run::create),
        ..BASE
    },
    Command {
        name: "delete",
        about: "remove a container that has ended",
        flags: &[&[switch(&["force", "f"], "kill it first; one that does not exist is no error")]],
        action: Some(manage::delete),
        ..BASE
    },
    Command {
        name: "events",
        about: "print a container's figures at intervals, and when it runs out of memory",
        flags: &[&[
            value(&["interval"], "time between figures, such as 500ms or 1m30s (default: 5s)"),
            switch(&["stats"], "print the figures once and end"),
        ]],
        action: Some(events::print),
        ..BASE
    },
    Command {
        name: "exec",
        about: "run a further process in a container",
        usage: "[command options] <container-id> <command> [arguments...]  || -p process.json <container-id>",
        more: "The exit code is that of the process; 255 if it could not be run.",
        words: (1, usize::MAX),
        flags: &[EXEC],
        stage: "exec failed: ",
        // runc's: 1 could be the program's own.
        failed: 255,
        action: Some(run::exec),
    },
    Command {
        name: "kill",
        about: "send a signal to a container's first process (default: SIGTERM)",
        usage: "[command options] <container-id> [signal]",
        more: "The signal is a name, with or without SIG, or a number; 0 only asks whether the process is\n\
               there.",
        words: (1, 2),
        flags: &[&[switch(&["all", "a"], "send it to all processes in the container")]],
        action: Some(manage::kill),
        ..BASE
    },
    Command {
        name: "list",
        about: "list the containers below the given root",
        usage: "[command options]",
        words: (0, 0),
        flags: &[&[LISTING, switch(&["quiet", "q"], "print only the ids")]],
        action: Some(manage::list),
        ..BASE
    },
    Command {
        name: "pause",
        about: "stop all processes in a container from running, until \"resume\"",
        usage: ID,
        action: Some(manage::pause),
        ..BASE
    },
    Command {
        name: "ps",
        about: "list the processes in a container",
        usage: "[command options] <container-id> [ps options]",
        words: (1, usize::MAX),
        flags: &[&[LISTING]],
        action: Some(manage::ps),
        ..BASE
    },
    Command {
        name: "restore",
        about: "make a container from a checkpoint (not offered: it needs CRIU)",
        usage: ID,
        ..BASE
    },
    Command {
        name: "resume",
        about: "let the processes of a paused container run again",
        usage: ID,
        action: Some(manage::resume),
        ..BASE
    },
    Command {
        name: "run",
        about: "create a container, start it, wait for its end and delete it",
        more: "The exit code is that of the container's process. See also \"create\".",
        flags: &[CREATE, RUN],
        stage: "runc run failed: ",
        action: Some(run::run),
        ..BASE
    },
    Command {
        name: "spec",
        about: "write a config.json to start from",
        usage: "[command options]",
        words: (0, 0),
        flags: &[&[
            value(&["bundle", "b"], "the bundle's directory (default: the current directory)"),
            switch(&["rootless"], "one for a caller who is not root"),
        ]],
        action: Some(spec::write),
        ..BASE
    },
    Command {
        name: "start",
        about: "run the user's program in a container that was created",
        usage: ID,
        action: Some(run::start),
        ..BASE
    },
    Command {
        name: "state",
        about: "print a container's state as JSON",
        usage: ID,
        action: Some(manage::state),
        ..BASE
    },
    Command {
        name: "update",
        about: "change a container's limits",
        flags: &[UPDATE],
        action: Some(manage::update),
        ..BASE
    },
    Command {
        name: "features",
        about: "print what this runtime can do as JSON",
        usage: "",
        words: (0, 0),
        action: Some(features::print),
        ..BASE
    },
];

pub(super) fn find(name: &str) -> Option<&'static Command> {
    ALL.iter().find(|command| command.name == name)
}
