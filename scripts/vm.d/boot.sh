# What an engine needs of the machine is there: says so, or fails with what is not.
failed=0
check() { # check WHAT COMMAND…
  what=$1
  shift
  if "$@" > /tmp/out 2>&1; then echo "ok: $what"; else echo "FAILED: $what: $(cat /tmp/out)"; failed=1; fi
}
controllers() {
  for c in cpu io memory pids cpuset; do
    grep -qw $c /sys/fs/cgroup/cgroup.controllers || { echo "no $c"; return 1; }
  done
  ! grep -q ' - cgroup ' /proc/self/mountinfo || { echo "a v1 hierarchy is mounted"; return 1; }
}
overlay() {
  mkdir -p /var/lib/o/l /var/lib/o/u /var/lib/o/w /var/lib/o/m && echo below > /var/lib/o/l/f &&
    mount -t overlay -o lowerdir=/var/lib/o/l,upperdir=/var/lib/o/u,workdir=/var/lib/o/w o /var/lib/o/m &&
    [ "$(cat /var/lib/o/m/f)" = below ] && umount /var/lib/o/m && rm -r /var/lib/o
}
links() { ip link add b0 type bridge && ip link add v0 type veth peer name v1 && ip link set v0 master b0; }
limit() {
  g=/sys/fs/cgroup/boot
  echo "+memory +pids +cpu" > /sys/fs/cgroup/cgroup.subtree_control && mkdir $g &&
    echo 16M > $g/memory.max && echo 0 > $g/memory.swap.max
  sh -c "echo \$\$ > $g/cgroup.procs; exec tail /dev/zero"
  [ $? = 137 ] && grep -q 'oom_kill 1' $g/memory.events
}
uname -r
check "disk" grep -q ' /var/lib ext4 ' /proc/mounts
check "cgroup v2 only, with its controllers" controllers
check "overlay on ext4" overlay
check "bridge and veth" links
for m in nf_tables nft_chain_nat nft_masq nft_nat nf_conntrack; do
  check "module $m" grep -q "^$m " /proc/modules
done
check "a memory limit bites" limit
exit $failed
