# shellcheck shell=bash
# What the acts share: the shop, its containers, a customer who waits at the till, and waiting.
set -euo pipefail
cd "$LOCKSTEP_DEMO/.."
name=$(basename "$0")
scratch=$(mktemp -d)

# Compose v2 where it is there, else docker-compose. What was started with an environment file stays as it is with the same one.
if docker compose version >/dev/null 2>&1; then shown_compose='docker compose'; else shown_compose='docker-compose'; fi
compose() { $shown_compose "${env_file[@]}" "$@"; }
runs() { [[ -n $(docker ps -q --filter "label=com.docker.compose.service=$1") ]]; }
env_file=()
if runs jaeger; then env_file=(--env-file demo/compose/observability.env); fi

say() { if [[ -t 1 ]]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n-- %s\n' "$*"; fi; }
fail() { printf '\n%s: DID NOT HOLD: %s\n' "$name" "$*" >&2; exit 1; }
held() { printf '\n%s: held: %s\n' "$name" "$*"; }

# Shows a command about as one would type it, and runs it.
show() {
  case $1 in
    orders_sql) printf '$ psql shop -c "%s"\n' "$2" ;;
    compose) printf '$ %s %s\n' "$shown_compose" "${*:2}" ;;
    offline) printf '$ lockstep %s\n' "${*:2}" ;;
    *) printf '$ %s\n' "$*" ;;
  esac
  "$@" || printf '(exit code %s)\n' "$?"
}

# The same of a command that has to end with this exit code: `expect CODE COMMAND...`.
expect() {
  local code=$1 result=0
  shift
  printf '$ %s\n' "$*"
  "$@" || result=$?
  ((result == 0)) || printf '(exit code %s)\n' "$result"
  ((result == code)) || fail "$* ended with $result, not with $code"
}

# Commands to look around with, and time to do so if `--step` was asked for.
look_around() {
  look_around_with "${@/#/coordinator lockstep }"
}
look_around_with() {
  printf '\nLook around meanwhile:\n'
  printf "  $shown_compose exec %s\n" "$@"
  [[ -z ${ACTS_STEP-} ]] || read -rp 'Enter to go on: '
}

# Containers by service. Asking compose each time would take seconds.
declare -A containers
find_containers() { local service; for service in "${services[@]}" checker load; do containers[$service]=$(compose ps -q "$service"); done; }
container() { echo "${containers[$1]}"; }
inside() { docker exec -i "${containers[$1]}" "${@:2}"; }

lockstep() { inside coordinator lockstep "$@" </dev/null; }
orders_sql() { inside orders-db psql -U shop -d shop -Atc "$1" </dev/null; }
# shellcheck disable=SC2016 # The password is read inside.
payments_sql() { inside payments-db sh -c 'MYSQL_PWD="$(cat /secrets/root-password)" exec mariadb -u root shop -N -e "$1"' sql "$1" </dev/null; }

# The same of one database: how many branches it holds prepared.
prepared_in_orders() { orders_sql "SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'lockstep:%'"; }
# A database that does not answer holds an unknown number, and not 0.
prepared_in_payments() {
  local rows
  rows=$(payments_sql 'XA RECOVER') || return
  grep -c . <<<"$rows" || true
}

# One number of `lockstep status`.
status_of() { lockstep status --json | tr -d ' \n' | sed "s/.*\"$1\":\([0-9]*\).*/\1/"; }
is_status() { [[ $(status_of "$1") == "$2" ]]; }
is_status_at_least() { (($(status_of "$1") >= $2)); }

# wait_until SECONDS WHAT COMMAND...
wait_until() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || fail "waited in vain until $what"
    sleep 0.3
  done
}

is_healthy() { [[ $(docker inspect -f '{{.State.Health.Status}}' "$(container "$1")") == healthy ]]; }

services=(log-db coordinator orders-db payments-db orders payments inventory)

all_healthy() {
  local service
  for service in "${services[@]}"; do is_healthy "$service" || return 1; done
}

# Whatever an act did to them: everyone runs, and is connected.
mend() {
  local service
  for service in "${services[@]}" load; do
    docker unpause "$(container "$service")" >/dev/null 2>&1 || true
    reconnect "$service"
    docker start "$(container "$service")" >/dev/null 2>&1 || true
  done
}

network() { docker inspect -f '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}' "$(container checker)"; }
cut_off() { docker network disconnect "$(network)" "$(container "$1")"; }
reconnect() { docker network connect --alias "$1" "$(network)" "$(container "$1")" >/dev/null 2>&1 || true; }

kill_hard() { docker kill --signal KILL "$(container "$1")" >/dev/null; }
pause() { local service; for service in "$@"; do docker pause "$(container "$service")" >/dev/null; done; }
unpause() { local service; for service in "$@"; do docker unpause "$(container "$service")" >/dev/null; done; }
start() { local service; for service in "$@"; do docker start "$(container "$service")" >/dev/null; done; }

# The checker looks into the three databases, again and again until nothing is wrong or its patience ends.
check_books() { inside checker demo shop check --patience "${1:-60}" </dev/null; }
books_are_right() {
  say 'The checker looks into the three databases:'
  check_books 90 || fail 'the books are wrong'
}

# A customer whose order is prepared in every database, and who waits at the till: `at_till WHO [--gift-cards N]`.
declare -A till customer
at_till() {
  local who=$1 orders=1
  shift
  [[ ${1-} != --gift-cards ]] || orders=$2
  mkfifo "$scratch/$who.in"
  inside checker demo shop buy --hold "$@" <"$scratch/$who.in" >"$scratch/$who" &
  customer[$who]=$!
  exec {fd}>"$scratch/$who.in"
  till[$who]=$fd
  wait_until 30 "$who stands at the till" stands_at_till "$who" "$orders"
}
stands_at_till() { [[ $(grep -c '^prepared ' "$scratch/$1") == "$2" ]]; }
gtrid_of() { awk '/^prepared /{print $3; exit}' "$scratch/$1"; }
order_of() { awk '/^prepared /{print $2; exit}' "$scratch/$1"; }
let_pay() { echo >&"${till[$1]}"; }
leaves() { echo leave >&"${till[$1]}"; }
# Waits until the customer has gone, and says with what.
was_told() {
  wait_until 120 "$1 knows" gone "${customer[$1]}"
  awk '/^(told|learned) /{print $1, $4}' "$scratch/$1" | sort | uniq -c
}
gone() { ! kill -0 "$1"; }

# A health check may have passed some seconds ago: each database is asked now.
all_answer() { all_healthy && lockstep participants ping --exit-code; }

# The act begins: it says what it shows, and the shop is there, and nothing in doubt.
begin() {
  printf '\n=== %s\n' "$name"
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  ! runs coordinator-b || fail 'three coordinators run, and the acts are about one: docker-compose --env-file demo/compose/ha.env down'
  compose up -d >"$scratch/up" 2>&1 || { cat "$scratch/up" >&2; fail 'the shop did not come up'; }
  find_containers
  trap 'mend; rm -rf "$scratch"' EXIT
  mend
  wait_until 120 'everyone is healthy' all_answer
  wait_until 60 'nothing is in doubt' is_status undelivered 0
  wait_until 60 'no orphan is left of an earlier run (docs/runbook/orphan.md)' lockstep orphans scan --exit-code
}

# Without other customers, so that what an act prepares is all there is.
close_shop() { docker stop -t 60 "$(container load)" >/dev/null; }
open_shop() { start load; }
