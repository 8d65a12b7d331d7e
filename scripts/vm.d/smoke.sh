# The engine on a machine with cgroup v2 only: it starts, a container runs, and its limits bite; images
# are loaded, in the form of layers that this kernel allows; containers survive the daemon.
failed=0
check() { # check WHAT COMMAND…
  what=$1
  shift
  if "$@" > /tmp/out 2>&1; then echo "ok: $what"; else echo "FAILED: $what"; sed 's/^/    /' /tmp/out; failed=1; fi
}
number() { echo $((0x$(head -c 2 /dev/urandom | od -An -tx1 | tr -d ' ') % ($2 - $1) + $1)); }

export HOME=/root
ip link add eth0 type dummy && ip address add 198.51.100.2/24 dev eth0 && ip link set eth0 up
ip route add default via 198.51.100.1
echo "nameserver 198.51.100.1" > /etc/resolv.conf
printf '127.0.0.1\tlocalhost\n' > /etc/hosts

gantry daemon > /var/log/gantry.log 2>&1 &
daemon=$!
started() { # Its own socket: the first client could start another daemon.
  n=0
  until [ -S /run/gantry/gantry.sock ]; do
    n=$((n + 1))
    [ $n -lt 200 ] && kill -0 $daemon || { cat /var/log/gantry.log; return 1; }
    usleep 200000
  done
  gantry version && [ "$(cat /run/gantry/gantry.pid)" = $daemon ]
}
check "the daemon starts" started
check "it says cgroup v2" sh -c "gantry info --format '{{.CgroupVersion}}' | tee /dev/stderr | grep -qx 2"
check "import" gantry import --change 'CMD ["sh"]' --change 'ENV PATH=/bin' /bases/tiny.tar tiny

code=$(number 3 100)
exits() { gantry run --rm tiny sh -c "exit $code"; [ $? = "$code" ]; }
check "a container runs and gives its exit code" exits

megabytes=$(number 20 60)
memory() {
  got=$(gantry run --rm --memory ${megabytes}m tiny cat /sys/fs/cgroup/memory.max)
  echo "memory.max: $got"
  [ "$got" = $((megabytes << 20)) ] || return 1
  gantry run --name eats --memory ${megabytes}m --memory-swap ${megabytes}m tiny tail /dev/zero
  rc=$?
  echo "exit code $rc, OOMKilled $(gantry inspect --format '{{.State.OOMKilled}}' eats)"
  [ $rc = 137 ] && [ "$(gantry inspect --format '{{.State.OOMKilled}}' eats)" = true ]
}
check "a memory limit of $megabytes MB bites" memory

hundredths=$(number 15 45)
cpu() {
  out=$(gantry run --rm --cpus 0.$hundredths tiny sh -c \
    'cat /sys/fs/cgroup/cpu.max; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; grep nr_throttled /sys/fs/cgroup/cpu.stat')
  echo "$out"
  echo "$out" | grep -qx "${hundredths}000 100000" && echo "$out" | grep -q 'nr_throttled [1-9]'
}
check "a limit of 0.$hundredths cpus bites" cpu

pids=$(number 8 30)
processes() {
  out=$(gantry run --rm --pids-limit $pids tiny sh -c \
    'i=0; while [ $i -lt 60 ]; do (sleep 20 &) 2>/dev/null || break; i=$((i+1)); done; cat /sys/fs/cgroup/pids.max; echo started $i; grep max /sys/fs/cgroup/pids.events' 2>&1)
  echo "$out"
  echo "$out" | grep -qx $pids && ! echo "$out" | grep -q 'started 60'
}
check "a limit of $pids processes bites" processes

check "removal" gantry rm eats

# Layers that are never unpacked, where the kernel mounts EROFS from files (6.12), else extracted ones.
word=$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')
loads() {
  gantry run --name writes tiny sh -c "mkdir -p /deep/er && echo $word > /deep/er/word" &&
    gantry commit writes loaded && gantry rm writes && gantry save -o /var/lib/loaded.tar loaded &&
    gantry rmi loaded && ! gantry image inspect loaded && gantry load -i /var/lib/loaded.tar &&
    [ "$(gantry run --rm loaded cat /deep/er/word)" = $word ]
}
check "an image is committed, saved, removed and loaded" loads
# at_least MAJOR MINOR: this kernel's version.
at_least() {
  set -- "$1" "$2" $(uname -r | tr '.-' '  ')
  [ "$3" -gt "$1" ] || { [ "$3" = "$1" ] && [ "$4" -ge "$2" ]; }
}
layers=extracted
at_least 6 12 && layers=indexed
form() {
  gantry run -d --name stays loaded sh -c 'echo began > /began; while :; do sleep 1; done' || return 1
  grep /run/gantry/containerd/layers /proc/mounts
  extracted=$(find /var/lib/gantry/store/snapshots -path '*/fs/deep/er/word' | wc -l)
  indexed=$(find /var/lib/gantry/store/snapshots -name layer.toc | wc -l)
  mounted=$(grep -c ' /run/gantry/containerd/layers/.* erofs ' /proc/mounts)
  echo "extracted $extracted, indexed $indexed, EROFS mounted $mounted"
  case $layers in
    indexed) [ $extracted = 0 ] && [ $indexed -gt 0 ] && [ $mounted -gt 0 ] ;;
    *) [ $extracted -gt 0 ] && [ $indexed = 0 ] && [ $mounted = 0 ] ;;
  esac
}
check "its layers are $layers" form

pid() { gantry inspect --format '{{.State.Pid}}' stays; }
running=$(pid)
stops() { kill $daemon && wait $daemon; }
check "the daemon stops" stops
gantry daemon >> /var/log/gantry.log 2>&1 &
daemon=$!
check "it starts again" started
survives() {
  [ -d "/proc/$running" ] && [ "$(pid)" = "$running" ] && [ "$(gantry exec stays cat /began /deep/er/word)" = "began
$word" ]
}
check "what ran goes on, with its files" survives
ends() {
  gantry rm -f stays && [ ! -d /proc/$running ] && [ "$(gantry run --rm loaded cat /deep/er/word)" = $word ] &&
    gantry rmi loaded tiny && [ -z "$(gantry ps -aq)$(gantry images -q)" ]
}
check "all is removed" ends
check "the daemon stops again" stops
check "no mount is left" sh -c '! grep /run/gantry/containerd /proc/mounts'
[ $failed = 0 ] || { echo "the daemon's log:"; tail -n 40 /var/log/gantry.log; }
exit $failed
