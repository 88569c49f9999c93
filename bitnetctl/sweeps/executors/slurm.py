"""Requeue the Slurm job that this process runs in."""

import os
import subprocess

from bitnetctl.errors import ConfigError

_TIMEOUT_SECONDS = 60.0


def slurm_job() -> str:
    """Return the job this process runs in, as scontrol names it; raises ConfigError outside of a job."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        raise ConfigError("--requeue needs a Slurm job, and SLURM_JOB_ID is not set; leave it out, or use sbatch")
    return job


def requeue_job(job: str) -> str:
    """Put a job back into the queue; return one line that says so, or why that could not be done."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
        reason = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        reason, failed = str(error), True
    if failed:
        return f"job {job} could not be requeued: {reason}; submit it again to resume"
    return f"job {job} is requeued and resumes by itself"
