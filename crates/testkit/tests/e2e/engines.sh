# Read by every step of engines.steps and engines-ctr.steps before its own lines. ENGINE is the client
# with its flags, RT the runtime under test.

e() { $ENGINE "$@"; }
t() { ctr tasks "$@"; }
if [ "$ENGINE" = ctr ]; then
  run() { ctr run --rm --runc-binary "$RT" "$@"; }
  up() { ctr run --detach --null-io --runc-binary "$RT" "$@"; }
  pid() { t ls | awk -v name="$C" '$1 == name { print $2 }'; }
  gone() { t ls | awk -v name="$C" '$1 == name { print $3 }' | grep -q STOPPED; }
  clear_up() { t rm -f "$C" > /dev/null 2>&1; ctr containers rm "$C" > /dev/null 2>&1; }
else
  run() { e run --rm $NET "$@"; }
  up() { e run -d --name "$C" $NET "$@" > /dev/null; }
  told() { e inspect --format "$1" "$C"; }
  pid() { told '{{.State.Pid}}'; }
  clear_up() { e rm -f "$C" > /dev/null 2>&1; }
  logged() { e logs "$C" 2>&1 | grep -q "$1"; }
  filled() { logged filled; }
  restarted() { [ "$(told '{{.RestartCount}} {{.State.Status}}')" = "$1 exited" ]; }
fi

# await COMMAND…: until it succeeds; after ten seconds it is told that it never did.
await() {
  n=0
  until "$@" 2> /dev/null; do
    n=$((n + 1))
    [ $n -lt 200 ] || { echo "never: $*"; return 1; }
    sleep 0.05
  done
}
# terminal LINE: runs it on a terminal of 91 columns and 33 rows, on which nobody types.
terminal() {
  [ -p "$D/typed" ] || mkfifo "$D/typed"
  script -qec ". $D/prelude; stty cols 91 rows 33; $1" /dev/null <> "$D/typed"
}
# Temporary names and figures of memory in an error.
varying() { sed 's/podman[0-9][0-9]*/podman<n>/; s/usage: [0-9]*/usage: <n>/g'; }
# The container's cgroup in the hierarchy of a controller.
group() { echo "$CG/$1$(sed -n "s/^[0-9]*:$1://p" "/proc/$(pid)/cgroup")"; }
frozen() { cat "$(group freezer)/freezer.state"; }
two_processes() { [ "$(wc -l < "$(group pids)/cgroup.procs")" = 2 ]; }
sleeping() { pgrep -x -f 'sleep 100' > /dev/null; }
settled() { [ "$(find "$CG" -type d | wc -l)" -le "$1" ]; }
# mountinfo without what differs from run to run: ids, peer groups, sources, an overlay's directories.
mounts() {
  awk '{ for (i = 7; $i != "-"; i++) { sub(/:.*/, "", $i); $6 = $6 " " $i }
    s = $(i + 3); gsub(/(lower|upper|work)dir=[^,]*/, "", s); print $5, $6, $(i + 1), s }'
}
