"""Where each rank runs, as JSON."""

import json
import os
import socket

from mpi4py import MPI

seen = MPI.COMM_WORLD.gather([MPI.COMM_WORLD.Get_rank(), socket.gethostname(), os.listdir("/dev/shm")])
if MPI.COMM_WORLD.Get_rank() == 0:
    print(json.dumps(seen))
