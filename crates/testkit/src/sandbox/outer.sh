#!/bin/sh
# Outer half of a sandbox, on the machine: makes the cgroups, starts the inner half in namespaces of
# its own, and cleans up when that is gone. It lives exactly as long as its standard input is open,
# so it ends even if the test is killed: then the inner init reads end-of-file and ends, and with it,
# as the first process of its pid namespace, everything inside.
#
# SANDBOX_ID    name, also of its cgroup in every hierarchy
# SANDBOX_WORK  its directory; `hierarchies` in it has a line "version parent mountpoint options"
# SANDBOX_NET   isolated | uplink | host
set -u
W=$SANDBOX_WORK

leave() {
  while read -r version parent mountpoint options; do
    echo $$ > "$parent/cgroup.procs" 2>/dev/null
  done < "$W/hierarchies"
  tries=0
  while :; do # processes that were just killed leave their cgroups a little later
    left=
    while read -r version parent mountpoint options; do
      [ -d "$parent/$SANDBOX_ID" ] || continue
      find "$parent/$SANDBOX_ID" -depth -type d -exec rmdir {} + 2>/dev/null
      [ ! -d "$parent/$SANDBOX_ID" ] || left=1
    done < "$W/hierarchies"
    tries=$((tries + 1))
    [ -n "$left" ] && [ $tries -lt 200 ] || break
    sleep 0.05
  done
  tries=0
  while ! rm -rf --one-file-system "$W" 2>/dev/null && [ $tries -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.05
  done
}
trap leave EXIT
trap '' INT TERM HUP # end of input alone ends a sandbox

while read -r version parent mountpoint options; do
  mkdir "$parent/$SANDBOX_ID" || exit 1
  if [ "$version" = v1 ] && [ -e "$parent/cpuset.cpus" ]; then # a new cpuset is empty and takes no process
    cat "$parent/cpuset.cpus" > "$parent/$SANDBOX_ID/cpuset.cpus"
    cat "$parent/cpuset.mems" > "$parent/$SANDBOX_ID/cpuset.mems"
  fi
  echo $$ > "$parent/$SANDBOX_ID/cgroup.procs" || exit 1
done < "$W/hierarchies"

unshare --mount --pid --uts --ipc --cgroup --fork --kill-child=KILL -- /bin/sh "$W/inner.sh"
