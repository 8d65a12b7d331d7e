#!/bin/sh
# Inner half of a sandbox: process 1 of new mount, pid, uts, ipc and cgroup namespaces, still in the
# machine's network namespace. Makes everything private that an engine writes to, the rest of the
# file system read-only, and a network with an "outside" host on it. Then it becomes the init.
set -eu
W=$SANDBOX_WORK
fail() { echo "sandbox: $*" >&2; exit 1; }
read -r me rest < /proc/self/stat # /proc is still the machine's: its pid of this process

# cgroups: each hierarchy mounted anew, which shows the sandbox's own cgroup as its root
mkdir -p "$W/etc/up" "$W/etc/work" "$W/var-lib" "$W/var-log" "$W/var-tmp" "$W/opt"
cat /etc/resolv.conf > "$W/resolv.machine" 2>/dev/null || : > "$W/resolv.machine"
hostname "$SANDBOX_ID"

mount --make-rprivate /
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t tmpfs -o mode=755,nosuid,nodev run /run
mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts /dev/pts
mount -t overlay -o "lowerdir=/etc,upperdir=$W/etc/up,workdir=$W/etc/work" etc /etc
mkdir -p /run/lock /run/netns /run/home /run/bin /run/tmp

rm -rf /etc/docker /etc/containerd /etc/gantry
rm -f /etc/resolv.conf
case $SANDBOX_NET in
  isolated) echo "nameserver 198.51.100.1" > /etc/resolv.conf ;;
  uplink) echo "nameserver 10.0.2.3" > /etc/resolv.conf ;;
  host) cp "$W/resolv.machine" /etc/resolv.conf ;;
esac
printf '%s\n' "$SANDBOX_ID" > /etc/hostname
printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t%s\n' "$SANDBOX_ID" > /etc/hosts

# The binds below hide where the work directory may be, so that one is held first.
mkdir /run/.work
mount --bind "$W" /run/.work
mount --bind /run/.work/var-lib /var/lib
mount --bind /run/.work/var-log /var/log
mount --bind /run/.work/opt /opt
mount --bind /tmp /tmp
mount --bind /run/.work/var-tmp /var/tmp
mount -o remount,bind,ro /

if [ "$SANDBOX_NET" != host ]; then
  ip netns add inside
  ip netns add outside
  for n in inside outside; do ip -n $n link set lo up; done
  ip -n inside link add eth0 type veth peer name eth0 netns outside
  ip -n inside address add 198.51.100.2/24 dev eth0
  ip -n outside address add 198.51.100.1/24 dev eth0
  ip -n inside address add 2001:db8:100::2/64 dev eth0 nodad
  ip -n outside address add 2001:db8:100::1/64 dev eth0 nodad
  for n in inside outside; do ip -n $n link set eth0 up; done
  ip -n inside route add default via 198.51.100.1 metric 1000
  ip -n inside -6 route add default via 2001:db8:100::1 metric 1000
fi

if [ "$SANDBOX_NET" = uplink ]; then
  # User-mode NAT: nothing on the machine changes, no forwarding, no rule. It needs the machine's
  # network namespace and its resolv.conf.
  mkfifo /run/.slirp
  # shellcheck disable=SC2016 # expanded by the inner shell
  unshare --mount sh -c 'mount --bind "$1/resolv.machine" /etc/resolv.conf
    exec slirp4netns --configure --mtu=1500 --disable-host-loopback --ready-fd=3 \
      --netns-type=path /run/netns/inside tap0 3> /run/.slirp > "$1/slirp.log" 2>&1 < /dev/null' sh /run/.work &
  [ "$(head -c 1 /run/.slirp)" = 1 ] || fail "slirp4netns: $(cat /run/.work/slirp.log)"
  rm -f /run/.slirp
fi

# sysfs and cgroups come last: a sysfs belongs to the network namespace that mounts it.
# shellcheck disable=SC2016
finish='
set -eu
umount -Rl /sys # else its old mount points would be seen through
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
while read -r version parent mountpoint options; do
  case $mountpoint in
    /sys/fs/cgroup) ;;
    *) mountpoint -q /sys/fs/cgroup || mount -t tmpfs -o mode=755,nosuid,nodev,noexec cgroup /sys/fs/cgroup ;;
  esac
  mkdir -p "$mountpoint"
  if [ "$version" = v2 ]; then
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$mountpoint"
    # no process in the root: an engine may then hand controllers on to its children
    mkdir "$mountpoint/init"
    echo 1 > "$mountpoint/init/cgroup.procs"
  else
    mount -t cgroup -o "nosuid,nodev,noexec,$options" cgroup "$mountpoint"
  fi
done < /run/.work/hierarchies
[ "$SANDBOX_PROPAGATION" = private ] || mount --make-rshared /
echo "ready $1"
exec tini -- cat > /dev/null
'
if [ "$SANDBOX_NET" = host ]; then
  exec sh -c "$finish" sh "$me"
else
  exec nsenter --net=/run/netns/inside sh -c "$finish" sh "$me"
fi
