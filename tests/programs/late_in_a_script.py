"""A script in which rank 1 comes late. late_in_a_script.py SECONDS PATIENCE"""

import os
import sys
import time

from parle_hpc import Topology

if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    time.sleep(float(sys.argv[1]))
Topology.split(replicas=2, patience=float(sys.argv[2]))
print("all are here")
