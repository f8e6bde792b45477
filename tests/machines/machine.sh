#!/usr/bin/env bash
# Runs a command as the first process of a machine, inside namespaces of its own (see machines.py):
#
#   machine.sh NAME FOLDER KEPT... -- COMMAND...
#
# The machine gets its own /tmp, /dev/shm and /home, in memory, and Debian's /etc/hosts, in which its own name is
# 127.0.1.1. The kept folders stay visible. All of it disappears with the machine.
set -euo pipefail

name=$1 folder=$2
shift 2
kept=()
while [ "$1" != -- ]; do
  kept+=("$1")
  shift
done
shift

hostname "$name"
mount --make-rprivate /
covered=(/tmp /home)
for place in "${covered[@]}"; do
  mkdir -p "$folder$place"
  mount -t tmpfs -o size=4g none "$folder$place"
  for path in "${kept[@]}"; do
    if [[ $path == "$place"/* ]]; then
      mkdir -p "$folder$path"
      mount --bind "$path" "$folder$path"
    fi
  done
done
cd "$folder"
for place in "${covered[@]}"; do
  mount --move ".$place" "$place"
done
cd /
chmod 1777 /tmp
mount -t tmpfs -o size=2g none /dev/shm
mkdir -p "$HOME"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > "$HOME/hosts"
mount --bind "$HOME/hosts" /etc/hosts
ulimit -n "$(ulimit -Hn)"

# Not exec: as on a machine with an init, the first process must collect the processes that have lost their parent.
"$@"
