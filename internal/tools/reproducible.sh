#!/bin/sh
# Builds the release of the current commit in two clones, the second without Go's build cache, and compares
# every checksum. Arguments: the commands that make it, in a clone.
set -eu
unset GITHUB_ACTIONS # nothing is published from here
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
for clone in first second; do
  git clone -q . "$dir/$clone"
  if [ "$clone" = second ]; then
    export GOCACHE="$dir/cache"
  fi
  (cd "$dir/$clone" && "$@")
done
diff "$dir/first/dist/checksums.txt" "$dir/second/dist/checksums.txt"
echo "reproducible: $(wc -l <"$dir/first/dist/checksums.txt") files are the same in both builds"
