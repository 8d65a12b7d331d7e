# What docker-py's documentation shows, with the outcome of each asserted.
# Arguments: an image with busybox, a random word, an exit code.
import io
import sys
import tarfile

import docker

image, word, code = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = docker.from_env()

assert client.ping()
assert client.version()["Os"] == "linux"
assert client.info()["Images"] >= 1

# run, to its end and detached
out = client.containers.run(image, ["echo", "hello", word], remove=True)
assert out == f"hello {word}\n".encode(), out
try:
    client.containers.run(image, ["sh", "-c", f"echo {word} >&2; exit {code}"], remove=True)
    raise AssertionError("no error")
except docker.errors.ContainerError as error:
    assert error.exit_status == code, error
    assert word.encode() in error.stderr, error

container = client.containers.run(
    image,
    ["sh", "-c", "trap 'exit 0' TERM; for i in 1 2 3; do echo line $i; done; while :; do sleep 0.05; done"],
    detach=True, name=f"py-{word}", labels={"which": word}, environment={"WHO": word},
    volumes={f"pyvol-{word}": {"bind": "/data", "mode": "rw"}}, ports={"80/tcp": ("127.0.0.1", None)},
)
lines = []
for line in container.logs(stream=True):
    lines.append(line)
    if len(lines) == 3:
        break
assert lines == [b"line 1\n", b"line 2\n", b"line 3\n"], lines
assert container.logs(tail=1) == b"line 3\n"

container.reload()
assert container.status == "running", container.status
assert container.attrs["Config"]["Labels"]["which"] == word
assert int(container.ports["80/tcp"][0]["HostPort"]) > 0
assert [c.name for c in client.containers.list(filters={"label": f"which={word}"})] == [container.name]
assert client.containers.get(container.id).name == f"py-{word}"

# exec, together, apart, as a stream, with a code
result = container.exec_run(["sh", "-c", f"echo $WHO; echo bad >&2; exit {code}"])
assert result.exit_code == code, result
result = container.exec_run(["sh", "-c", "echo $WHO; echo bad >&2"], demux=True)
assert result.output == (f"{word}\n".encode(), b"bad\n"), result
_, stream = container.exec_run(["sh", "-c", "echo one; echo two"], stream=True)
parts = list(stream)
assert b"".join(parts) == b"one\ntwo\n", parts

# files
buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w") as tar:
    info = tarfile.TarInfo("sent")
    info.size = len(word)
    tar.addfile(info, io.BytesIO(word.encode()))
assert container.put_archive("/data", buffer.getvalue())
bits, stat = container.get_archive("/data/sent")
assert stat["name"] == "sent" and stat["size"] == len(word), stat
with tarfile.open(fileobj=io.BytesIO(b"".join(bits))) as tar:
    assert tar.extractfile("sent").read() == word.encode()

assert "sh" in str(container.top()["Processes"])
stats = container.stats(stream=False)
assert stats["pids_stats"]["current"] >= 1, stats["pids_stats"]
container.rename(f"py2-{word}")
container.pause()
container.reload()
assert container.status == "paused"
container.unpause()
container.restart(timeout=1)
container.stop(timeout=5)
assert container.wait()["StatusCode"] == 0
container.remove()
try:
    client.containers.get(container.id)
    raise AssertionError("still there")
except docker.errors.NotFound:
    pass

# build
dockerfile = f"FROM {image}\nLABEL which={word}\nRUN echo {word} > /built\nCMD cat /built\n"
built, log = client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=f"pybuilt-{word}", rm=True)
assert any("Successfully built" in entry.get("stream", "") for entry in log)
assert built.labels["which"] == word
assert f"pybuilt-{word}:latest" in built.tags
assert client.containers.run(f"pybuilt-{word}", remove=True) == f"{word}\n".encode()
try:
    bad = f"FROM {image}\nRUN exit {code}\n"
    client.images.build(fileobj=io.BytesIO(bad.encode()), rm=True)
    raise AssertionError("no error")
except docker.errors.BuildError as error:
    assert f"returned a non-zero code: {code}" in str(error), error

# images
assert built.tag("pytagged", tag=word)
assert client.images.get(f"pytagged:{word}").id == built.id
assert built.history()[0]["Size"] == 0
assert client.images.list(filters={"label": f"which={word}"})
saved = b"".join(built.save())
client.images.remove(f"pytagged:{word}")
client.images.remove(f"pybuilt-{word}", force=True)
loaded = client.images.load(saved)
assert loaded, "nothing loaded"
try:
    client.images.get(f"absent-{word}")
    raise AssertionError("found")
except docker.errors.ImageNotFound:
    pass

# networks: two containers find one another by name
network = client.networks.create(f"pynet-{word}", driver="bridge")
server = client.containers.run(
    image, ["sh", "-c", f"mkdir /w; echo {word} > /w/f; exec httpd -f -h /w"],
    detach=True, name=f"pyserver-{word}", network=network.name)
page = client.containers.run(
    image, ["sh", "-c", f"until wget -qO- http://pyserver-{word}/f; do sleep 0.05; done"],
    remove=True, network=network.name)
assert page == f"{word}\n".encode(), page
network.reload()
assert [c.name for c in network.containers] == [server.name]
network.disconnect(server)
network.connect(server, aliases=["other"])
server.remove(force=True)
network.remove()

# volumes
volume = client.volumes.create(name=f"pyvol2-{word}", labels={"which": word})
assert volume in client.volumes.list(filters={"label": f"which={word}"})
read = client.containers.run(image, ["cat", "/data/sent"], remove=True,
                             volumes={f"pyvol-{word}": {"bind": "/data", "mode": "ro"}})
assert read == word.encode(), read
volume.remove()
client.volumes.get(f"pyvol-{word}").remove()

# events
events = client.events(since=0, decode=True, filters={"type": "network", "event": "destroy"})
event = next(events)
assert event["Actor"]["Attributes"]["name"] == f"pynet-{word}", event
events.close()
print("all done", word)
