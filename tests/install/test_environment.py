"""`make train` makes its environment whatever the shell, the folder and earlier set-ups left; or there is a line."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.wheels import clone, index

# without it the set-up asks an index for pip
pytest.importorskip("ensurepip")
# seconds each, for environments that are made
pytestmark = pytest.mark.cluster

# what the shells of clusters are full of is for the tests to say
LEFT_OUT = ("PIP_", "PYTHON", "CXX", "CFLAGS", "LDFLAGS", "VIRTUAL_ENV", "OPAL_", "TORCH", "MPI", "MAKE")


def shell(index, **more):
    """The variables of a login shell with an index of wheels, neither MPI nor CUDA, and more."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    folders = [str(index / "bin"), *kept["PATH"].split(os.pathsep)]
    folders = [folder for folder in folders if not any(Path(folder, name).exists() for name in ("mpicxx", "nvcc"))]
    kept.update(PATH=os.pathsep.join(folders), PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index), PIP_CONFIG_FILE="/dev/null")
    return {**kept, **more}


def make(folder, environment, *arguments):
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )


# an environment's own Python would bring its folder along
BASE = os.path.realpath(sys.executable)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = index(tmp_path_factory.mktemp("index") / "wheels")
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(BASE)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, wheels):
    """(clone, what make train printed): in a folder with odd characters, in a shell with all that is left over."""
    away = tmp_path_factory.mktemp("away")
    other = away / "other"
    subprocess.run([BASE, "-m", "venv", "--without-pip", other], check=True)
    for name in ("mpicxx", "mpirun"):
        (other / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (other / "bin" / name).chmod(0o755)
    (away / "packaging.py").write_text("raise SystemExit('a module of the shell')\n")
    elsewhere = {f"PIP_{name}": str(away / name.lower()) for name in ("TARGET", "PREFIX", "ROOT", "PYTHON")}
    flags = {f"PIP_{name}": "1" for name in ("USER", "REQUIRE_VIRTUALENV", "NO_DEPS", "DRY_RUN", "IGNORE_INSTALLED")}
    environment = shell(
        wheels, PYTHONPATH=str(away), PYTHONHOME="/nowhere", PYTHONWARNINGS="error", **elsewhere, **flags
    )
    environment.update(VIRTUAL_ENV=str(other), PATH=f"{other / 'bin'}{os.pathsep}{environment['PATH']}")
    environment.update(OPAL_PREFIX=str(other), TMPDIR=str(away / "nowhere"), PIP_PYTHON_VERSION="3.9", PIP_QUIET="3")
    folder = clone(tmp_path_factory.mktemp("clones") / "a folder (x) #$HOME 'ü'")
    return folder, make(folder, environment, "train")


def test_it_trains_in_a_folder_and_a_shell_full_of_traps(made, wheels):
    folder, result = made
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"trained in {folder}/parle_hpc/train.py" in result.stdout
    site = next((folder / ".venv" / "lib").glob("python*/site-packages"))
    assert all((site / name).exists() for name in ("parle_torch.py", "mpi4py", "parle_hpc.pth"))
    assert (site / "parle_hpc.pth").read_text() == f"{folder}\n"
    assert (folder / ".venv" / "ready").read_text() == f"{folder}/.venv\n"
    (seen,) = map(json.loads, (folder / "seen").read_text().splitlines())
    assert not seen["unfinished"]
    assert seen["prefix"] == f"{folder}/.venv"
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "VIRTUAL_ENV", "MAKEFLAGS"} & set(seen["environment"])
    # again, and nothing is made
    again = make(folder, shell(wheels), "train")
    assert again.stdout.startswith("mpirun")
    # who activates it has this folder, and not what a $ in its name stands for
    shown = subprocess.run(
        ["bash", "-c", "source .venv/bin/activate && command -v python"], cwd=folder, capture_output=True, text=True
    )
    assert shown.stdout == f"{folder}/.venv/bin/python\n"


def test_a_clone_that_was_moved_makes_its_environment_anew(made, wheels, tmp_path):
    folder, _ = made
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, symlinks=True)
    result = make(moved, shell(wheels), "train")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"was made as {folder}/.venv, and moved or copied: it is made anew" in result.stdout
    (pth,) = (moved / ".venv" / "lib").glob("python*/site-packages/parle_hpc.pth")
    assert pth.read_text() == f"{moved}\n"
    # and once the Python that it was made with is gone
    for name in ("python", "python3"):
        (moved / ".venv" / "bin" / name).unlink()
        (moved / ".venv" / "bin" / name).symlink_to("/nowhere/python")
    result = make(moved, shell(wheels), "train")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{moved}/.venv was made with a Python that is gone: it is made anew" in result.stdout


def test_set_ups_at_once_make_one_environment(tmp_path, wheels):
    folder = clone(tmp_path / "clone")
    command = [BASE, "install/environment.py", ".venv"]
    options = {
        "cwd": folder,
        "env": shell(wheels),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    all_at_once = [subprocess.Popen(command, **options) for _ in range(3)]
    printed = [process.communicate(timeout=200)[0] for process in all_at_once]
    assert [process.returncode for process in all_at_once] == [0, 0, 0], printed
    assert f" is at work in {folder}/.venv: waiting for it\n-- {folder}/.venv is ready\n" in "".join(printed)
    assert len((folder / "seen").read_text().splitlines()) == 1
    assert (folder / ".venv" / "ready").exists()


def test_what_a_killed_set_up_left_is_made_anew(tmp_path, wheels):
    folder = clone(tmp_path / "clone")
    # where there is more room
    (folder / ".venv").symlink_to(tmp_path / "scratch" / "venv")
    (tmp_path / "scratch" / "venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "pip").write_text("half of a pip")
    (folder / ".venv" / "unfinished").touch()
    # of a process that is no more
    (folder / ".venv" / "at-work.json").write_text("")
    os.utime(folder / ".venv" / "at-work.json", (0, 0))
    environment = shell(wheels)
    result = make(folder, environment, "train")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "is half made, a set-up was killed here: it is made anew" in result.stdout
    assert "trained in" in result.stdout


CASES = {
    "a compiler that is not there": ({"CXX": "icpc"}, "CXX=icpc: icpc is not there; unset CXX"),
    "flags of another compiler": ({"LDFLAGS": "-L/nowhere -lnowhere"}, "LDFLAGS=-L/nowhere -lnowhere"),
    "headers that are not there": ({"CXXFLAGS": "-include /nowhere.h"}, "CXXFLAGS=-include /nowhere.h"),
}


@pytest.mark.parametrize("case", CASES)
def test_compilers_that_do_not_compile_are_found_before_anything_is_made(case, tmp_path, wheels):
    variables, words = CASES[case]
    folder = clone(tmp_path / "clone")
    result = make(folder, shell(wheels, **variables), "train")
    line, *of_make = result.stderr.splitlines()
    assert line.startswith("install/environment.py: ")
    assert words in line
    assert all(other.startswith("make") for other in of_make)
    assert not (folder / "seen").exists()
    assert not list((folder / ".venv").glob("bin"))


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_mpi_that_does_not_compile_is_found_before_anything_is_made(tmp_path, wheels):
    """conda's wrapper, whose compiler is another package."""
    folder = clone(tmp_path / "clone")
    script(tmp_path / "mpi" / "mpicxx", 'exec "${OMPI_CXX:-x86_64-conda-linux-gnu-c++}" -DMPI_Initialized=1 "$@"')
    script(tmp_path / "mpi" / "mpirun", "exit 0")
    environment = shell(wheels)
    environment["PATH"] = f"{tmp_path / 'mpi'}{os.pathsep}{environment['PATH']}"
    result = make(folder, environment, "train")
    assert f"{tmp_path}/mpi/mpicxx cannot compile a few lines of MPI" in result.stderr
    assert "x86_64-conda-linux-gnu-c++" in result.stderr
    assert "OMPI_CXX=g++" in result.stderr
    (tmp_path / "mpi" / "mpirun").unlink()
    result = make(folder, environment, "train")
    assert "there is mpicxx and no mpirun here; make .venv/ready" in result.stderr
    assert not result.stdout


def environment_script(folder, environment, place=".venv"):
    command = [BASE, "install/environment.py", str(place)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_a_folder_that_cannot_be_the_environment_is_named(tmp_path, wheels):
    folder = clone(tmp_path / "clone")
    (folder / "data").mkdir()
    (folder / "data" / "results.h5").touch()
    (folder / "file").touch()
    for place, words in (
        ("a:b", "cannot be on PATH"),
        ("data", "holds something else, results.h5"),
        ("file/venv", "cannot be written (Not a directory)"),
    ):
        result = environment_script(folder, shell(wheels), place)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert words in line
        assert "make VENV=" in line
    result = make(folder, shell(wheels), "VENV=my env", "train")
    assert "VENV=my env: a folder without a space" in result.stderr
    assert (folder / "data" / "results.h5").exists()


def test_a_file_system_from_which_no_program_starts_is_named(tmp_path, wheels):
    folder = clone(tmp_path / "clone")
    (folder / ".venv").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,noexec", "tmpfs", str(folder / ".venv")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("root mounts file systems")
    try:
        result = environment_script(folder, shell(wheels))
    finally:
        subprocess.run(["umount", folder / ".venv"], check=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{folder}/.venv: no program starts there; is it mounted noexec?; another folder: make VENV=" in line


@pytest.fixture(scope="module")
def started(tmp_path_factory, wheels):
    """A clone whose environment has pip, and nothing else."""
    folder = clone(tmp_path_factory.mktemp("started") / "clone")
    subprocess.run([BASE, "-m", "venv", folder / ".venv"], check=True)
    return folder


def test_an_environment_of_the_users_own_is_never_emptied(started, wheels, tmp_path):
    """One that was named as VENV, used once, and then moved."""
    folder = tmp_path / "clone"
    shutil.copytree(started, folder, symlinks=True)
    (folder / ".venv" / "ready").write_text("/elsewhere/.venv\n")
    (folder / ".venv" / "mine").touch()
    result = environment_script(folder, shell(wheels))
    assert result.returncode == 0, result.stderr
    assert "made anew" not in result.stdout
    assert (folder / ".venv" / "mine").exists()
    # nor where its Python is gone
    (folder / ".venv" / "bin" / "python").unlink()
    (folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    result = environment_script(folder, shell(wheels))
    assert result.returncode == 2
    assert f"{folder}/.venv/bin/python does not start; rm -r {folder}/.venv" in result.stderr
    assert (folder / ".venv" / "mine").exists()


def test_pips_files_that_send_it_elsewhere_are_named(started, wheels, tmp_path):
    for key in ("install.target", "global.prefix", "install.no-deps"):
        section, _, name = key.partition(".")
        (tmp_path / "pip.conf").write_text(f"[{section}]\n{name} = {tmp_path}/x\n")
        result = environment_script(started, shell(wheels, PIP_CONFIG_FILE=str(tmp_path / "pip.conf")))
        assert result.returncode == 2
        assert f"a configuration file of pip says {key} = " in result.stderr
        assert "PIP_CONFIG_FILE=/dev/null" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_failing_step_is_one_line_with_what_the_shell_has_to_do_with_it(started, wheels, tmp_path):
    """NVIDIA's images pin all packages so; some modules set $MPI."""
    (tmp_path / "constraint.txt").write_text("torch==2.5.0\n")
    for name, value, words in (
        ("PIP_CONSTRAINT", str(tmp_path / "constraint.txt"), "torch failed: ERROR: Cannot install torch==2.13.0"),
        ("MPI", "/opt/mpi", "/opt/mpi from PyPI failed: ERROR: Invalid requirement"),
    ):
        result = environment_script(started, shell(wheels, **{name: value}))
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert words in line
        assert f"{name}={value}" in line
    assert not (started / ".venv" / "ready").exists()


def test_without_an_index_it_ends_in_seconds_and_says_what_is_set(started, wheels, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        unreachable = shell(wheels, PIP_INDEX_URL=url, PIP_FIND_LINKS="", PIP_NO_INDEX="0")
        empty = shell(wheels, PIP_FIND_LINKS=str(tmp_path))
        for environment, words in ((unreachable, "Connection refused"), (empty, f"PIP_FIND_LINKS={tmp_path}")):
            result = environment_script(started, environment)
            assert result.returncode == 2
            (line,) = result.stderr.splitlines()
            assert "no package can be had; do this where there is a network" in line
            assert words in line
    assert not (started / ".venv" / "ready").exists()


def test_a_disk_that_is_too_small_is_named_before_anything_is_downloaded(started, wheels):
    """As much as is free, and more."""
    machine = started / "install" / "machine.py"
    text = machine.read_text()
    machine.write_text(text.replace("total, _, free = shutil.disk_usage(folder)", "total, _, free = 3e9, 0, 1e9"))
    try:
        result = environment_script(started, shell(wheels))
    finally:
        machine.write_text(text)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"no room for the environment in {started}/.venv: 2.0 GB are needed and 1.0 GB free" in line
