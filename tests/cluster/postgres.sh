#!/usr/bin/env bash
# An empty PostgreSQL database of one's own, of Debian's package:
#   postgres.sh start DIR   prints its URI; everything lies in DIR/postgres
#   postgres.sh stop DIR
# PostgreSQL refuses root, who therefore starts it as the user postgres; that user must be able to enter DIR.
set -euo pipefail

bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
[ -x "$bin/initdb" ] || { echo "no PostgreSQL below /usr/lib/postgresql" >&2; exit 1; }
data=$2/postgres

as_user() {
    cd /
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

case $1 in
start)
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    mkdir -p "$data"
    if [ "$(id -u)" = 0 ]; then chown postgres "$data"; fi
    as_user "$bin/initdb" -D "$data" -U mlflow --auth=trust --encoding=UTF8 --no-sync >"$2/initdb.log"
    as_user "$bin/pg_ctl" -D "$data" -l "$data/log" -w -o "-h 127.0.0.1 -p $port -c unix_socket_directories= -F" start >&2
    as_user "$bin/createdb" -h 127.0.0.1 -p "$port" -U mlflow mlflow
    echo "postgresql://mlflow@127.0.0.1:$port/mlflow"
    ;;
stop)
    as_user "$bin/pg_ctl" -D "$data" -m immediate -w stop >&2
    ;;
esac
