#!/usr/bin/env bash
# The demo: a trading system is halted and resumed, on a cluster of its own.
#
#   demo.sh
#
# Everything that it shows is read from the cluster and the venue while it happens. It
# leaves the cluster up; `make demo-down` removes it, and another run starts afresh.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cluster=$checkout/e2e/cluster/cluster.sh
home=$checkout/.work/demo # of the cluster `demo`: kubeconfig, kubectl, helm
logs=$checkout/.work/logs/demo
images=(localhost/standfast:dev localhost/standfast-paper-venue:dev localhost/standfast-demo-bot:dev)
namespace=trading-demo

# --- Talking --------------------------------------------------------------------

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
tell() { printf '%s\n' "$*"; }
indent() { sed 's/^/    /'; }

# Shows a command, runs it and shows its output. (Helm says of every file of a chart
# that is a link that it is one.)
run() {
  printf '%s$ %s%s\n' "$bold" "$*" "$plain"
  "$@" 2>&1 | sed '/found symbolic link in path/d' | indent
}

show_file() {
  printf '%s$ cat %s%s\n' "$bold" "$1" "$plain"
  indent <"$1"
}

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); } # the comma of some locales: LC_ALL is set below
at_ms() { date -d "$1" +%s%3N; }                   # TIMESTAMP of the API
seconds() { printf '%s%d.%03d' "$([ "$1" -ge 0 ] || echo -)" $((${1#-} / 1000)) $((${1#-} % 1000)); }

# --- Looking --------------------------------------------------------------------

value() { # KIND/NAME JSONPATH
  kubectl --namespace "$namespace" get "$1" --output "jsonpath={$2}"
}

# The venue's own view of the account. It has no part in Standfast; the API server
# passes the request on to its service.
account() { kubectl get --raw "/api/v1/namespaces/$namespace/services/paper-venue:8080/proxy/_control/accounts/demo-key"; }
bot() { kubectl get --raw "/api/v1/namespaces/$namespace/services/trading-bot:8080/proxy/status/trading"; }

# "9 open orders, 3 positions", from the venue.
holdings() {
  local json orders
  json=$(account) || return
  orders=$(grep -o '"client_order_id"' <<<"$json" | wc -l)
  echo "$orders open orders, $(grep -o '"avg_entry_price"' <<<"$json" | wc -l) positions"
}

trades() { [[ $(holdings 2>/dev/null) =~ ^([0-9]+)' open orders, '([0-9]+) ]] && ((BASH_REMATCH[1] >= $1 && BASH_REMATCH[2] >= $2)); }

wait_until() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    if [ "$SECONDS" -ge "$end" ]; then
      tell "$what: it did not happen in time" >&2
      return 1
    fi
    sleep 0.3
  done
}

# --- What happens, while it happens ---------------------------------------------

watchers=()
seen=$home/seen # what has been shown since begin_watching

# Shows the lines of its input with the seconds since $started.
watch_stream() { # NAME
  local line
  while IFS= read -r line; do
    printf '%8s s  %-8s %s\n' "$(seconds $(($(now_ms) - started)))" "$1" "$line"
  done | tee -a "$seen"
}

was_shown() { grep -Eq "$1" "$seen"; } # PATTERN

# Only lines that differ from the one before.
changes() {
  local line last=
  while IFS= read -r line; do
    [ "$line" = "$last" ] || printf '%s\n' "$line"
    last=$line
  done
}

watch_objects() { # RESOURCE COLUMNS
  kubectl --namespace "$namespace" get "$1" --watch --no-headers --output "custom-columns=$2" 2>/dev/null
}

watch_halts() {
  watch_objects tradinghalts PHASE:.status.phase,ORDERS:.status.openOrders,PODS:.status.runningPods |
    while read -r phase orders pods; do
      case $phase in
        \<none\>) echo created ;;
        *) echo "$phase; open orders: ${orders/<none>/not read yet}, trading pods: ${pods/<none>/not read yet}" ;;
      esac
    done | changes | watch_stream halt
}

watch_resumes() {
  watch_objects tradingresumes PHASE:.status.phase,STEP:.status.currentStep |
    while read -r phase step; do
      case $phase/$step in
        \<none\>/*) echo created ;;
        */\<none\>) echo "$phase" ;;
        *) echo "$phase: $step" ;;
      esac
    done | changes | watch_stream resume
}

watch_pods() {
  kubectl --namespace "$namespace" get pods --selector app=trading-bot --watch --output-watch-events --no-headers \
    --output 'custom-columns=EVENT:.type,NAME:.object.metadata.name,PHASE:.object.status.phase,READY:.object.status.containerStatuses[0].ready,GOES:.object.metadata.deletionTimestamp' \
    2>/dev/null |
    while read -r event name phase ready goes; do
      case $event/$goes in
        DELETED/*) echo "$name is gone" ;;
        */\<none\>) echo "$name $phase$([ "$ready" != true ] || echo ', ready')" ;;
        *) echo "$name is told to stop" ;;
      esac
    done | changes | watch_stream pod
}

watch_venue() {
  while :; do
    holdings 2>/dev/null || true
    sleep 0.1
  done | changes | watch_stream venue
}

begin_watching() { # WATCHER...
  local watcher
  : >"$seen"
  started=$(now_ms)
  for watcher in "$@"; do
    # A process group of its own, so that all of a pipe ends together.
    set -m
    "$watcher" &
    set +m
    watchers+=($!)
  done
}

end_watching() {
  local watcher
  for watcher in "${watchers[@]}"; do
    kill -- "-$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
  done
  watchers=()
}

# --- The steps ------------------------------------------------------------------

cluster_and_images() {
  title "Images, and a Kubernetes cluster of the demo's own"
  make -C "$checkout" images
  "$cluster" up demo
  "$cluster" load demo "${images[@]}"
  PATH=$home:$PATH
  run kubectl get nodes
}

install() {
  title "Standfast is installed with Helm"
  run helm upgrade --install standfast-crds charts/standfast-crds --namespace standfast-system --create-namespace --hide-notes
  run helm upgrade --install standfast charts/standfast --namespace standfast-system --hide-notes --wait --timeout 5m
  run kubectl --namespace standfast-system rollout status deployment/standfast --timeout=5m
  run kubectl --namespace standfast-system get pods
}

trade() {
  title "A trading system: a paper venue, a bot that trades on it, and a TradingSystem that describes them"
  run kubectl apply -f examples/demo/namespace.yaml -f examples/demo/workloads.yaml -f examples/demo/system.yaml
  run kubectl --namespace "$namespace" wait deployment --all --for=condition=Available --timeout=5m
  wait_until 180 "the bot holds positions and has resting orders" trades 6 3
  tell "The bot trades. The venue says: $(holdings). The bot says:"
  tell "    $(bot)"
  tell
  tell "Would an emergency halt work now?"
  run kubectl --namespace "$namespace" wait tradingsystem/demo --for=condition=Prepared --timeout=3m
  run kubectl --namespace "$namespace" get tradingsystem demo
}

halt() {
  title "The halt: five lines"
  show_file examples/demo/halt.yaml
  tell
  tell "What happens, in seconds from the start of kubectl:"
  begin_watching watch_pods watch_venue watch_halts
  kubectl apply -f examples/demo/halt.yaml >/dev/null
  kubectl --namespace "$namespace" wait tradinghalt/stop-now --for=condition=Halted --timeout=5m >/dev/null
  wait_until 30 "the watch shows the halt" was_shown 'halt +Halted'
  end_watching
  halt_started=$started
  tell
  run kubectl --namespace "$namespace" get tradinghalts
  tell "The venue says: $(holdings). Positions are kept unless a halt asks for more."
}

tamper() {
  local answer
  title "Somebody scales the bot up behind Standfast's back"
  printf '%s$ %s%s\n' "$bold" "kubectl --namespace $namespace scale deployment trading-bot --replicas=1" "$plain"
  if answer=$(kubectl --namespace "$namespace" scale deployment trading-bot --replicas=1 2>&1); then
    tell "$answer: that should have been refused" >&2
    return 1
  fi
  indent <<<"$answer"
  if [[ $answer != *"halted by Standfast"* ]]; then
    tell "that is not what the latch says" >&2
    return 1
  fi
  tell "It was refused by the API server; Standfast itself need not even run."
}

resume() {
  title "Trading is resumed"
  show_file examples/demo/resume.yaml
  tell
  tell "What happens, in seconds from the start of kubectl:"
  begin_watching watch_pods watch_venue watch_resumes
  kubectl apply -f examples/demo/resume.yaml >/dev/null
  kubectl --namespace "$namespace" wait tradingresume/go-on --for=condition=Completed --timeout=5m >/dev/null
  wait_until 120 "the bot has resting orders again" was_shown 'venue +[1-9][0-9]* open'
  end_watching
  tell
  run kubectl --namespace "$namespace" get tradinghalts,tradingresumes,tradingsystems
  tell "The bot trades again. The venue says: $(holdings). The bot says:"
  tell "    $(bot)"
}

row() { printf '    %-46s %9s s\n' "$1" "$(seconds "$2")"; } # WHAT MILLISECONDS

halt_row() { # WHAT FIELD
  local at
  at=$(value tradinghalt/stop-now ".status.times.$2")
  [ -z "$at" ] || row "$1" $(($(at_ms "$at") - committed))
}

step_rows() { # of the resume, in the order in which they ended
  local name state at
  kubectl --namespace "$namespace" get tradingresume go-on --output \
    'jsonpath={range .status.steps[*]}{.name} {.state} {.finishedAt}{"\n"}{end}' |
    while read -r name state at; do
      [ -z "$at" ] || [ "$state" = Skipped ] || row "$name" $(($(at_ms "$at") - resume_started))
    done
}

table() {
  local committed resume_started
  committed=$(at_ms "$(value tradinghalt/stop-now .status.times.committedAt)")
  resume_started=$(at_ms "$(value tradingresume/go-on .status.startedAt)")
  title "Measured, from the statuses"
  tell "The halt was requested at $(value tradinghalt/stop-now .status.times.requestedAt) (the API server counts whole"
  tell "seconds) and committed $(seconds $((committed - halt_started))) s after kubectl was started. After that:"
  halt_row "first cancel handed to the network" firstCancelSentAt
  halt_row "every trading workload scaled to zero" scaledAt
  halt_row "a scale-up was refused: the latch holds" latchedAt
  halt_row "the last trading pod was gone" podsGoneAt
  halt_row "zero open orders, proven" zeroOrdersAt
  halt_row "halted, everything proven" haltedAt
  tell "The resume was first seen $(seconds $((resume_started - started))) s after kubectl was started. After that, each step's end:"
  step_rows
  row "completed" $(($(at_ms "$(value tradingresume/go-on .status.finishedAt)") - resume_started))
}

goodbye() {
  title "The cluster stays up"
  tell "Look around with any kubectl:  kubectl --kubeconfig ${home#"$PWD/"}/kubeconfig --namespace $namespace get tradinghalts,tradingresumes,tradingsystems"
  tell "or with the one built here:    ${home#"$PWD/"}/kubectl --namespace $namespace describe tradinghalt stop-now"
  tell "Run the demo once more:        make demo"
  tell "Remove everything:             make demo-down"
}

# What to look at when the demo fails.
on_exit() {
  local status=$?
  end_watching
  [ "$status" -ne 0 ] && [ -e "$home/kubeconfig" ] || exit "$status"
  mkdir -p "$logs"
  {
    "$home/kubectl" --namespace "$namespace" get tradingsystems,tradinghalts,tradingresumes --output yaml
    "$home/kubectl" --namespace "$namespace" get deployments,pods,configmaps,events --output wide
    "$home/kubectl" --namespace standfast-system get all --output wide
  } >"$logs/objects.txt" 2>&1 || true
  "$home/kubectl" --namespace standfast-system logs --selector app.kubernetes.io/name=standfast --tail=-1 --prefix \
    >"$logs/operator.log" 2>&1 || true
  tell "The demo failed. Its objects and the operator's log are in $logs; the cluster is still up." >&2
  exit "$status"
}

export LC_ALL=C.UTF-8
cd "$checkout"
trap on_exit EXIT
cluster_and_images
install
trade
halt
tamper
resume
table
goodbye
