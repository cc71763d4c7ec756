#!/usr/bin/env bash
# Starts Ray on the nodes of a Slurm job, runs a verb of rayface on it, and stops Ray.
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=96 --requeue deploy/slurm.sh \
#       train --preset webface42m --resume auto train.num_workers=32 data.train=/shared/webface42m train.output=/shared/runs/wf42m
#
# rayface must be installed on every node in the same environment, which is active when the job is submitted. A requeued job
# repeats the command: `--resume auto` resumes from the last checkpoint.
#SBATCH --job-name=rayface
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@120
set -euo pipefail
(( $# )) || { echo "usage: sbatch deploy/slurm.sh VERB [ARGUMENT]..." >&2; exit 2; }

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

# Only processes with this token can join the cluster or submit to it.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}

started=()
stop() {
    trap - EXIT TERM INT
    # Ray ends with the processes that srun waits for.
    (( ${#started[@]} )) && kill "${started[@]}" 2>/dev/null
    wait "${started[@]}" 2>/dev/null || true
}
trap stop EXIT

# A command on one node; in the background, $! is srun itself.
step=(srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --export=ALL)

address=$("${step[@]}" --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port
"${step[@]}" --nodelist="$head" ray start --head --block --node-ip-address="${address%:*}" --port="$port" --num-cpus="$cpus" \
    --num-gpus="$gpus" --include-dashboard=false --disable-usage-stats &
started+=($!)
for node in "${nodes[@]:1}"; do
    "${step[@]}" --nodelist="$node" ray start --block --address="$address" --num-cpus="$cpus" --num-gpus="$gpus" \
        --disable-usage-stats &
    started+=($!)
done

# The verb waits for workers by itself (train.wait_for_nodes), but not for the head.
for _ in $(seq 60); do
    ray health-check --address "$address" >/dev/null 2>&1 && break
    kill -0 "${started[0]}" 2>/dev/null || { echo "rayface: Ray's head did not start on $head" >&2; exit 1; }
    sleep 2
done

rayface "$1" --address "$address" "${@:2}" &
verb=$!
# Slurm's warning, two minutes before the time limit: the run saves a checkpoint and ends.
trap 'kill -TERM $verb' TERM INT
code=0
wait "$verb" || code=$?
kill -0 "$verb" 2>/dev/null && { code=0; wait "$verb" || code=$?; }
exit "$code"
