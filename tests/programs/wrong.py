"""What every rank is told of wrong settings, of many in one start. wrong.py REPLICAS '[["--data.path", "no"], ...]'"""

import json
import sys

from parle_hpc import Topology
from parle_hpc.cluster.agreement import by_first
from parle_hpc.errors import BadInput
from parle_hpc.settings import load, settle
from parle_hpc.training.folder import choose
from parle_hpc.training.session import Session
from parle_hpc.training.setup import set_up

topology = Topology.split(replicas=int(sys.argv[1]))


def told(given):
    """The line; None where nothing is wrong."""
    try:
        settings = load(given)
        settle(settings, topology.world.Get_size())
        with Session(out=by_first(topology, choose, settings), topology=topology, resume=settings.resume) as session:
            set_up(settings, session)
    except BadInput as error:
        return str(error)


lines = [topology.world.gather(told(given)) for given in json.loads(sys.argv[2])]
if topology.world.Get_rank() == 0:
    print(json.dumps(lines))
