//! Which commands there are.

use crate::cmd::{Cmd, Count};
use crate::commands::*;
use crate::flags::container as cf;
use crate::flags::image as imf;
use crate::flags::{FlagSets, other as of};

/// A command that has commands below it.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) commands: &'static [&'static Cmd],
}

/// Docker's commands that are deliberately absent: swarm and what belongs to it, v1 plugins.
pub(crate) const UNSUPPORTED: [&str; 10] = [
    "checkpoint",
    "config",
    "manifest",
    "node",
    "plugin",
    "secret",
    "service",
    "stack",
    "swarm",
    "trust",
];

macro_rules! command {
    ($id:ident = $name:literal, $usage:literal, $count:expr, $run:path, $flags:expr, $about:literal $(, $field:ident: $value:expr)*) => {
        static $id: Cmd = {
            #[allow(unused_mut)]
            let mut cmd = Cmd {
                name: $name,
                aliases: &[],
                usage: $usage,
                about: $about,
                also: &[],
                flags: $flags,
                count: $count,
                stop_at_first: false,
                hidden: false,
                run: |ctx, m| Box::pin($run(ctx, m)),
            };
            $( cmd.$field = $value; )*
            cmd
        };
    };
}

use Count::{AtLeast, AtMost, Between, Exact, None as NoArgs};

command!(ATTACH = "attach", "[OPTIONS] CONTAINER", Exact(1), run::attach, &[cf::CONTAINER_ATTACH],
    "Attach to the input and output of a running container", also: &["container attach", "attach"]);
command!(COMMIT = "commit", "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]", Between(1, 2), container::commit, &[cf::CONTAINER_COMMIT],
    "Make an image from a container's changes", also: &["container commit", "commit"]);
command!(CP = "cp", "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n        docker cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", Exact(2), cp::cp, &[cf::CONTAINER_CP],
    "Copy files between a container and the local filesystem", also: &["container cp", "cp"]);
command!(CREATE = "create", "[OPTIONS] IMAGE [COMMAND] [ARG...]", AtLeast(1), run::create, &[cf::CONTAINER_CREATE],
    "Create a container", also: &["container create", "create"], stop_at_first: true);
command!(DIFF = "diff", "CONTAINER", Exact(1), container::diff, &[],
    "Show what changed on a container's filesystem", also: &["container diff", "diff"]);
command!(EXEC = "exec", "[OPTIONS] CONTAINER COMMAND [ARG...]", AtLeast(2), exec::exec, &[cf::CONTAINER_EXEC],
    "Run a command in a running container", also: &["container exec", "exec"], stop_at_first: true);
command!(EXPORT = "export", "[OPTIONS] CONTAINER", Exact(1), transfer::export, &[cf::CONTAINER_EXPORT],
    "Export a container's filesystem as a tar archive", also: &["container export", "export"]);
command!(
    CONTAINER_INSPECT = "inspect",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    AtLeast(1),
    inspect::container,
    &[cf::CONTAINER_INSPECT],
    "Show all details of containers"
);
command!(KILL = "kill", "[OPTIONS] CONTAINER [CONTAINER...]", AtLeast(1), container::kill, &[cf::CONTAINER_KILL],
    "Kill running containers", also: &["container kill", "kill"]);
command!(LOGS = "logs", "[OPTIONS] CONTAINER", Exact(1), container::logs, &[cf::CONTAINER_LOGS],
    "Show the logs of a container", also: &["container logs", "logs"]);
command!(PS = "ls", "[OPTIONS]", NoArgs, ps::ls, &[cf::CONTAINER_LS],
    "List containers", aliases: &["list", "ps"], also: &["container ls", "container list", "container ps", "ps"]);
command!(PAUSE = "pause", "CONTAINER [CONTAINER...]", AtLeast(1), container::pause, &[],
    "Pause all processes of containers", also: &["container pause", "pause"]);
command!(PORT = "port", "CONTAINER [PRIVATE_PORT[/PROTO]]", Between(1, 2), container::port, &[],
    "List published ports of a container", also: &["container port", "port"]);
command!(
    CONTAINER_PRUNE = "prune",
    "[OPTIONS]",
    NoArgs,
    container::prune,
    &[cf::CONTAINER_PRUNE],
    "Remove all stopped containers"
);
command!(RENAME = "rename", "CONTAINER NEW_NAME", Exact(2), container::rename, &[],
    "Rename a container", also: &["container rename", "rename"]);
command!(RESTART = "restart", "[OPTIONS] CONTAINER [CONTAINER...]", AtLeast(1), container::restart, &[cf::CONTAINER_RESTART],
    "Restart containers", also: &["container restart", "restart"]);
command!(RM = "rm", "[OPTIONS] CONTAINER [CONTAINER...]", AtLeast(1), container::rm, &[cf::CONTAINER_RM],
    "Remove containers", aliases: &["remove"], also: &["container rm", "container remove", "rm"]);
command!(RUN = "run", "[OPTIONS] IMAGE [COMMAND] [ARG...]", AtLeast(1), run::run, &[cf::CONTAINER_CREATE, cf::CONTAINER_RUN],
    "Create and start a container from an image", also: &["container run", "run"], stop_at_first: true);
command!(START = "start", "[OPTIONS] CONTAINER [CONTAINER...]", AtLeast(1), run::start, &[cf::CONTAINER_START],
    "Start stopped containers", also: &["container start", "start"]);
command!(STATS = "stats", "[OPTIONS] [CONTAINER...]", AtLeast(0), stats::stats, &[cf::CONTAINER_STATS],
    "Show the resource usage of containers as it changes", also: &["container stats", "stats"]);
command!(STOP = "stop", "[OPTIONS] CONTAINER [CONTAINER...]", AtLeast(1), container::stop, &[cf::CONTAINER_STOP],
    "Stop running containers", also: &["container stop", "stop"]);
command!(TOP_CMD = "top", "CONTAINER [ps OPTIONS]", AtLeast(1), container::top, &[],
    "Show the processes of a container", also: &["container top", "top"], stop_at_first: true);
command!(UNPAUSE = "unpause", "CONTAINER [CONTAINER...]", AtLeast(1), container::unpause, &[],
    "Resume all processes of containers", also: &["container unpause", "unpause"]);
command!(UPDATE = "update", "[OPTIONS] CONTAINER [CONTAINER...]", AtLeast(1), container::update, &[cf::CONTAINER_UPDATE],
    "Change the limits of containers", also: &["container update", "update"]);
command!(WAIT = "wait", "CONTAINER [CONTAINER...]", AtLeast(1), container::wait, &[],
    "Wait until containers stop, and print their exit codes", also: &["container wait", "wait"]);

command!(BUILD = "build", "[OPTIONS] PATH | URL | -", Exact(1), build::build, &[imf::IMAGE_BUILD],
    "Build an image from a Dockerfile", also: &["image build", "build", "builder build"]);
command!(HISTORY = "history", "[OPTIONS] IMAGE", Exact(1), image::history, &[imf::IMAGE_HISTORY],
    "Show the history of an image", also: &["image history", "history"]);
command!(IMPORT = "import", "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", Between(1, 2), transfer::import, &[imf::IMAGE_IMPORT],
    "Make an image from a tarball of a filesystem", also: &["image import", "import"]);
command!(
    IMAGE_INSPECT = "inspect",
    "[OPTIONS] IMAGE [IMAGE...]",
    AtLeast(1),
    inspect::image,
    &[imf::IMAGE_INSPECT],
    "Show all details of images"
);
command!(
    IMAGE_LAYERS = "layers",
    "[OPTIONS] IMAGE",
    Exact(1),
    layers::layers,
    &[imf::IMAGE_LAYERS],
    "Show what each layer brings, and what would shrink the image"
);
command!(LOAD = "load", "[OPTIONS]", NoArgs, transfer::load, &[imf::IMAGE_LOAD],
    "Load images from a tar archive, an OCI image layout or STDIN", also: &["image load", "load"]);
command!(IMAGES = "ls", "[OPTIONS] [REPOSITORY[:TAG]]", AtMost(1), image::ls, &[imf::IMAGE_LS],
    "List images", aliases: &["list"], also: &["image ls", "image list", "images"]);
command!(
    IMAGE_PRUNE = "prune",
    "[OPTIONS]",
    NoArgs,
    image::prune,
    &[imf::IMAGE_PRUNE],
    "Remove unused images"
);
command!(PULL = "pull", "[OPTIONS] NAME[:TAG|@DIGEST]", Exact(1), pull::pull, &[imf::IMAGE_PULL],
    "Download an image from a registry", also: &["image pull", "pull"]);
command!(PUSH = "push", "[OPTIONS] NAME[:TAG]", Exact(1), pull::push, &[imf::IMAGE_PUSH],
    "Upload an image to a registry", also: &["image push", "push"]);
command!(RMI = "rm", "[OPTIONS] IMAGE [IMAGE...]", AtLeast(1), image::rm, &[imf::IMAGE_RM],
    "Remove images", aliases: &["remove"], also: &["image rm", "image remove", "rmi"]);
command!(SAVE = "save", "[OPTIONS] IMAGE [IMAGE...]", AtLeast(1), transfer::save, &[imf::IMAGE_SAVE],
    "Save images to a tar archive (STDOUT by default) or an OCI image layout", also: &["image save", "save"]);
command!(
    IMAGE_SQUASH = "squash",
    "[OPTIONS] IMAGE",
    Exact(1),
    image::squash,
    &[imf::IMAGE_SQUASH],
    "Make an image with fewer layers out of one that is stored"
);
command!(TAG = "tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", Exact(2), image::tag, &[],
    "Give an image a further name", also: &["image tag", "tag"]);
command!(
    BUILDER_PRUNE = "prune",
    "[OPTIONS]",
    NoArgs,
    image::builder_prune,
    &[imf::BUILDER_PRUNE],
    "Remove build cache"
);

command!(
    NETWORK_CONNECT = "connect",
    "[OPTIONS] NETWORK CONTAINER",
    Exact(2),
    network::connect,
    &[of::NETWORK_CONNECT],
    "Connect a container to a network"
);
command!(
    NETWORK_CREATE = "create",
    "[OPTIONS] NETWORK",
    Exact(1),
    network::create,
    &[of::NETWORK_CREATE],
    "Create a network"
);
command!(
    NETWORK_DISCONNECT = "disconnect",
    "[OPTIONS] NETWORK CONTAINER",
    Exact(2),
    network::disconnect,
    &[of::NETWORK_DISCONNECT],
    "Disconnect a container from a network"
);
command!(
    NETWORK_INSPECT = "inspect",
    "[OPTIONS] NETWORK [NETWORK...]",
    AtLeast(1),
    inspect::network,
    &[of::NETWORK_INSPECT],
    "Show all details of networks"
);
command!(NETWORK_LS = "ls", "[OPTIONS]", NoArgs, network::ls, &[of::NETWORK_LS],
    "List networks", aliases: &["list"], also: &["network ls", "network list"]);
command!(
    NETWORK_PRUNE = "prune",
    "[OPTIONS]",
    NoArgs,
    network::prune,
    &[of::NETWORK_PRUNE],
    "Remove all unused networks"
);
command!(NETWORK_RM = "rm", "NETWORK [NETWORK...]", AtLeast(1), network::rm, &[of::NETWORK_RM],
    "Remove networks", aliases: &["remove"], also: &["network rm", "network remove"]);

command!(
    VOLUME_CREATE = "create",
    "[OPTIONS] [VOLUME]",
    AtMost(1),
    volume::create,
    &[of::VOLUME_CREATE],
    "Create a volume"
);
command!(
    VOLUME_INSPECT = "inspect",
    "[OPTIONS] VOLUME [VOLUME...]",
    AtLeast(1),
    inspect::volume,
    &[of::VOLUME_INSPECT],
    "Show all details of volumes"
);
command!(VOLUME_LS = "ls", "[OPTIONS]", NoArgs, volume::ls, &[of::VOLUME_LS],
    "List volumes", aliases: &["list"], also: &["volume ls", "volume list"]);
command!(
    VOLUME_PRUNE = "prune",
    "[OPTIONS]",
    NoArgs,
    volume::prune,
    &[of::VOLUME_PRUNE],
    "Remove unused local volumes"
);
command!(VOLUME_RM = "rm", "[OPTIONS] VOLUME [VOLUME...]", AtLeast(1), volume::rm, &[of::VOLUME_RM],
    "Remove volumes", aliases: &["remove"], also: &["volume rm", "volume remove"]);
command!(VOLUME_UPDATE = "update", "[OPTIONS] [VOLUME]", AtMost(1), volume::update, &[of::VOLUME_UPDATE],
    "Update a cluster volume (not supported)", hidden: true);

command!(SYSTEM_DF = "df", "[OPTIONS]", NoArgs, df::df, &[of::SYSTEM_DF], "Show disk usage");
command!(DIAL_STDIO = "dial-stdio", "", NoArgs, system::dial_stdio, &[],
    "Pass STDIN and STDOUT to the daemon's socket", hidden: true);
command!(EVENTS = "events", "[OPTIONS]", NoArgs, system::events, &[of::SYSTEM_EVENTS],
    "Show events of the daemon as they happen", also: &["system events", "events"]);
command!(INFO = "info", "[OPTIONS]", NoArgs, info::info, &[of::SYSTEM_INFO],
    "Show information about client and daemon", also: &["system info", "info"]);
command!(
    SYSTEM_PRUNE = "prune",
    "[OPTIONS]",
    NoArgs,
    system::prune,
    &[of::SYSTEM_PRUNE],
    "Remove unused data"
);
command!(
    INSPECT = "inspect",
    "[OPTIONS] NAME|ID [NAME|ID...]",
    AtLeast(1),
    inspect::any,
    &[of::INSPECT],
    "Show all details of any objects"
);
command!(
    LOGIN = "login",
    "[OPTIONS] [SERVER]",
    AtMost(1),
    login::login,
    &[of::LOGIN],
    "Log in to a registry\nWithout a server, to Docker Hub."
);
command!(
    LOGOUT = "logout",
    "[SERVER]",
    AtMost(1),
    login::logout,
    &[],
    "Log out from a registry\nWithout a server, from Docker Hub."
);
command!(
    SEARCH = "search",
    "[OPTIONS] TERM",
    Exact(1),
    image::search,
    &[of::SEARCH],
    "Search Docker Hub for images"
);
command!(
    VERSION = "version",
    "[OPTIONS]",
    NoArgs,
    version::version,
    &[of::VERSION],
    "Show the versions of client and daemon"
);

command!(
    CONTEXT_CREATE = "create",
    "[OPTIONS] CONTEXT",
    Exact(1),
    context::create,
    &[of::CONTEXT_CREATE],
    "Create a context"
);
command!(
    CONTEXT_INSPECT = "inspect",
    "[OPTIONS] [CONTEXT] [CONTEXT...]",
    AtLeast(0),
    context::inspect,
    &[of::CONTEXT_INSPECT],
    "Show all details of contexts"
);
command!(CONTEXT_LS = "ls", "[OPTIONS]", NoArgs, context::ls, &[of::CONTEXT_LS],
    "List contexts", aliases: &["list"], also: &["context ls", "context list"]);
command!(CONTEXT_RM = "rm", "CONTEXT [CONTEXT...]", AtLeast(1), context::rm, &[of::CONTEXT_RM],
    "Remove contexts", aliases: &["remove"], also: &["context rm", "context remove"]);
command!(
    CONTEXT_SHOW = "show",
    "",
    NoArgs,
    context::show,
    &[],
    "Print the name of the current context"
);
command!(
    CONTEXT_UPDATE = "update",
    "[OPTIONS] CONTEXT",
    Exact(1),
    context::update,
    &[of::CONTEXT_UPDATE],
    "Change a context"
);
command!(
    CONTEXT_USE = "use",
    "CONTEXT",
    Exact(1),
    context::switch,
    &[],
    "Make a context the current one"
);

/// Commands directly below the program.
pub(crate) static TOP: &[(&str, &Cmd)] = &[
    ("attach", &ATTACH),
    ("build", &BUILD),
    ("commit", &COMMIT),
    ("cp", &CP),
    ("create", &CREATE),
    ("diff", &DIFF),
    ("events", &EVENTS),
    ("exec", &EXEC),
    ("export", &EXPORT),
    ("history", &HISTORY),
    ("images", &IMAGES),
    ("import", &IMPORT),
    ("info", &INFO),
    ("inspect", &INSPECT),
    ("kill", &KILL),
    ("load", &LOAD),
    ("login", &LOGIN),
    ("logout", &LOGOUT),
    ("logs", &LOGS),
    ("pause", &PAUSE),
    ("port", &PORT),
    ("ps", &PS),
    ("pull", &PULL),
    ("push", &PUSH),
    ("rename", &RENAME),
    ("restart", &RESTART),
    ("rm", &RM),
    ("rmi", &RMI),
    ("run", &RUN),
    ("save", &SAVE),
    ("search", &SEARCH),
    ("start", &START),
    ("stats", &STATS),
    ("stop", &STOP),
    ("tag", &TAG),
    ("top", &TOP_CMD),
    ("unpause", &UNPAUSE),
    ("update", &UPDATE),
    ("version", &VERSION),
    ("wait", &WAIT),
];

/// Commands with commands below them.
pub(crate) static GROUPS: &[Group] = &[
    Group { name: "builder", about: "Manage builds", commands: &[&BUILD, &BUILDER_PRUNE] },
    Group {
        name: "container",
        about: "Manage containers",
        commands: &[
            &ATTACH,
            &COMMIT,
            &CP,
            &CREATE,
            &DIFF,
            &EXEC,
            &EXPORT,
            &CONTAINER_INSPECT,
            &KILL,
            &LOGS,
            &PS,
            &PAUSE,
            &PORT,
            &CONTAINER_PRUNE,
            &RENAME,
            &RESTART,
            &RM,
            &RUN,
            &START,
            &STATS,
            &STOP,
            &TOP_CMD,
            &UNPAUSE,
            &UPDATE,
            &WAIT,
        ],
    },
    Group {
        name: "context",
        about: "Manage contexts",
        commands: &[
            &CONTEXT_CREATE,
            &CONTEXT_INSPECT,
            &CONTEXT_LS,
            &CONTEXT_RM,
            &CONTEXT_SHOW,
            &CONTEXT_UPDATE,
            &CONTEXT_USE,
        ],
    },
    Group {
        name: "image",
        about: "Manage images",
        commands: &[
            &BUILD,
            &HISTORY,
            &IMPORT,
            &IMAGE_INSPECT,
            &IMAGE_LAYERS,
            &LOAD,
            &IMAGES,
            &IMAGE_PRUNE,
            &PULL,
            &PUSH,
            &RMI,
            &SAVE,
            &IMAGE_SQUASH,
            &TAG,
        ],
    },
    Group {
        name: "network",
        about: "Manage networks",
        commands: &[
            &NETWORK_CONNECT,
            &NETWORK_CREATE,
            &NETWORK_DISCONNECT,
            &NETWORK_INSPECT,
            &NETWORK_LS,
            &NETWORK_PRUNE,
            &NETWORK_RM,
        ],
    },
    Group {
        name: "system",
        about: "Manage the engine",
        commands: &[&SYSTEM_DF, &DIAL_STDIO, &EVENTS, &INFO, &SYSTEM_PRUNE],
    },
    Group {
        name: "volume",
        about: "Manage volumes",
        commands: &[
            &VOLUME_CREATE,
            &VOLUME_INSPECT,
            &VOLUME_LS,
            &VOLUME_PRUNE,
            &VOLUME_RM,
            &VOLUME_UPDATE,
        ],
    },
];

/// Every command by its path, with its aliases and flags.
pub(crate) fn catalogue() -> Vec<(String, Vec<String>, FlagSets)> {
    let entry = |path: String, cmd: &'static Cmd| {
        (path, cmd.aliases.iter().map(|a| (*a).to_owned()).collect(), cmd.flags)
    };
    let top = TOP.iter().map(|(name, cmd)| entry((*name).to_owned(), cmd));
    let grouped = GROUPS.iter().flat_map(|group| {
        group.commands.iter().map(move |cmd| entry(format!("{} {}", group.name, cmd.name), cmd))
    });
    top.chain(grouped).collect()
}
