"""The training program in which rank 1 comes late. late.py SECONDS START_UP SETTINGS...

START_UP stands for waiting.START_UP, the seconds that a run has at least.
"""

import os
import sys
import time

from parle_hpc.cluster import waiting


def main():
    waiting.START_UP = float(sys.argv[2])
    from parle_hpc import train

    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        time.sleep(float(sys.argv[1]))
    train.main(sys.argv[3:])


main()
