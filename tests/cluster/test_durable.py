"""A file is there whole or not at all, on file systems that can less than others, too."""

import errno
import os
import stat

import pytest

from parle_hpc.cluster.durable import write_whole


def test_but_a_disk_that_fails_is_heard(tmp_path, monkeypatch):
    def fails(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "no luck")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no luck"):
        write_whole(tmp_path / "x", b"y")


def test_a_folder_that_may_be_written_and_not_read(tmp_path, monkeypatch):
    real = os.open

    def refuses(path, flags, *mode, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "no")
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", refuses)
    write_whole(tmp_path / "x", b"y")
    assert (tmp_path / "x").read_bytes() == b"y"


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EPERM, errno.EACCES])
def test_a_file_system_that_replaces_no_file(tmp_path, monkeypatch, code):
    real = os.replace

    def refuses(source, target, **more):
        if os.path.exists(target):
            raise OSError(code, os.strerror(code))
        real(source, target, **more)

    monkeypatch.setattr(os, "replace", refuses)
    for content in (b"one", b"two"):
        write_whole(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == content
    assert os.listdir(tmp_path) == ["x"]
