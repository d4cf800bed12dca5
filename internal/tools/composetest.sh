#!/usr/bin/env bash
# Rehearses docker-compose.yml: brings the stack up under a project name and ports of its own, sends
# purchases, scales the workers, kills containers, restarts NATS and Postgres, upgrades during traffic, takes
# everything down and up again, prunes, and counts. Needs a container engine with Compose, curl and jq;
# without an engine it is skipped.
#
#   composetest.sh [-cluster] [-keep]
#     -cluster   with three NATS servers (deploy/compose.cluster.yml)
#     -keep      leave the stack as it is after a failure
set -euo pipefail
cd "$(dirname "$0")/../.."

project=purchase-relay-test
files=(-f docker-compose.yml)
last_nats=nats
keep=
for argument in "$@"; do
  case $argument in
  -cluster)
    files+=(-f deploy/compose.cluster.yml)
    last_nats=nats-3
    ;;
  -keep) keep=yes ;;
  *)
    echo "usage: composetest.sh [-cluster] [-keep]" >&2
    exit 2
    ;;
  esac
done

# Only the variables of the engine's client come in: no setting of the caller's stack, no real TikTok token.
passed='^(PATH|HOME|TMPDIR|DOCKER_.*|BUILDKIT_.*|COMPOSE_DOCKER_CLI_BUILD|XDG_.*|SSH_AUTH_SOCK|SSL_CERT_.*'
passed+='|HTTPS?_PROXY|NO_PROXY)$'
for name in $(compgen -e); do
  [[ $name =~ $passed ]] || unset "$name"
done

skip() {
  echo "compose-test is skipped: $1"
  exit 0
}
command -v docker >/dev/null || skip "there is no docker on this machine"
docker compose version >/dev/null 2>&1 || skip "docker has no Compose plugin here"
docker info >/dev/null 2>&1 || skip "no container engine answers"

fail() {
  echo "compose-test: $1" >&2
  exit 1
}
for tool in curl jq; do
  command -v $tool >/dev/null || fail "$tool is required"
done

free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}
export ADMIN_TOKEN=rehearsal-0123456789 SWEEP_GRACE=40s SWEEP_INTERVAL=2s
INGEST_PORT=$(free_port)
ADMIN_PORT=$(free_port)
SIMULATOR_PORT=$(free_port)
export INGEST_PORT ADMIN_PORT SIMULATOR_PORT

log=$(mktemp)
sender_log=$(mktemp)
sold=0

# compose runs a command on the stack, without the .env of the checkout.
compose() {
  docker compose --env-file /dev/null -p $project "${files[@]}" "$@"
}

# quietly prints a command's output only if the command fails.
quietly() {
  "$@" >"$log" 2>&1 </dev/null || {
    tail -n 30 "$log" >&2
    fail "$* failed"
  }
}

# finish shows the containers after a failure and removes everything.
finish() {
  local status=$?
  trap - EXIT INT TERM
  if ((status != 0)) && [ -n "$keep" ]; then
    echo "the stack is left: docker compose -p $project down -v" >&2
  elif ((status != 0)); then
    compose ps -a || true
    compose logs --no-color --tail 20 || true
    compose down -v --remove-orphans --rmi local >/dev/null 2>&1 || true
  fi
  rm -f "$log" "$sender_log"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# step runs a function and prints its duration, and the result that it left in $result.
step() {
  local name=$1 start=$SECONDS
  result=
  "${@:2}"
  printf '%5d s  %-46s %s\n' $((SECONDS - start)) "$name" "$result"
}

# await repeats a check until it succeeds.
await() {
  local what=$1 deadline=$((SECONDS + 180))
  until "${@:2}" >"$log" 2>&1; do
    ((SECONDS < deadline)) || fail "timed out waiting for $what: $(get "$ADMIN_PORT" /api/v1/summary 2>&1)"
    sleep 0.5
  done
}

# get fetches a path of a published port.
get() {
  curl -fsS --max-time 10 -H @- "http://127.0.0.1:$1$2" <<<"Authorization: Bearer $ADMIN_TOKEN"
}

# delivered reports whether the ledger holds the purchases that were sent, no others, and all are delivered.
delivered() {
  get "$ADMIN_PORT" /api/v1/summary |
    jq -e --argjson n "$sold" '.purchases | .delivered == $n and add == $n'
}

# workers_run reports whether at least so many workers run, all of this version.
workers_run() {
  get "$ADMIN_PORT" /api/v1/summary | jq -e --argjson n "$1" --arg version "$VERSION" \
    '.health.workers | ([.[] | select(.state == "running")] | length) >= $n and all(.version == $version)'
}

# settle waits until everything is delivered and compares the dashboard's figure.
settle() {
  await "$sold purchases, all delivered" delivered
  local shown
  get "$ADMIN_PORT" "/?mode=all" >"$log"
  shown=$(grep -om1 'data-figure="paid">[0-9,. ]*<' "$log" | tr -dc 0-9)
  [ "$shown" = "$sold" ] || fail "the dashboard shows '$shown' paid purchases, $sold were sent"
  result="$sold on the dashboard, all delivered"
}

# left lists everything that the project has on the engine.
left() {
  local ours="label=com.docker.compose.project=$project"
  docker ps -aq --filter "$ours"
  docker volume ls -q --filter "$ours"
  docker network ls -q --filter "$ours"
}

remove() {
  quietly compose down -v --remove-orphans "$@"
  result=$(left)
  [ -z "$result" ] || fail "down -v left $result"
}

reject_published_secrets() {
  local output
  if output=$(TIKTOK_ACCESS_TOKEN=not-a-real-one compose config --quiet 2>&1); then
    fail "a real token was accepted with published secrets"
  fi
  [[ $output == *STRIPE_WEBHOOK_SECRET* ]] || fail "the error does not name STRIPE_WEBHOOK_SECRET: $output"
}

up() {
  quietly compose up -d --wait "$@"
  await "a worker" workers_run 1
}

inspect_images() {
  local binary image size user version id content
  for binary in ingest tiktok-worker; do
    image=$project-$binary
    read -r size user version < <(docker image inspect "$image" \
      -f '{{.Size}} {{.Config.User}} {{index .Config.Labels "org.opencontainers.image.version"}}')
    ((size <= 25000000)) || fail "$image has $size bytes"
    [ "$user $version" = "65532:65532 rehearsal" ] || fail "$image: user $user, version $version"
    id=$(docker create "$image")
    # All files, except those that the engine puts into every container.
    content=$(docker export "$id" | tar -t | grep -v '/$' | LC_ALL=C sort |
      grep -vxE '\.dockerenv|dev/console|etc/(hostname|hosts|resolv\.conf|mtab)' | xargs)
    docker rm "$id" >/dev/null
    [ "$content" = "LICENCES etc/ssl/certs/ca-certificates.crt $binary zoneinfo.zip" ] ||
      fail "$image holds $content"
    version=$(docker run --rm --network none "$image" --version)
    [[ $version == "$binary rehearsal ("* ]] || fail "$binary --version prints $version"
    result+="$binary $((size / 1000000)) MB  "
  done
}

# send sends purchases from inside the stack.
send() {
  compose exec -T tiktok-simulator /stripegen -n "$@"
}

buy() {
  quietly send "$1"
  sold=$((sold + $1))
  settle
}

scale() {
  quietly compose up -d --wait --no-recreate --scale tiktok-worker=3
  await "three workers" workers_run 3
}

# during runs a function while so many purchases arrive, and waits for their delivery.
during() {
  local sender
  send "$1" -rate 15 -retry 30 -concurrency 32 >"$sender_log" 2>&1 </dev/null &
  sender=$!
  "${@:2}"
  wait $sender || fail "the sender failed: $(tail -n 5 "$sender_log")"
  sold=$((sold + $1))
  settle
}

# disturb breaks one container after another.
disturb() {
  local workers
  workers=$(compose ps -q tiktok-worker)
  [ "$(wc -l <<<"$workers")" -eq 3 ] || fail "three workers should run: $workers"
  quietly docker kill "${workers%%$'\n'*}" # the others take over its messages
  scale
  for service in tiktok-worker ingest nats; do
    quietly compose kill -s KILL "$service"
    scale
  done
  quietly compose restart $last_nats
  quietly compose restart postgres
  scale
}

# compare_events compares the purchases with TikTok's.
compare_events() {
  local events repeats
  events=$(get "$SIMULATOR_PORT" /events)
  jq -e --argjson n "$sold" 'length == $n and all(.variants == 1)' <<<"$events" >"$log" ||
    fail "TikTok has $(jq length <<<"$events") events for $sold purchases, or one of them in two bodies"
  repeats=$(jq 'map(.copies - 1) | add' <<<"$events")
  result="none of $sold lost, none doubled; $repeats repeated under their own event_id"
}

# build makes the images of a version, one after the other: at the same time, the classic builder would
# compile everything for each.
build() {
  export VERSION=$1
  COMPOSE_PARALLEL_LIMIT=1 quietly compose build
}

upgrade() {
  quietly compose up -d --wait --no-build --scale tiktok-worker=3
  await "three new workers" workers_run 3
}

# prune_old makes one purchase old and waits until the schedule has deleted it.
prune_old() {
  local old="now() - interval '91 days'"
  quietly compose exec -T postgres psql -qU purchase_relay -v ON_ERROR_STOP=1 -c "
    WITH one AS (
      UPDATE purchases SET purchased_at = $old, finished_at = $old
      WHERE checkout_session_id = (SELECT min(checkout_session_id) FROM purchases)
      RETURNING checkout_session_id)
    UPDATE stripe_events SET received_at = $old
    WHERE checkout_session_id IN (SELECT checkout_session_id FROM one)"
  export COMPOSE_PROFILES=prune
  quietly compose up -d --wait --build
  sold=$((sold - 1))
  settle
}

down_and_up() {
  quietly compose down
  up --no-build
  settle
}

step "remove the rest of another rehearsal" remove
step "a real token with published secrets is rejected" reject_published_secrets
step "docker compose build" build rehearsal
step "docker compose up --build --wait" up --build
step "images: size, content, user" inspect_images
step "one purchase" buy 1
step "up --scale tiktok-worker=3" scale
step "300 purchases for three workers" buy 300
step "kill workers, ingest, NATS; restart Postgres" during 600 disturb
step "TikTok's events" compare_events
step "docker compose build, another version" build rehearsal-2
step "upgrade during traffic" during 300 upgrade
step "TikTok's events" compare_events
step "down, and up again: the data remain" down_and_up
step "5 purchases after that" buy 5
step "a pruned purchase" prune_old
step "down -v leaves nothing" remove --rmi local
echo "compose-test passed: $sold purchases, none lost, none doubled, in $SECONDS s"
