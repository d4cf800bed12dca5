#!/bin/sh
# dpkg passes remove, rpm the number of versions that stay: an upgrade stops nothing.
set -eu
case "${1-}" in
remove | 0)
  if [ -d /run/systemd/system ]; then
    systemctl disable --now purchase-relay-ingest.service purchase-relay-worker.service \
      purchase-relay-provision.service
  fi
  ;;
esac
