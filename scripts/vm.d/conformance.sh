# The conformance suite on a machine with cgroup v2 only, with each runtime. Its verdicts go to the
# second serial line as they come; what is told is what is not as listed, what was skipped, and the counts.
# Ours has to be as listed; the peers are there to compare with: what is not as listed is told only.
. /list/wanted
set -o pipefail
words=
for word in $ONLY; do words="$words --only $word"; done
failed=0
for name in $RUNTIMES; do
  case $name in
    gantry) runtime="/bin/gantry runtime" ;;
    *) runtime=/bin/$name ;;
  esac
  start=$(cut -d. -f1 /proc/uptime)
  # shellcheck disable=SC2086
  conformance $words --as "$name" --list /list/differences.txt --list /list/differences-v2.txt \
    --skips /list/skips.txt $runtime | tee /tmp/verdicts > /dev/ttyS1 || [ "$name" != gantry ] || failed=1
  grep '"outcome":"skip"' /tmp/verdicts |
    sed 's/.*"property":"\([^"]*\)".*"text":"\(.*\)","took_ms.*/skipped: \1: \2/'
  sed -n 's/.*"property":"\([^"]*\)".*"took_ms":\([0-9]*\).*/\2 \1/p' /tmp/verdicts | sort -rn |
    head -n 3 | sed 's/^/slow (ms): /'
  echo "$name took $(($(cut -d. -f1 /proc/uptime) - start)) s"
done
exit $failed
