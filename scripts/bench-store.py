"""Measures what stores do with images; see scripts/bench-store.

usage: bench-store.py SANDBOX CACHE [ROUNDS [ENGINE...]]
       bench-store.py agent ENGINE CACHE      in a sandbox: one operation per line of standard input
       bench-store.py fill LAYOUT STORAGE     in a sandbox: copies an OCI layout into a registry's storage
"""
import glob
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

IMAGES = ("pydeb", "big", "fifty")
OPERATIONS = ("pull", "push", "save", "remove", "load")
ENGINES = ("gantry", "gantry-overlayfs", "dockerd-20.10", "dockerd-26.1", "containerd-1.6",
           "containerd-1.7", "podman", "floor")
PEER = {"dockerd-20.10": "bookworm", "dockerd-26.1": "trixie"}
SOURCE, TARGET = 5990, 5991  # ports of the registries
WORK = "/var/lib/bench-store"  # on the disk, gone with the sandbox
OPERATION_SECONDS = 600  # an engine that takes longer hangs
START_SECONDS = 60
PYTHON_PACKAGES = "numpy pandas scipy sympy".split()
NODE_PACKAGES = "date-fns @mui/icons-material typescript webpack rxjs lodash aws-sdk".split()


def run(*argv, **options):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, timeout=OPERATION_SECONDS, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout.decode(errors='replace')[-600:]}")
    return done.stdout.decode(errors="replace")


def until(what, check, seconds=START_SECONDS):
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


# -- the images -----------------------------------------------------------------------------------

class Layout:
    """An OCI layout that is being written."""

    def __init__(self, path):
        self.path = path
        os.makedirs(os.path.join(path, "blobs/sha256"))
        self.layers, self.diff_ids = [], []

    def add_file(self, path):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        size = os.path.getsize(path)
        os.rename(path, os.path.join(self.path, "blobs/sha256", digest.hexdigest()))
        return {"digest": "sha256:" + digest.hexdigest(), "size": size}

    def add_json(self, media_type, value):
        with open(os.path.join(self.path, "new"), "w") as out:
            json.dump(value, out)
        return {"mediaType": media_type, **self.add_file(os.path.join(self.path, "new"))}

    def add_layer(self, tar):
        self.diff_ids.append("sha256:" + run("sha256sum", tar).split()[0])
        with open(os.path.join(self.path, "new"), "wb") as out:
            subprocess.run(["gzip", "-6nc", tar], stdout=out, check=True)
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        self.layers.append({"mediaType": kind, **self.add_file(os.path.join(self.path, "new"))})

    def close(self):
        config = self.add_json("application/vnd.oci.image.config.v1+json", {
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids}})
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = self.add_json(kind, {
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": self.layers})
        with open(os.path.join(self.path, "index.json"), "w") as out:
            json.dump({"schemaVersion": 2, "manifests": [manifest]}, out)
        with open(os.path.join(self.path, "oci-layout"), "w") as out:
            json.dump({"imageLayoutVersion": "1.0.0"}, out)


def pack(tar, directory, below):
    run("tar", "--sort=name", "--numeric-owner", "--owner=0", "--group=0", "--mtime=@1700000000",
        f"--transform=s,^\\.,{below},", "-cf", tar, "-C", directory, ".")


def layers_of(name, work, cache):
    """Tars, one after the other; each may be taken away."""
    tar = os.path.join(work, "layer.tar")
    if name == "pydeb":
        shutil.copy(os.path.join(cache, "rootfs/debian.tar"), tar)
        yield tar
        run(os.path.join(cache, "venv/bin/python"), "-m", "pip", "install", "-q",
            "--disable-pip-version-check", "--target", os.path.join(work, "python"), *PYTHON_PACKAGES)
        pack(tar, os.path.join(work, "python"), "./usr/local/lib/python3.11/dist-packages")
        yield tar
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--legacy-peer-deps",
            "--ignore-scripts", "--prefix", os.path.join(work, "node"), *NODE_PACKAGES)
        pack(tar, os.path.join(work, "node"), "./srv/app")
        yield tar
    elif name == "big":
        words = [b"%x " % random.getrandbits(40) for _ in range(4096)]
        with tarfile.open(tar, "w") as out:
            for number in range(8):
                with tempfile.NamedTemporaryFile(dir=work) as file:
                    for _ in range(1024):  # of 128 KiB, a good half of it random
                        file.write(os.urandom(72 << 10))
                        text = b"".join(random.choices(words, k=5600))
                        file.write(text[:56 << 10].ljust(56 << 10))
                    file.flush()
                    out.add(file.name, f"data/{number}")
        yield tar
    else:
        for number in range(50):
            with tarfile.open(tar, "w") as out, tempfile.NamedTemporaryFile(dir=work) as file:
                file.write(os.urandom(26 << 10))
                file.flush()
                out.add(file.name, f"layer-{number}")
            yield tar


def make_images(sandbox, cache):
    """The registry's storage with all images; made once."""
    home = os.path.join(cache, "bench-store")
    if os.path.exists(os.path.join(home, "complete")):
        return
    shutil.rmtree(home, ignore_errors=True)
    # In a sandbox only /tmp is the machine's.
    with tempfile.TemporaryDirectory(prefix="gantry-bench-store-", dir="/tmp") as work:
        storage = os.path.join(work, "storage")
        for name in IMAGES:
            print(f"bench-store: making {name}, once", file=sys.stderr)
            layout = Layout(os.path.join(work, name))
            for tar in layers_of(name, work, cache):
                layout.add_layer(tar)
            layout.close()
            run(sandbox, sys.executable, os.path.abspath(__file__), "fill", layout.path, storage)
        os.makedirs(home)
        shutil.copytree(storage, os.path.join(home, "storage"))
        for name in IMAGES:
            shutil.copytree(os.path.join(work, name), os.path.join(home, name))
        open(os.path.join(home, "complete"), "w").close()


def start_registry(port, storage):
    config = os.path.join("/run", f"registry-{port}.yml")
    with open(config, "w") as out:  # JSON is YAML
        json.dump({"version": "0.1", "log": {"level": "error"},
                   "http": {"addr": f"127.0.0.1:{port}"},
                   "storage": {"filesystem": {"rootdirectory": storage},
                               "delete": {"enabled": True}}}, out)
    log = open(f"/run/registry-{port}.log", "w")
    registry = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    until(f"registry on {port}", lambda: subprocess.run(
        ["curl", "-sf", f"http://127.0.0.1:{port}/v2/"], stdout=subprocess.DEVNULL).returncode == 0)
    return registry


def fill(layout, storage):
    registry = start_registry(SOURCE, storage)
    run("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{layout}",
        f"docker://127.0.0.1:{SOURCE}/{os.path.basename(layout)}:1")
    registry.terminate()
    registry.wait(10)


# -- in the sandbox -------------------------------------------------------------------------------

class Engine:
    """Commands by operation, each a list of argument lists; names of processes to be measured."""

    def __init__(self, name):
        self.name, self.processes = name, ()
        self.log = open("/run/engine.log", "w")
        if name.startswith("dockerd"):
            self.processes, self.client = ("dockerd", "containerd"), ["docker"]
        elif name.startswith("gantry"):
            binary = os.environ["BENCH_GANTRY"]
            driver = "overlayfs" if name.endswith("overlayfs") else "erofs"
            self.start([binary, "daemon", "--storage-driver", driver], "/run/gantry/gantry.sock")
            self.processes, self.client = ("gantry",), [binary]
        elif name.startswith("containerd"):
            path = "/usr/bin"
            if name.endswith("1.7"):
                path = os.path.join(os.environ["BENCH_CACHE"], "trixie/root/usr/bin")
            os.environ["PATH"] = path + ":" + os.environ["PATH"]
            self.start([path + "/containerd", "--log-level=error"], "/run/containerd/containerd.sock")
            self.processes, self.client = ("containerd",), [path + "/ctr"]
        elif name == "podman":
            self.client = ["podman", "--root", WORK + "/podman", "--runroot", "/run/podman-bench"]

    def start(self, argv, socket):
        subprocess.Popen(argv, stdout=self.log, stderr=self.log)
        until(argv[0], lambda: os.path.exists(socket) and
              subprocess.run([*(["ctr"] if "containerd" in socket else [argv[0]]), "version"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0)

    def argv(self, operation, image):
        source = f"127.0.0.1:{SOURCE}/{image}:1"
        target = f"127.0.0.1:{TARGET}/{image}:1"
        file = WORK + "/saved.tar"
        if self.name.startswith("containerd"):
            plain = {"pull": ["pull", "--plain-http", source],
                     "push": ["push", "--plain-http", target, source],
                     "save": ["export", file, source],
                     "load": ["import", file], "remove": ["rm", "--sync", source]}
            if self.name.endswith("1.7") and operation == "pull":
                plain["pull"] = ["pull", "--local", "--plain-http", source]
            return [*self.client, "images", *plain[operation]]
        insecure = ["--tls-verify=false"] if self.name == "podman" else []
        words = {"pull": ["pull", "-q", *insecure, source], "push": ["push", "-q", *insecure, target],
                 "save": ["save", "-o", file, source], "load": ["load", "-q", "-i", file],
                 "remove": ["rmi", "-f", source]}[operation]
        if operation == "push" and self.name == "podman":
            words = ["push", "-q", *insecure, source, target]
        return [*self.client, *words]

    def before(self, operation, image):
        """What has to be so, and is not measured."""
        if operation == "save" and os.path.exists(WORK + "/saved.tar"):
            os.unlink(WORK + "/saved.tar")
        if operation == "push" and self.name.startswith(("dockerd", "gantry")):
            run(*self.client, "tag", f"127.0.0.1:{SOURCE}/{image}:1", f"127.0.0.1:{TARGET}/{image}:1")
        if operation == "remove" and self.name.startswith(("dockerd", "gantry")):
            run(*self.client, "rmi", f"127.0.0.1:{TARGET}/{image}:1")

    def pids(self):
        for path in glob.glob("/proc/[0-9]*/comm"):
            try:
                with open(path) as file:
                    if file.read().strip() in self.processes:
                        yield path.split("/")[2]
            except OSError:
                continue

    def reset_peak(self):
        for pid in self.pids():
            with open(f"/proc/{pid}/clear_refs", "w") as file:
                file.write("5")

    def peak_kib(self):
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        return total

    def cleaned(self):
        """Whether what was removed is gone from the disk too."""
        trash = "/var/lib/gantry/store/trash"
        return not self.name.startswith("gantry") or not os.path.exists(trash) or not os.listdir(trash)

    def measure(self, operation, image):
        self.before(operation, image)
        os.sync()
        self.reset_peak()
        start = time.perf_counter()
        if self.name == "podman":
            process = subprocess.Popen(self.argv(operation, image), stdin=subprocess.DEVNULL,
                                       stdout=self.log, stderr=self.log)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                with open(self.log.name) as log:
                    raise RuntimeError(f"podman {operation}: {log.read()[-600:]}")
            return time.perf_counter() - start, usage.ru_maxrss
        run(*self.argv(operation, image))
        if operation == "remove":
            until("empty trash", self.cleaned, OPERATION_SECONDS)
        return time.perf_counter() - start, self.peak_kib()


class Floor:
    """What it takes to unpack the layers of an image by hand: to files, and to tars."""

    def __init__(self, home):
        self.home = home

    def measure(self, operation, image):
        layout = os.path.join(self.home, image)
        with open(layout + "/index.json") as file:
            manifest = json.load(file)["manifests"][0]["digest"].split(":")[1]
        with open(f"{layout}/blobs/sha256/{manifest}") as file:
            layers = [layer["digest"].split(":")[1] for layer in json.load(file)["layers"]]
        command = {"pull": 'mkdir "$2" && gzip -dc "$1" | tar -x --numeric-owner -C "$2"',
                   "load": 'igzip -dc "$1" > "$2"'}.get(operation)
        if command is None or (operation == "load" and not shutil.which("igzip")):
            return None
        os.sync()
        out = WORK + "/floor"
        os.makedirs(out)
        start = time.perf_counter()
        for number, layer in enumerate(layers):
            run("sh", "-ec", command, "sh", f"{layout}/blobs/sha256/{layer}", f"{out}/{number}")
        took = time.perf_counter() - start
        shutil.rmtree(out)
        return took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def agent(name, cache):
    home = os.path.join(cache, "bench-store")
    os.makedirs(WORK)
    start_registry(SOURCE, home + "/storage")
    engine = Floor(home) if name == "floor" else Engine(name)
    target = None
    print("ready", flush=True)
    for line in sys.stdin:
        operation, image = line.split()
        try:
            if operation == "push":
                if target is not None:
                    target.terminate()
                    target.wait(10)
                shutil.rmtree(WORK + "/target", ignore_errors=True)
                os.makedirs(WORK + "/target")
                target = None if name == "floor" else start_registry(TARGET, WORK + "/target")
            if operation == "clean":
                if name != "floor":
                    run(*engine.argv("remove", image))
                    until("empty trash", engine.cleaned, OPERATION_SECONDS)
                answer = {}
            else:
                measured = engine.measure(operation, image)
                answer = {} if measured is None else {"seconds": measured[0], "peak_kib": measured[1]}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            answer = {"error": str(error)[-800:]}
        print(json.dumps(answer), flush=True)


# -- outside --------------------------------------------------------------------------------------

def main(sandbox, cache, rounds, engines):
    make_images(sandbox, cache)
    agents, figures = {}, {}
    for name in engines:
        options = ["--peer", PEER[name]] if name in PEER else []
        env = dict(os.environ)
        words = ["env", f"BENCH_GANTRY={env.get('GANTRY_BIN', '')}", f"BENCH_CACHE={cache}",
                 sys.executable, os.path.abspath(__file__), "agent", name, cache]
        agents[name] = subprocess.Popen([sandbox, *options, *words], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1)
        if agents[name].stdout.readline().strip() != "ready":
            raise SystemExit(f"bench-store: {name} does not start")
    failures = 0
    try:
        for number in range(rounds):
            for image in IMAGES:
                for operation in (*OPERATIONS, "clean"):
                    for name, process in agents.items():
                        process.stdin.write(f"{operation} {image}\n")
                        answer = json.loads(process.stdout.readline() or '{"error": "it has ended"}')
                        if "error" in answer:
                            failures += 1
                            print(f"bench-store: {name} {operation} {image}: {answer['error']}", file=sys.stderr)
                        elif answer:
                            key = (name, operation, image)
                            figures.setdefault(key, []).append((answer["seconds"], answer["peak_kib"]))
            print(f"bench-store: round {number + 1} of {rounds} done", file=sys.stderr)
    except KeyboardInterrupt:
        failures += 1
        print("bench-store: interrupted; the figures so far:", file=sys.stderr)
    report(engines, figures)
    for process in agents.values():
        process.stdin.close()
        process.wait(120)
    return 1 if failures else 0


def report(engines, figures):
    first = engines[0]
    print("median seconds (times the first engine's), peak MB")
    for image in IMAGES:
        for operation in OPERATIONS:
            print(f"{image} {operation}")
            base = None
            for name in engines:
                values = figures.get((name, operation, image))
                if not values:
                    continue
                seconds = statistics.median(v[0] for v in values)
                peak = max(v[1] for v in values) / 1024
                base = seconds if name == first else base
                ratio = f"{seconds / base:7.1f} x" if base else "        -"
                label = name
                if name == "floor":
                    label = "gzip | tar x" if operation == "pull" else "igzip to tars"
                print(f"  {label:18} {seconds:8.2f} {ratio} {peak:8.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["agent"]:
        agent(*sys.argv[2:4])
    elif sys.argv[1:2] == ["fill"]:
        fill(*sys.argv[2:4])
    else:
        wanted = sys.argv[4:] or list(ENGINES)
        for unknown in set(wanted) - set(ENGINES):
            raise SystemExit(f"bench-store: no engine {unknown}; there are {', '.join(ENGINES)}")
        sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 3, wanted))
