# The engine on a machine with cgroup v2 only: it starts, a container runs, and its limits bite.
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
stops() { kill $daemon && wait $daemon; }
check "the daemon stops" stops
[ $failed = 0 ] || { echo "the daemon's log:"; tail -n 40 /var/log/gantry.log; }
exit $failed
