#!/usr/bin/env bash
# Slurm with two virtual nodes of one core each on this machine, from Debian's packages, for tests: slurm.sh start DIR | stop DIR
# DIR (made if missing) holds its configuration, logs, process ids and `sacct`. To use it:
#   export SLURM_CONF=DIR/slurm.conf PATH=DIR/bin:$PATH
# Needs root. `stop` ends the processes that `start` started, by their ids, and nothing else.
set -euo pipefail

[ $# = 2 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$2"
dir=$(cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf PATH=$dir/bin:$PATH:/usr/sbin

install() {
    local packages=(slurmctld slurmd slurm-client munge)
    dpkg -s "${packages[@]}" > /dev/null 2>&1 && return
    export DEBIAN_FRONTEND=noninteractive
    get() { apt-get install -y -q --no-install-recommends "${packages[@]}"; }
    { get || { apt-get update -q && get; }; } > "$dir/apt.log" 2>&1
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

configure() {
    local name memory
    name=$(hostname)
    memory=4000 # MB per node
    cat > "$SLURM_CONF" << END
ClusterName=lab
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
SlurmctldPort=$(free_port)
StateSaveLocation=$dir/ctld
SlurmdSpoolDir=$dir/d_%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd_%n.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdLogFile=$dir/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$name NodeAddr=127.0.0.1 Port=$(free_port) CPUs=1 RealMemory=$memory State=UNKNOWN
NodeName=n2 NodeHostname=$name NodeAddr=127.0.0.1 Port=$(free_port) CPUs=1 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
    mkdir -p "$dir/bin" "$dir/ctld"
    # Without an accounting database sacct fails, and nobody would learn of a job that was killed.
    cat > "$dir/bin/sacct" << 'END'
#!/bin/sh
echo 'JobID|State|NodeList'
scontrol -o show job | awk '{
    split("", value)
    for (i = 1; i <= NF; i++) { at = index($i, "="); value[substr($i, 1, at - 1)] = substr($i, at + 1) }
    id = value["JobId"]
    if ("ArrayJobId" in value) id = value["ArrayJobId"] "_" (value["ArrayTaskId"] ~ /^[0-9]+$/ ? "" : "[") value["ArrayTaskId"] (value["ArrayTaskId"] ~ /^[0-9]+$/ ? "" : "]")
    if (id != "") print id "|" value["JobState"] "|" value["NodeList"]
}'
END
    chmod +x "$dir/bin/sacct"
}

# munge refuses a socket or a key in a folder that others than its user and root may write to.
start_munge() {
    local folder
    mkdir -p "$dir/munge"
    dd if=/dev/urandom of="$dir/munge/key" bs=1 count=1024 status=none
    chmod 0400 "$dir/munge/key"
    chmod 0711 "$dir/munge"
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
}

start() {
    install
    configure
    start_munge
    slurmctld
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 60); do
        [ "$(sinfo -h -N -t idle -o %N 2> /dev/null | wc -l)" = 2 ] && return
        sleep 0.5
    done
    echo "Slurm's nodes did not come up; see the logs in $dir" >&2
    return 1
}

stop() {
    local file pid
    [ -f "$SLURM_CONF" ] || return 0
    timeout 10 scancel --user="$(id -un)" 2> /dev/null || true # their processes would outlive Slurm's
    for _ in $(seq 20); do
        [ -n "$(timeout 10 squeue -h 2> /dev/null)" ] || break
        sleep 0.5
    done
    for file in "$dir"/slurmd_*.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
        [ -f "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 50); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.1
        done
    done
}

case $1 in
    start) start || { stop; exit 1; } ;;
    stop) stop ;;
    *) exec "$0" ;;
esac
