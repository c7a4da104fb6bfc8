"""Changes that make an HDF5 file something else: each a function of the open file."""

import h5py


def put(name, value, **options):
    """Put another data set, or group, in the place of one."""

    def change(file):
        if name in file:
            del file[name]
        if value is None:
            file.create_group(name)
        else:
            file.create_dataset(name, data=value, **options)

    return change


def attribute(name, value):
    def change(file):
        file.attrs[name] = value

    return change


def forget(name):
    def change(file):
        del (file.attrs if name in file.attrs else file)[name]

    return change


def link(name, target):
    def change(file):
        file.pop(name, None)
        file[name] = target

    return change


def external(name, dtype, shape):
    """Data that lie in another file of the machine."""

    def change(file):
        file.pop(name, None)
        file.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])

    return change


def claim(name, dtype, shape, **options):
    """Far more than the file holds."""

    def change(file):
        file.pop(name, None)
        file.create_dataset(name, shape, dtype, **options)

    return change
