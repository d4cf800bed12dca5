#!/bin/sh
# dpkg -P also removes the secrets, which belong to no package. rpm has no purge: they stay.
set -eu
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
if [ "${1-}" = purge ]; then
  rm -rf /etc/purchase-relay
fi
