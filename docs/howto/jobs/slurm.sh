#!/bin/bash
#SBATCH --job-name=grpo
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is over, SIGTERM to the steps of the job, not to this script.
#SBATCH --signal=TERM@120

trap : TERM # a preempted job's script is told, too; it has to stay and see how the run ends
srun grpo train recipes/qwen3_1p7b_ba.yaml stop.grace_s=90
code=$?
if [ "$code" -eq 143 ]; then # stopped and saved: the rest of the run is a job of its own
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
