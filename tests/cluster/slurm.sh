#!/usr/bin/env bash
# The smoke workflow on a Slurm of one node, made here and taken down again: `make cluster`. It needs root, and Debian or Ubuntu for their packages.
#   whole   every rule as a Slurm job, with a GPU asked for; the verdicts equal those of a local run, byte for byte; the HTML report holds the figures
#   faults  the same with a job killed, a job cancelled, and the node lost twice; the engine repairs it
# The log goes to runs/slurm/, the rows to data/results/slurm_jobs.csv and slurm.csv.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${VENV:-.venv}/bin/python
out=runs/slurm
tool() { "$python" tests/cluster/jobs.py "$@"; }
say() { echo "$(date +%H:%M:%S) $*"; }
die() { echo "slurm.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "you are $(id -un): run it as root, it installs packages and starts Slurm's daemons"
"$python" -c 'import snakemake_executor_plugin_slurm, psutil' || die "$python lacks the Slurm executor: run make cluster, which installs it"
if [ "$(command -v slurmctld slurmd munged sbatch | wc -l)" != 4 ]; then
    command -v apt-get >/dev/null || die "no slurmctld, slurmd and munged, and no apt-get to install them with: install slurm-wlm and munge"
    say "installing slurm-wlm and munge"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null
fi

# One thread a process, no hub, as in the Makefile; jobs inherit them.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
tmp=$(mktemp -d /tmp/slurm.XXXXXX)
chmod 755 "$tmp"
export SLURM_CONF=$tmp/slurm.conf
node=$(hostname -s)
workflow=

stop() {
    local status=$?
    trap - EXIT INT TERM
    set +e
    [ -z "$workflow" ] || { kill "$workflow"; wait "$workflow"; } 2>/dev/null
    tool crash >/dev/null 2>&1
    for name in slurmctld munged; do
        [ -s "$tmp/$name.pid" ] || continue
        pid=$(cat "$tmp/$name.pid"); kill "$pid" 2>/dev/null
        for _ in {1..40}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
    done
    [ $status = 0 ] || { mkdir -p $out; cp "$tmp"/*.log $out/; echo "slurm.sh: failed; $out/ has the logs of Slurm's daemons and of the workflow" >&2; }
    rm -rf "$tmp"
    exit $status
}
trap stop EXIT
trap 'exit 130' INT TERM

# --- the cluster

# Processes are found by their parents and no limit is enforced, so that it runs in a container; the node counts as larger than it may be.
configure() {
    local ports
    read -ra ports < <("$python" -c 'import socket; s = [socket.socket() for _ in range(2)]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
    mkdir "$tmp/state" "$tmp/spool" "$tmp/bin"
    # The executor's step drops SLURM_CONF from the environment of srun, which would then look for the machine's own Slurm.
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$tmp/bin/srun"
    chmod +x "$tmp/bin/srun"
    export PATH=$tmp/bin:$PATH
    (umask 377; head -c 1024 /dev/urandom > "$tmp/munge.key")
    case $(slurmd -V) in *' 2'[012].*|*' 23.02'*) echo CgroupPlugin=cgroup/v1;; *) echo CgroupPlugin=disabled;; esac > "$tmp/cgroup.conf"
    echo "Name=gpu Count=1 File=/dev/null" > "$tmp/gres.conf"
    cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$tmp/munge.socket,cred_expire=30
StateSaveLocation=$tmp/state
SlurmdSpoolDir=$tmp/spool
SlurmctldPidFile=$tmp/slurmctld.pid
SlurmdPidFile=$tmp/slurmd.pid
SlurmctldLogFile=$tmp/slurmctld.log
SlurmdLogFile=$tmp/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=0
MinJobAge=86400
KillWait=5
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=32000 Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES
CONF
}

node_is() { [[ "$(sinfo -h -o %T 2>/dev/null)" == $1 ]]; }
until_true() { # SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2; shift 2
    until "$@"; do [ $SECONDS -lt $end ] || die "waited in vain for $what"; sleep 0.5; done
}

start() {
    munged --force --key-file="$tmp/munge.key" --socket="$tmp/munge.socket" --pid-file="$tmp/munged.pid" --log-file="$tmp/munged.log" --seed-file="$tmp/munge.seed" 2>/dev/null
    slurmctld
    slurmd
    until_true 60 "the node (see slurmd.log)" node_is idle
    say "$(slurmctld -V): node $node, $(sinfo -h -o '%C CPUs (allocated/idle/other/total), %G')"
}

# The node is gone: its daemon, and at once everything that ran on it.
lose_node() { tool crash; scontrol update NodeName="$node" State=DOWN Reason="$1"; }
return_node() { rm -f "$tmp/slurmd.pid"; slurmd; sleep 2; scontrol update NodeName="$node" State=RESUME; until_true 60 "the node to come back" node_is '@(idle|mixed|allocated)'; }

# --- the workflow

snakemake() { # RUN OPTIONS...
    local run=$1; shift
    "$python" -m snakemake --nolock --configfile configs/smoke.yaml --config run_dir=$out/"$run" "$@"
}
here() { snakemake "$1" --cores 2 --quiet rules host &> "$out/$1.log"; }
on_slurm() { # RUN OPTIONS...: with the profile; the node is near, so look more often
    local run=$1; shift
    snakemake "$run" "$@" --profile configs/slurm --latency-wait 10 --slurm-init-seconds-before-status-checks 5 --slurm-jobname-prefix "$run" &> "$out/$run.log"
}
ended() { # RUN STATUS START
    [ "$2" = 0 ] || { tail -n 40 "$out/$1.log" >&2; die "the workflow '$1' failed, see $out/$1.log"; }
    echo $((SECONDS - $3)) > "$out/$1.seconds"
    say "$1: complete after $(cat "$out/$1.seconds") s"
}

# A job of RULE whose notebook runs: MARK is what it has opened, END what it has not written yet.
in_notebook() { # RULE MARK END
    job=$(squeue -h -t RUNNING -o '%i %k' | awk -v rule="rule_$1" '$2 == rule {print $1; exit}')
    [ -n "$job" ] && [ -e "$2" ] && [ ! -e "$3" ] && return
    kill -0 "$workflow" 2>/dev/null || die "the workflow ended before $1 could be disturbed, see $out/faults.log"
    return 1
}
disturb() { # FAULT RULE STAGE COMMAND...; STAGE is a folder and the notebook in it
    local fault=$1 rule=$2 stage=$out/faults/$3 nb=$4; shift 4
    until_true 1800 "a job of $rule" in_notebook "$rule" "$stage/.$nb.source.ipynb" "$stage/run.json"
    echo "$job,$fault" >> $out/faults.csv
    say "  job $job ($rule): $fault"
    "$@"
}
kill_job() { tool crash "$job"; }
cancel_job() { scancel "$job"; }
lose_job_for_good() { scontrol update JobId="$job" Requeue=0; lose_node "lost, jobs of it given up"; sleep 5; return_node; }
lose_job_for_now() { lose_node "lost, jobs of it requeued"; sleep 5; return_node; }

rm -rf $out
mkdir -p $out
exec > >(tee $out/log.txt) 2>&1
configure
start
say "local: the smoke workflow without Slurm"
began=$SECONDS; here local && status=0 || status=$?
ended local $status $began

say "whole: every rule as a Slurm job, one GPU for each job that runs the model"
began=$SECONDS; on_slurm whole 'resources={gpu: 1}' && status=0 || status=$?
ended whole $status $began
tool check whole

say "faults: the same, disturbed"
began=$SECONDS; on_slurm faults & workflow=$!
disturb "its processes killed with -9" data_wildcards_01_data 01_data 01_data kill_job
disturb "node lost; job not to be requeued" critique_wildcards_02_critique 02_critique 02_critique lose_job_for_good
disturb "scancel" train_wildcards_04_train_mcft-0.20-s0 04_train/mcft-0.20-s0 04_train cancel_job
disturb "node lost; job requeued by Slurm" evaluate_wildcards_05_eval_mcft-0.20-s0 05_eval/mcft-0.20-s0 05_eval lose_job_for_now
wait "$workflow" && status=0 || status=$?
workflow=
ended faults $status $began
grep -E 'message: SLURM-job|Trying to restart' $out/faults.log | sed 's/For further error details.*//; s/^ */  snakemake: /'
tool check faults

say "report: Snakemake's HTML report of the run called whole"
snakemake whole --cores 1 --quiet rules host --report $out/report.html &> $out/report.log || { cat $out/report.log; die "no report"; }
tool report
tool write
say "rows: data/results/slurm_jobs.csv, data/results/slurm.csv; log: $out/log.txt"
