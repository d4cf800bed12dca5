#!/bin/sh
# One user for each unit, before the files that belong to its group.
set -eu
for unit in ingest worker provision; do
  user=purchase-relay-$unit
  getent passwd "$user" >/dev/null ||
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
done
