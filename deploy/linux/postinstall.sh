#!/bin/sh
# Starts and restarts nothing: the schema is migrated first, see upgrading.md.
set -eu
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
