"""Between a run and its checkpoints: what is saved of a rank, and how a run of n x m ranks goes on from one of n' x m'.

With the same n and m a run on CPU goes on bit for bit. With another m each replica is what it was; its new ranks take
the BatchNorm statistics of the old ones in turn and draw dropout anew. With fewer replicas the first ones are kept;
additional ones start at the reference, at rest.
"""

import io
import random

import numpy as np
import torch

from ..cluster.agreement import from_all, from_first
from ..errors import BadInput
from ..settings import Settings
from .files import Damaged, Piece, Stored, folders, read_manifest, verify

# what a run may change when it goes on; anything else would be another run
MAY_CHANGE = {
    "task.file",  # of which task.checksum says whether it is the same
    "task.checksum",
    "data.path",
    "data.node_copy",
    "data.checksum",
    "data.device_memory",
    "coupling.folder",
    "coupling.max_age",
    "coupling.max_seconds",
    "coupling.weight",
    "schedule.epochs",
    "schedule.max_rounds",
    "run.validate_every",
    "run.statistics_batches",
    "run.checkpoint_every",
    "run.checkpoint_minutes",
    "run.keep",
    "run.check_every",
    "run.patience",
    "run.grace",
    "run.save_replicas",
    "run.trace",
    "run.device",
    "run.precision",
    "run.compile",
}


def parts(optimizer, place, m):
    """({name: Piece} of the replica, {name: array} of the rank): copies of what the optimiser holds."""
    pieces, own = {}, {}
    for name, (flat, kind) in optimizer.saved().items():
        if kind == "own":
            own[f"optimizer/{name}"] = to_numpy(flat)
        elif kind == "share":
            pieces[name] = Piece(to_numpy(flat), optimizer.share.start, optimizer.size)
        else:
            part = -(-len(flat) // m)
            start = min(place * part, len(flat))
            pieces[name] = Piece(to_numpy(flat[start : start + part]), start, len(flat))
    return pieces, own


def to_numpy(tensor):
    """A copy, as NumPy knows it."""
    return tensor.detach().to("cpu", copy=True).numpy()


def random_state():
    """{name: array} of this rank's random generators: Python's, NumPy's, torch's and the GPU's."""
    version, keys, _ = random.getstate()
    _, words, *rest = np.random.get_state()
    found = {
        "python": np.array([version, *keys], np.int64),
        "numpy": words,
        "numpy_rest": np.array(rest, np.float64),
        "torch": torch.get_rng_state().numpy(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state().numpy()
    return found


def set_random_state(found):
    """Go on drawing where `random_state` was taken."""
    version, *keys = found["python"].tolist()
    random.setstate((version, tuple(keys), None))
    position, has_gauss, cached = found["numpy_rest"].tolist()
    np.random.set_state(("MT19937", found["numpy"], int(position), int(has_gauss), cached))
    torch.set_rng_state(torch.from_numpy(found["torch"]))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(found["cuda"]))


def seed_of(seed, rank, step=0):
    """Seed of what a rank draws by itself, such as dropout; step: where it goes on with another number of ranks."""
    mine = seed * 1_000_003 + rank + 1
    return mine * 1_000_003 + step if step else mine


def capture(optimizer, model, keep, place, m, facts):
    """(pieces, own, facts) of this rank at the end of a round, for files.write: copies; the run goes on.

    keep: {name: object with state_dict and load_state_dict}. place, m: this rank's place in its replica, and the
    replica's number of ranks. facts: to be kept beside.
    """
    pieces, own = parts(optimizer, place, m)
    own |= {f"keep/{name}": as_bytes(thing.state_dict()) for name, thing in keep.items()}
    own |= {f"buffers/{name}": to_numpy(buffer) for name, buffer in model.named_buffers()}
    own |= {f"random/{name}": np.array(values) for name, values in random_state().items()}
    return pieces, own, {"groups": groups_of(optimizer), "formats": formats(model), "steps": optimizer.steps, **facts}


def groups_of(optimizer):
    """The settings of the parameter groups, without their parameters, as `restore` of an optimiser takes them."""
    return [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]


def as_bytes(state):
    """A state dict as torch saves it, uint8."""
    memory = io.BytesIO()
    torch.save(state, memory)
    return np.frombuffer(memory.getbuffer(), np.uint8)


def from_bytes(values):
    """The state dict that `as_bytes` was given; of what may run code it takes nothing."""
    return torch.load(io.BytesIO(values.tobytes()), map_location="cpu", weights_only=True)


def check_kept(keep):
    """Raises BadInput where an object cannot be kept in a checkpoint."""
    for name, thing in keep.items():
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise BadInput(f"keep: {name} has no state_dict and load_state_dict")
        try:
            from_bytes(as_bytes(thing.state_dict()))
        except Exception:
            raise BadInput(
                f"keep: what {name}.state_dict() gives cannot be saved so that torch.load(weights_only=True) reads it: "
                "numbers, texts, tensors, and lists and dicts of them can"
            ) from None


def formats(model):
    """How each weight lies in memory, which is the order in which a checkpoint has its elements."""
    return [list(p.stride()) for p in model.parameters()]


def find(out, world):
    """(the newest complete and intact checkpoint of a folder as Stored, or None; a line for each damaged one).

    Collective over all ranks, which share the reading.
    """
    lines, chief = [], world.Get_rank() == 0
    for folder in from_first(world, folders(out) if chief else None):
        problem, manifest = None, None
        try:
            manifest = from_first(world, read_manifest_or_problem(folder) if chief else None)
            if isinstance(manifest, str):
                raise Damaged(manifest)
            if manifest is not None:
                for entry in manifest["files"][world.Get_rank() :: world.Get_size()]:
                    verify(folder, entry)
        except Damaged as error:
            problem = str(error)
        problems = [p for p in from_all(world, problem) if p]
        if problems:
            lines.append(f"skipped a damaged checkpoint: {problems[0]}")
        elif manifest is not None:
            return Stored(folder, manifest), lines
    return None, lines


def read_manifest_or_problem(folder):
    """The manifest, None where there is none, or what is wrong with it as a string: for all ranks to hear."""
    try:
        return read_manifest(folder)
    except Damaged as error:
        return str(error)


def check_settings(manifest, settings, folder):
    """Raises BadInput where the settings are those of another run than the checkpoint's."""
    # what an older version did not know was as it is where nobody says otherwise
    before = {**flatten(sections(Settings())), **flatten(manifest["settings"])}
    now = flatten(sections(settings))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name not in MAY_CHANGE:
            raise BadInput(
                f"--{name} {now.get(name)}: the checkpoints in {folder} were made with {before.get(name)}, which a run "
                "cannot change when it goes on; give another --out"
            )


def sections(settings):
    """The settings by section, as JSON has them, without what names files and ranks."""
    return settings.model_dump(mode="json", exclude={"recipe", "out", "resume", "replicas"})


def flatten(tables):
    """{section.key: value} as JSON has them."""
    return {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}


def restore(stored, optimizer, model, keep, topology, seed):
    """Bring what trains to where the checkpoint was taken; (the facts of this rank, lines on what is not as it was).

    keep: as of capture. seed: of the run. Collective over all ranks. Raises BadInput where it was another network, its
    weights lie in memory in another format, or other objects were kept.
    """
    t, step = topology, stored.manifest["step"]
    same = (t.n, t.m) == (stored.n, stored.m)
    there = t.replica_index < stored.n
    source = t.replica_index * stored.m + t.place % stored.m if there else t.place % stored.m
    own, facts = stored.own(source), stored.facts(source)
    now = formats(model)
    if facts.get("formats", now) != now:
        raise BadInput(
            f"{stored.folder} was saved from another network, or from weights in another memory format; "
            "give the same one, or another output folder"
        )
    kept = named("keep/", own)
    if kept.keys() != keep.keys():
        before, after = (", ".join(sorted(names)) or "nothing" for names in (kept, keep))
        raise BadInput(f"{stored.folder} was saved with {before} kept beside the network, and now it is {after}")
    state = state_of(stored, t.replica_index, named("optimizer/", own), same)
    optimizer.restore(state, facts.get("steps", step), facts["groups"])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.from_numpy(own[f"buffers/{name}"]).reshape(buffer.shape))
    if same:
        set_random_state(named("random/", own))
    else:
        torch.manual_seed(seed_of(seed, t.world.Get_rank(), step))
    for name, thing in keep.items():
        thing.load_state_dict(from_bytes(kept[name]))
    return facts, [] if same else [changes(stored, t)]


def named(prefix, arrays):
    """Those of {name: array} whose names begin so, without it."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def state_of(stored, replica, own, same):
    """{name: array} that the optimiser of a replica goes on from.

    own: what was a rank's own. same: whether n and m are as they were.
    """
    there = replica < stored.n
    vectors = stored.replica(replica) if there else at_rest(stored)
    if not there:
        own = {
            name: np.zeros_like(v) if name.startswith("v") else vectors["x"] for name, v in own.items() if flat(name)
        }
    found = {**vectors, **own}
    # what has been told of the weights was told to others
    return found if same else {name: values for name, values in found.items() if not name.startswith("payload_")}


def at_rest(stored):
    """What a replica that was not there begins with: the mean of the others, without momentum."""
    first, *others = (stored.replica(a) for a in range(stored.n))
    # of Elastic-SGD the reference is a state of its own, and the replica's weights are xa; DiLoCo, unless it overlaps,
    # has one x on all, whose bits are to stay the same
    one = "xa" in first or ("outer_v" in first and "sent" not in first)
    mean = first["x"] if one else sum((o["x"] for o in others), first["x"]) / stored.n
    mine = {name: values for name, values in first.items() if flat(name)}
    rests = {name for name in mine if name.startswith("v") or name == "sent"}
    new = {name: np.zeros_like(values) if name in rests else mean.copy() for name, values in mine.items()}
    if "average" in first:
        # over time, it stays what it is over the replicas
        new["average"] = sum((o["average"] for o in others), first["average"]) / stored.n
    return new | {name: first[name] for name in ("lagged", "outer_v", "x8d", "v8d") if name in first}


def flat(name):
    """Whether a state is one of the weights' length; what an optimiser inside has begins anew with a replica."""
    return not name.startswith("inner.")


def changes(stored, t):
    """What another number of ranks changes, in words."""
    told = f"goes on with {t.n} x {t.m} ranks after {stored.n} x {stored.m}"
    if t.n < stored.n:
        told += f"; only the first {t.n} replicas are kept"
    if t.n > stored.n:
        told += f"; {t.n - stored.n} more replicas start at the reference"
    return f"{told}; dropout is drawn anew"
