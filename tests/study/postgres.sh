#!/bin/sh
# Starts a PostgreSQL in a temporary folder, on the loopback alone, and runs a command with POSTGRES_URL set.
set -eu
binaries() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }
if [ -z "$(binaries)" ]; then
    if [ "$(id -u)" -eq 0 ]; then apt-get update -q && apt-get install -q -y postgresql
    else sudo apt-get update -q && sudo apt-get install -q -y postgresql; fi
fi
bin=$(binaries)
folder=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# The server refuses to run as root; the package brings a user for it.
as() { if [ "$(id -u)" -eq 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
[ "$(id -u)" -ne 0 ] || chown postgres "$folder"
stop() { as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$folder"; }
trap stop EXIT INT TERM
cd "$folder"
as "$bin/initdb" -D "$folder/data" -U tests --auth=trust >/dev/null
as "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w \
    -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories='$folder' -c fsync=off" start >/dev/null
cd "$OLDPWD"
POSTGRES_URL="postgresql://tests@127.0.0.1:$port/postgres" "$@"
