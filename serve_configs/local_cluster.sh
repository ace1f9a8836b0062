#!/usr/bin/env bash
# A Ray cluster of three nodes on this machine: a head (role=head) and two edge nodes (edge=box-a, edge=box-b), with a
# token of its own, at free ports, reachable from this machine alone. It ends its own processes and no others'.
#
#   eval "$(serve_configs/local_cluster.sh start)"      # the cluster is up, and Ray's commands find it
#   serve deploy serve_configs/fleet.yaml               # after a look at `store` and `nodes` in there
#   serve_configs/local_cluster.sh stop
#
# GEMEL_CLUSTER is the folder of one cluster (default /tmp/gemel-cluster; keep it short, sockets lie in it).
set -euo pipefail
folder=${GEMEL_CLUSTER:-/tmp/gemel-cluster}
patience_s=240

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in held))
PYTHON
}

# start_node NAME: one node in a process group of its own, whose leader ends its node with itself.
start_node() {
    local name=$1 ports
    if [ "$name" = head ]; then
        set -- "${head[@]}"
    else
        set -- --address "$RAY_ADDRESS" --labels "edge=$name"
    fi
    read -r -a ports <<<"$(free_ports 5)"
    setsid ray start --block --disable-usage-stats --node-ip-address 127.0.0.1 --num-cpus 1 \
        --memory 2000000000 --object-store-memory 100000000 --min-worker-port 0 --max-worker-port 0 \
        --node-manager-port "${ports[0]}" --object-manager-port "${ports[1]}" --metrics-export-port "${ports[2]}" \
        --dashboard-agent-listen-port "${ports[3]}" --runtime-env-agent-port "${ports[4]}" "$@" \
        >"$folder/$name.log" 2>&1 </dev/null &
    echo $! >"$folder/$name.pid"
}

alive_nodes() {
    python3 -c 'import ray; ray.init(logging_level="ERROR", log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))' \
        2>/dev/null || echo 0
}

start() {
    if compgen -G "$folder/*.pid" >/dev/null; then
        echo "a cluster is in $folder already; $0 stop, or set GEMEL_CLUSTER to another folder" >&2
        exit 2
    fi
    mkdir -p "$folder/ray"
    (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token")
    local ports
    read -r -a ports <<<"$(free_ports 3)"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
    export RAY_ADDRESS=127.0.0.1:${ports[0]} RAY_API_SERVER_ADDRESS=http://127.0.0.1:${ports[1]}
    head=(--head --port "${ports[0]}" --include-dashboard true --dashboard-host 127.0.0.1
        --dashboard-port "${ports[1]}" --ray-client-server-port "${ports[2]}" --temp-dir "$folder/ray" --labels role=head)
    join 1 head
    join 3 box-a box-b
    printf 'export %s\n' "RAY_ADDRESS=$RAY_ADDRESS" "RAY_API_SERVER_ADDRESS=$RAY_API_SERVER_ADDRESS" \
        "RAY_DASHBOARD_ADDRESS=$RAY_API_SERVER_ADDRESS" RAY_AUTH_MODE=token "RAY_AUTH_TOKEN_PATH=$folder/token"
}

# join COUNT NAME...: start nodes and wait until the cluster has so many. Ray gives a node 30 s to start; on a busy
# machine that may take a second attempt.
join() {
    local count=$1 until_s=$((SECONDS + patience_s)) name leader
    shift
    for name in "$@"; do
        start_node "$name"
    done
    until [ "$(alive_nodes)" -ge "$count" ]; do
        if [ $SECONDS -ge $until_s ]; then
            echo "not $count nodes after $patience_s s; $folder/*.log say more" >&2
            end_nodes
            exit 1
        fi
        for name in "$@"; do
            leader=$(cat "$folder/$name.pid")
            if ! kill -0 "$leader" 2>/dev/null; then
                kill -KILL -- "-$leader" 2>/dev/null || true
                start_node "$name"
            fi
        done
    done
}

# Edge nodes first, so that nobody mourns a head.
end_nodes() {
    local name pid
    for name in box-b box-a head; do
        [ -f "$folder/$name.pid" ] || continue
        pid=$(cat "$folder/$name.pid")
        kill -TERM "$pid" 2>/dev/null || true
        for _ in $(seq 150); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        # What its leader left behind is in its group.
        while group_lives "$pid"; do
            kill -KILL -- "-$pid" 2>/dev/null || true
            sleep 0.1
        done
        rm -f "$folder/$name.pid"
    done
}

# The dead whom nobody has asked for their exit status do not count.
group_lives() {
    ps -eo pgid=,stat= | awk -v group="$1" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'
}

stop() {
    end_nodes
    rm -rf "$folder"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
