"""Files that are there whole, on the disk, or not at all, and what HDF5 is to put into them."""

import errno
import os

CHUNK = 1 << 20  # elements; a thread that writes lets the training thread go on after each
# what file systems answer that have no such thing, as CIFS and some of FUSE do to a folder's fsync
UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EEXIST)


def write_whole(path, content):
    """Write a file that is there with all of `content`, on the disk, or not at all. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            force(file.fileno())
        put_in_place(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    force_folder(path.parent)


def force(descriptor):
    """Force a file, or a folder's names, to disk; whether the file system can. Raises OSError where it fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        return False
    return True


def force_folder(folder):
    """`force` for a folder, which file systems of networks and desktops often cannot, or which may not be read."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return force(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(partial, path):
    """Give a file its name, also on a file system that does not replace one by another in one step."""
    try:
        partial.replace(path)
    except OSError as error:
        if error.errno not in UNABLE or not path.is_file():
            raise
        path.unlink()
        partial.rename(path)


def fill(file, name, values):
    """The data set of an open HDF5 file with `values`, a NumPy array, each chunk with its checksum."""
    if not values.size:
        return file.create_dataset(name, values.shape, values.dtype)
    chunks = (min(CHUNK, len(values)), *values.shape[1:])
    dataset = file.create_dataset(name, values.shape, values.dtype, chunks=chunks, fletcher32=True)
    for start in range(0, len(values), CHUNK):
        dataset[start : start + CHUNK] = values[start : start + CHUNK]
    return dataset
