#!/usr/bin/env bash
# Makes two base images from Debian's packages and imports them, so that images can be built without
# an image registry:
#
#   local/tiny     busybox-static and nothing else: a shell, its tools, a web server; about 2 MB
#   local/debian   Debian bookworm, variant minbase, by debootstrap: apt works in it
#
#   make-bases.sh [--only tiny|debian] [--keep DIR] [--import COMMAND]
#
#   --only NAME       just this one
#   --keep DIR        leave the root file systems there as NAME.tar, and use those that are there
#   --import COMMAND  what imports: "COMMAND import … FILE REFERENCE" is run for each; default is
#                     "gantry" if that is installed, else "docker"; not done with --keep alone
#
# Needs a machine with apt and root (debootstrap makes devices). Nothing is installed on the machine:
# the packages are unpacked into a temporary directory which is gone afterwards.
set -euo pipefail
umask 022
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=$PATH:/usr/sbin:/sbin

SUITE=bookworm
NAMES="tiny debian" KEEP="" IMPORT=""
say() { printf '%s\n' "bases: $*" >&2; }
die() { say "$*"; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --only) NAMES=${2:?--only needs a name}; shift 2 ;;
    --keep) KEEP=${2:?--keep needs a directory}; shift 2 ;;
    --import) IMPORT=${2:?--import needs a command}; shift 2 ;;
    *) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
if [ -z "$KEEP$IMPORT" ]; then
  for IMPORT in gantry docker ""; do command -v "$IMPORT" > /dev/null && break; done
  [ -n "$IMPORT" ] || die "neither gantry nor docker is installed; use --import or --keep"
fi
[ "$(id -u)" = 0 ] || die "must run as root"

TMP=$(mktemp -d "${TMPDIR:-/var/tmp}/bases-XXXXXX")
trap 'rm -rf --one-file-system "$TMP"' EXIT
OUT=${KEEP:-$TMP}
mkdir -p "$OUT"

# The Debian mirror that this machine uses already.
mirror() {
  local release all
  release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # Without release info, because a fresh machine has not fetched any.
  all=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages')
  all=$(printf '%s\n' "$all" | awk -v release="$release" '$2 == release { print $1; exit }')
  [ -n "$all" ] || die "this machine's apt has no mirror for its release $release"
  printf '%s\n' "$all"
}

# fetch PACKAGE: unpacks it below $TMP/pkg, without installing. Where this machine has no package
# lists yet, they are fetched into the temporary directory.
fetch() {
  mkdir -p "$TMP/debs" "$TMP/pkg"
  if ! (cd "$TMP/debs" && apt-get -qq -o APT::Sandbox::User=root download "$1") 2> "$TMP/apt.err"; then
    local options=(-qq -o Dir::State::Lists="$TMP/lists" -o Dir::Cache="$TMP/cache" -o APT::Sandbox::User=root)
    mkdir -p "$TMP/lists/partial" "$TMP/cache/archives/partial"
    [ -n "$(ls "$TMP/lists" | grep -v partial)" ] || apt-get "${options[@]}" update 2> "$TMP/apt.err" || true
    (cd "$TMP/debs" && apt-get "${options[@]}" download "$1") || { cat "$TMP/apt.err" >&2; die "no package $1"; }
  fi
  dpkg-deb -x "$TMP/debs/$1"_*.deb "$TMP/pkg"
}

make_tiny() {
  local root=$TMP/tiny applet
  fetch busybox-static
  mkdir -p "$root"/{bin,dev,etc,home,proc,root,run,sys,tmp,usr/bin,var/www}
  chmod 1777 "$root/tmp"
  cp "$(ls "$TMP"/pkg/bin/busybox "$TMP"/pkg/usr/bin/busybox 2>/dev/null | head -n 1)" "$root/bin/busybox"
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' > "$root/etc/group"
  pack tiny
}

make_debian() {
  local root=$TMP/debian uri; uri=$(mirror)
  fetch debootstrap
  # In mount and pid namespaces of its own: what it mounts is gone with it, even if it is killed.
  DEBOOTSTRAP_DIR=$TMP/pkg/usr/share/debootstrap unshare --mount --pid --fork --kill-child \
    sh -c 'exec "$0" "$@"' "$TMP/pkg/usr/sbin/debootstrap" --variant=minbase --include=ca-certificates \
    "$SUITE" "$root" "$uri" > "$TMP/debootstrap.log" 2>&1 ||
    { tail -n 20 "$TMP/debootstrap.log" >&2; die "debootstrap failed"; }
  # As in images generally: no package lists, no archives; documentation stays out of later installs.
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/dev/* "$root"/etc/resolv.conf
  rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
  printf '%s\n' 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' \
    'path-exclude=/usr/share/locale/*' > "$root/etc/dpkg/dpkg.cfg.d/slim"
  printf 'force-unsafe-io\n' > "$root/etc/dpkg/dpkg.cfg.d/no-sync"
  printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" # no service starts at its installation
  chmod 755 "$root/usr/sbin/policy-rc.d"
  printf 'Apt::Install-Recommends "false";\nAPT::Sandbox::User "root";\n' > "$root/etc/apt/apt.conf.d/90image"
  printf 'deb %s %s main\n' "$uri" "$SUITE" > "$root/etc/apt/sources.list"
  pack debian
}

# pack NAME: the same tree gives the same archive.
pack() {
  tar -C "$TMP/$1" --numeric-owner --sort=name --xattrs -cf "$OUT/$1.tar.part" .
  mv "$OUT/$1.tar.part" "$OUT/$1.tar"
}

for name in $NAMES; do
  case $name in tiny | debian) ;; *) die "no base is called $name" ;; esac
  start=$SECONDS
  if [ -s "$OUT/$name.tar" ]; then
    say "local/$name: have $OUT/$name.tar"
  else
    "make_$name"
    say "local/$name: made from Debian's packages in $((SECONDS - start)) s, $(du -h "$OUT/$name.tar" | cut -f1)"
  fi
  [ -n "$IMPORT" ] || continue
  # shellcheck disable=SC2086 # the command may have arguments
  $IMPORT import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'CMD ["/bin/sh"]' --message "made by make-bases.sh from Debian's packages" \
    "$OUT/$name.tar" "local/$name:latest" > /dev/null
  say "local/$name: imported"
done
