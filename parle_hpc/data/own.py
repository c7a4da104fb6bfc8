"""A data set of the user's own: arrays in HDF5, .npz, .npy, MATLAB's or IDX files, by the names that they have."""

import hashlib
import re
import warnings
from contextlib import ExitStack

import h5py
import numpy as np

from ..errors import BadInput, brief
from .advice import PREPARE, TEXT, UNLOCK
from .arrays import as_bytes, class_numbers, line_up, numbers_first, scale_of, written
from .files import PACKINGS, ZIP, place, read, unpack
from .formats import IDX_IMAGES, IDX_LABELS, read_idx

SUFFIXES = (".h5", ".hdf5", ".mat", ".npz", ".npy")
HOW = "save HDF5, or np.savez('mine.npz', train_images=..., train_labels=..., test_images=..., test_labels=...)"
NONE = f"no HDF5, .npz, .npy, .mat or IDX file; {HOW}; a text is made with {PREPARE} {TEXT} --source FILE..."
NAMES = "name the arrays train_images, train_labels, test_images, test_labels"
# by the words of an array's name; the part, where there are several files, else by those of the file's
PARTS = {
    "train": {"train", "training"},
    "test": {"test", "testing", "t10k"},
    "val": {"val", "valid", "validation", "dev", "eval"},
}
KINDS = {
    "images": {"images", "image", "imgs", "img", "x", "data", "features", "feature", "inputs", "pixels"},
    "labels": {"labels", "label", "y", "targets", "target"},
}
PAIRS = [(part, kind) for parts in PARTS.values() for part in parts for kinds in KINDS.values() for kind in kinds]


def read_own(source, channels=None, hint=""):
    """What `source` holds, as the trainer has it: {part: (images, labels)}, classes, checksum, and lines to say of it.

    Args:
        source: a file, or a folder with some.
        channels: "first" or "last", where the images' shape does not tell.
        hint: begins the advice where a folder has no such file.

    Raises BadInput where it cannot be told what is what, or something would be lost.
    """
    notes, parts = [], {}
    try:
        paths = files_of(source, hint)
        checksum = checksum_of(paths)
        with ExitStack() as stack:
            images, labels = choose(paths, stack, f"--source {source}", notes)
            labels, classes = class_numbers(labels, notes)
            images = numbers_first(images, labels)
            lined_up = {part: line_up(*images[part], len(labels[part]), channels) for part in images}
            scale = scale_of({part: (images[part][0], array) for part, (array, _) in lined_up.items()}, notes)
            for part, (array, axis) in lined_up.items():
                parts[part] = as_bytes(images[part][0], array, axis, scale), labels[part]
    except BadInput:
        raise
    # a damaged file raises whatever it likes
    except Exception as error:
        if "unable to lock" in str(error):
            raise BadInput(f"--source {source} {UNLOCK}") from None
        raise BadInput(f"--source {source} cannot be read ({cause(error)}); bring it again, or {HOW}") from None
    train, test = (parts[part][0].shape[1:] for part in ("train", "test"))
    if train != test:
        raise BadInput(f"--source {source}: images of train {train} and test {test} differ")
    return parts, classes, checksum, notes


def files_of(source, hint):
    """The files to read."""
    path = place(source)
    if path.is_file():
        return [path]
    known = re.compile(
        rf"[^.].*({'|'.join(map(re.escape, SUFFIXES))}|[.-]idx[13]-ubyte(\.(gz|bz2|xz))?)", re.IGNORECASE
    )
    found = sorted(file for file in path.iterdir() if known.fullmatch(file.name) and file.is_file())
    if not found:
        raise BadInput(f"--source {source}: holds no {', '.join(SUFFIXES)} or IDX file; {hint}{HOW}")
    return found


def cause(error):
    """What to say of an exception of those who read files."""
    if "pickle" in str(error):
        return "it holds Python's objects, a pickle, which are not loaded"
    return f"{type(error).__name__}: {error}"


def checksum_of(paths):
    """MD5 of what the files hold."""
    digest = hashlib.md5()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


# which array is what


def choose(paths, stack, where, notes):
    """({part: (what to call it, images)}, {part: (what to call it, labels)}), for train and test."""
    roles, found = {}, []
    for path in paths:
        for key, opened in arrays_in(path, stack):
            label = key if len(paths) == 1 and key else f"{path.name}: {key}" if key else path.name
            # np.savez calls what was given no name arr_0
            name = path.stem if key in ("", "arr_0") else key
            role = only(PARTS, name) or (len(paths) > 1 and only(PARTS, path.stem)), only(KINDS, name)
            found.append(label)
            if all(role):
                roles.setdefault(role, []).append((label, opened))
    parts = {"train": "train", "test": "test" if any(part == "test" for part, _ in roles) else "val"}
    taken = {}
    for kind in KINDS:
        for part, name in parts.items():
            may_be = [label for label, _ in roles.get((name, kind), [])]
            if not may_be:
                raise BadInput(f"{where}: lacks {kind} of {part}, found: {brief(', '.join(found) or 'none')}; {NAMES}")
            if len(may_be) > 1:
                raise BadInput(f"{where}: both {may_be[0]} and {may_be[1]} may be the {kind} of {part}; leave one out")
            taken[kind, part] = roles[name, kind][0]
    names = {part: " and ".join(taken[kind, part][0] for kind in KINDS) for part in parts}
    left = [label for label in found if label not in {label for label, _ in taken.values()}]
    left = f"; left out: {brief(', '.join(left))}" if left else ""
    notes.append(f"train is {names['train']}, test is {names['test']}{left}")
    return ({part: (f"{where}: {taken[kind, part][0]}", taken[kind, part][1]()) for part in parts} for kind in KINDS)


def only(table, name):
    """The one key of `table` of whose words there are some in `name`; None of none or several."""
    words = {word.lower() for word in re.findall(r"t10k|[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    # such as xtrain, trainlabels
    words |= {word for pair in PAIRS if words & {"".join(pair), "".join(pair[::-1])} for word in pair}
    keys = [key for key, known in table.items() if known & words]
    return keys[0] if len(keys) == 1 else None


def arrays_in(path, stack):
    """The arrays in a file, as pairs of a name and what opens it."""
    with path.open("rb") as file:
        start = file.read(10)
    if h5py.is_hdf5(path):
        file, found = stack.enter_context(h5py.File(path, "r", locking=False)), []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return [(name, lambda name=name: of_hdf5(file[name], path)) for name in found]
    if start.startswith(ZIP):
        archive = stack.enter_context(np.load(path, allow_pickle=False))
        if not any(name.endswith(".npy") for name in archive.zip.namelist()):
            raise BadInput(f"--source {path} is a .zip of other files; unpack it first")
        return [(name, lambda name=name: np.asarray(archive[name])) for name in archive.files]
    if start.startswith(b"\x93NUMPY"):
        return [("", lambda: np.load(path, mmap_mode="r", allow_pickle=False))]
    if start == b"MATLAB 5.0":
        return [(name, lambda array=array: array) for name, array in of_matlab(path).items()]
    if re.search("[.-]idx[13]-ubyte", path.name.lower()):
        magic = IDX_IMAGES if "idx3" in path.name.lower() else IDX_LABELS
        return [("", lambda: read_idx(unpack(read(path), path), magic, path))]
    packed = any(map(start.startswith, PACKINGS))
    raise BadInput(f"--source {path} is {'packed; unpack it first' if packed else NONE}")


def of_hdf5(found, path):
    """A data set of HDF5, all of which is in this file."""
    name = found.name.lstrip("/")
    if found.external or found.is_virtual:
        raise BadInput(f"--source {path}: {name} lies elsewhere, and must be in this file; copy it there")
    if found.shape is None or not written(found):
        raise BadInput(f"--source {path}: {name} was never written to its end; write the file again")
    plan = found.id.get_create_plist()
    for code, *_, filter_name in map(plan.get_filter, range(plan.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            raise BadInput(
                f"--source {path}: {name} is compressed by {filter_name.decode() or f'filter {code}'}, which HDF5 does "
                f"not have here; h5repack -f GZIP=4 {path.name} OTHER.h5, where it was written, makes one that it has"
            )
    # MATLAB writes its axes in reverse
    return found[...].T if "MATLAB_class" in found.attrs else found


def of_matlab(path):
    """The arrays of a MATLAB file from before 7.3, by name."""
    from scipy.io import loadmat

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy's words for what it cannot read
        return {name: array for name, array in loadmat(path).items() if isinstance(array, np.ndarray)}
