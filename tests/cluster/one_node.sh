#!/bin/bash
# A SLURM of one node on this machine: `one_node.sh FOLDER`, as any user, without systemd, cgroups or a database.
# It says `ready` when FOLDER/slurm.conf can be used as SLURM_CONF, and ends when its standard input does.
# Needs munge and slurm-wlm (apt-get install munge slurm-wlm).
set -eu
exec 3<&0
mkdir -p "$1/state" "$1/spool"
cd "$1"
here=$(pwd) user=$(id -un) name=$(hostname -s)
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

cat > slurm.conf <<CONF
ClusterName=tests
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=$user
SlurmdUser=$user
AuthInfo=socket=$here/munge.socket
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# a test should not wait for what spares a cluster's controller
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
NodeName=$name NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$here/slurm.conf"

stop() {
    trap - EXIT
    scancel --user "$user" || true
    for _ in $(seq 120); do [ -n "$(squeue -h)" ] || break; sleep 0.25; done
    kill $(jobs -p) 2> /dev/null || true
    wait
}
trap stop EXIT
trap exit TERM INT

(umask 077 && head -c 1024 /dev/urandom > munge.key)
munged --foreground --force --key-file=munge.key --socket=munge.socket --seed-file=munge.seed \
    --pid-file=munge.pid --log-file=munge.log > munged.out 2>&1 < /dev/null &
until [ -S munge.socket ]; do sleep 0.1; done
slurmctld -D -i > slurmctld.out 2>&1 < /dev/null &
slurmd -D > slurmd.out 2>&1 < /dev/null &
for _ in $(seq 120); do
    [ "$(sinfo -h -o %T 2> /dev/null)" = idle ] && break
    sleep 0.25
done
[ "$(sinfo -h -o %T)" = idle ] || { tail -n 20 ./*.log ./*.out >&2; exit 1; }
echo ready
cat <&3 > /dev/null &  # in the background, so that a signal is heeded at once
wait $!
