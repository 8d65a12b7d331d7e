#!/bin/sh
# The way into a sandbox: joins its cgroups, then its namespaces, then becomes the program.
# $1 is the machine's pid of the sandbox's init, $2 the sandbox's directory, $3 the network: inside
# (that of init) or outside; the program follows.
set -eu
pid=$1 net=$3
while read -r version parent mountpoint options; do
  case $version in
    v1) echo 0 > "$parent/$SANDBOX_ID/cgroup.procs" ;;
    v2) echo 0 > "$parent/$SANDBOX_ID/init/cgroup.procs" ;;
  esac
done < "$2/hierarchies"
shift 3
case $net in
  inside) exec nsenter -t "$pid" -m -p -u -i -n -C -- "$@" ;;
  *) exec nsenter -t "$pid" -m -p -u -i -C "--net=/proc/$pid/root/run/netns/$net" -- "$@" ;;
esac
