#!/usr/bin/env bash
# Trains on several nodes under Slurm, one task for each GPU, and puts itself back into the queue when its time
# is up or it is preempted. Edit the lines below for your cluster, then:
#
#     sbatch launch/slurm.sh configs/run/b16.yaml 'data.shards=["SHARDS/{00000..09999}.tar"]'
#
# Two minutes before the end of its time Slurm sends SIGUSR1 to every task. The run then saves after the step that
# it is in and ends with code 75, and the job is requeued; --resume auto goes on from the newest whole checkpoint.
# Any other code is a failure, which would only come again, and stays out of the queue.
#SBATCH --job-name=navit-clip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=14  # data.num_workers (12 in configs/run/b16.yaml), the rank, and what writes checkpoints
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

STOPPED=75  # training/stop.py

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # since Slurm 22.05 srun does not take it from the job
trap : TERM  # preemption: outlive the tasks, which save

# shellcheck disable=SC2016  # each task reads its own place
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    # A task that fails has Slurm send SIGTERM to those that still start. Were they to die of it, srun would
    # give that signal rather than the code of the failure. From its first line on a run listens by itself.
    trap "" TERM USR1
    exec python -m training.train "$@" --resume auto
' train "$@"
code=$?

if [ "$code" = "$STOPPED" ]; then
    echo "asked to stop; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
