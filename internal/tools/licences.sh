#!/bin/sh
# The licences of what is linked into the two binaries, by go-licenses.
#
#   licences.sh check        refuses a module whose licence asks for more than its own text
#   licences.sh texts FILE   writes the texts that images and archives carry, NOTICE files included
set -eu
tool=github.com/google/go-licenses@v1.6.0
export CGO_ENABLED=0
case "${1-}" in
check)
  go run "$tool" check --ignore purchase-relay \
    --allowed_licenses=MIT,BSD-2-Clause,BSD-3-Clause,Apache-2.0,ISC ./cmd/...
  ;;
texts)
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  go run "$tool" save --ignore purchase-relay --save_path "$dir/texts" ./cmd/...
  mkdir -p "$(dirname "$2")"
  (cd "$dir/texts" && find . -type f | LC_ALL=C sort | while read -r f; do
    printf '%s\n\n' "${f#./}"
    cat "$f"
    printf '\n\n'
  done) >"$2"
  ;;
*)
  echo "usage: licences.sh check | texts FILE" >&2
  exit 2
  ;;
esac
