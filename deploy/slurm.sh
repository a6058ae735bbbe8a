#!/bin/bash
# One command on several nodes of SLURM: sbatch deploy/slurm.sh train /shared/volumes --preset v5 --fold all --out /shared/runs/v5
#
# Ray starts on every node, the command runs on the first, and Ray stops when it ends. The same line, submitted again, goes
# on with a run that the time limit, a lost node or a preemption ended. Ask for whole nodes: `ray stop` ends every Ray of
# this user on them.
#SBATCH --job-name=aneurysm-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# Ray listens on all interfaces; only whoever has this secret may use it. srun hands it to every node.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_USAGE_STATS_ENABLED=0 RAY_task_oom_retries=1

read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -r ip _ < <(getent ahostsv4 "$head")
address=$ip:6379

resume=()
case $1 in train | tune | predict) resume=(--resume) ;; esac

# The command itself finds the cluster by RAY_ADDRESS; `ray start` must not see it.
exec srun --kill-on-bad-exit=0 ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --temp-dir "/tmp/ray-$SLURM_JOB_ID" -- env RAY_ADDRESS="$address" aneurysm-ray "$@" "${resume[@]}"
