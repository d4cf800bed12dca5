#!/bin/sh
# Builds the release of the current commit in two clones, the second without Go's build cache, and compares
# every checksum. goreleaser itself, the argument, is built once.
set -eu
unset GITHUB_ACTIONS # nothing is published from here
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
GOBIN=$dir go install "$1"
for clone in first second; do
  git clone -q . "$dir/$clone"
  if [ "$clone" = second ]; then
    export GOCACHE="$dir/cache"
  fi
  make -C "$dir/$clone" release goreleaser="$dir/goreleaser"
done
diff "$dir/first/dist/checksums.txt" "$dir/second/dist/checksums.txt"
echo "reproducible: $(wc -l <"$dir/first/dist/checksums.txt") files are the same in both builds"
