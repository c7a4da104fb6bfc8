"""Functions of the batch scripts, without a Slurm."""

import subprocess
from pathlib import Path

from helpers.mpi import ENVIRONMENT

SLURM = Path(__file__).parents[2] / "slurm"


def bash(command, **environment):
    """The finished bash that was given a command in which functions of slurm/common.sh are known."""
    script = f"set -euo pipefail; source {SLURM}/common.sh; {command}"
    mine = {**ENVIRONMENT, "PARLE_HPC_ROOT": str(SLURM.parent), **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=mine)
