"""The set-up: what the Horovod script builds for, and what it says when it cannot."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.mpi import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "install" / "horovod.py"
sys.path.append(str(ROOT / "install"))

import building  # noqa: E402
import machine  # noqa: E402


@pytest.fixture(scope="module")
def horovod():
    spec = importlib.util.spec_from_file_location("install_horovod", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def the_line(result):
    """The one line with which it ended."""
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    return line


def test_horovod_and_mpi4py_share_one_mpi(horovod, monkeypatch):
    """Also where a file of the present folder has Horovod's name."""
    monkeypatch.chdir(ROOT / "install")
    library, version, nccl = horovod.check()
    assert Path(library).name.startswith("libmpi")
    assert (bool(version), nccl in ("yes", "no")) == (True, True)


@pytest.fixture
def another_mpi(tmp_path):
    """A library with the name of an MPI's."""
    other = tmp_path / "libmpi.so.99"
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", str(other)], check=True)
    return other


def test_two_mpi_libraries_are_found(horovod, monkeypatch, capsys, another_mpi):
    """Another library of that name, loaded beside the real one; where assert is taken out of all programs."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    load = f"import ctypes\nctypes.CDLL({str(another_mpi)!r})\n"
    monkeypatch.setattr(horovod, "CHECK", horovod.CHECK.replace("import mpi4py\n", f"{load}import mpi4py\n", 1))
    with pytest.raises(SystemExit):
        horovod.check()
    message = capsys.readouterr().err
    assert "load different MPI libraries" in message
    assert str(another_mpi) in message
    assert "--no-binary mpi4py" in message


@pytest.mark.parametrize(
    ("version", "brief"),
    [
        ("MPICH Version:      4.3.2\nMPICH Release date: Mon Oct  6\nMPICH ABI: 17:2:5\n", "MPICH Version: 4.3.2"),
        ("Open MPI v5.0.3, package: Open MPI me@there Distribution, ident: 5.0.3\x00", "Open MPI v5.0.3"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS\n", "Intel(R) MPI Library 2021.13 for Linux* OS"),
    ],
)
def test_each_mpi_says_its_version_in_its_own_way(horovod, monkeypatch, tmp_path, another_mpi, version, brief):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("class rc: pass\n")
    (tmp_path / "mpi4py" / "MPI.py").write_text(f"def Get_library_version(): return {version!r}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert horovod.together(another_mpi) == ([str(another_mpi), brief, "no"], None)


def test_a_python_that_is_too_old_or_without_headers_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(SystemExit):
        machine.check_python()
    assert f"Python.h is missing for {sys.executable}" in capsys.readouterr().err
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit):
        machine.check_python()
    assert f"{sys.executable} is 3.9.18; try make PYTHON=python3.12" in capsys.readouterr().err


def test_nothing_that_the_environment_needs_is_missing():
    """Horovod's own requirements too, which are not asked for when its wheel is installed."""
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "No broken requirements found.\n")


@pytest.fixture
def unbuilt(tmp_path):
    """The variables of a shell in which Horovod has to be built, and no index is there to do it."""
    (tmp_path / "nothing").mkdir()
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "nothing")}
    return {"PARLE_HPC_CACHE": str(tmp_path / "cache"), **nothing}


@pytest.mark.cluster
def test_mpi4py_is_looked_for_before_the_build(tmp_path, unbuilt, another_mpi):
    """There is none; or one of another MPI than mpicxx's."""
    place = tmp_path / "python"
    (place / "mpi4py").mkdir(parents=True)
    path = os.pathsep.join([str(place), ENVIRONMENT["PYTHONPATH"]])
    (place / "mpi4py" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'mpi4py'\")\n")
    line = the_line(script(PYTHONPATH=path, **unbuilt))
    assert f"mpi4py is not installed for {sys.executable}" in line
    assert "-m pip install 'mpi4py>=4.0,<5'" in line
    (place / "mpi4py" / "__init__.py").write_text("class rc: pass\n")
    (place / "mpi4py" / "MPI.py").write_text(f"import ctypes\nctypes.CDLL({str(another_mpi)!r})\n")
    line = the_line(script(PYTHONPATH=path, **unbuilt))
    assert "load different MPI libraries" in line
    assert "libmpi.so.99" in line
    assert "-m pip install --force-reinstall --no-deps --no-cache-dir --no-binary mpi4py mpi4py" in line


def test_without_mpi_it_says_what_is_missing(horovod, tmp_path, monkeypatch, capsys):
    """An MPI in the environment itself is there also for who called its Python by path, and has activated nothing."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        horovod.mpi_facts()
    assert end.value.code == 2
    assert "mpicxx not found on PATH; load an MPI module" in capsys.readouterr().err
    (tmp_path / "bin" / "mpicxx").touch(0o755)
    monkeypatch.setenv("OPAL_PREFIX", "/of/another")
    assert horovod.mpi_facts() == ("mpi-in-environment", "$ORIGIN/../../../..")
    assert os.environ["OPAL_PREFIX"] == str(tmp_path)


def test_a_cache_that_cannot_be_made_is_done_without_unless_it_was_named(tmp_path, horovod, monkeypatch, capsys):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "cache"
    monkeypatch.setenv("PARLE_HPC_CACHE", str(place))
    with pytest.raises(SystemExit):
        horovod.writable(horovod.cache_folder())
    line = capsys.readouterr().err
    assert f"PARLE_HPC_CACHE={place}: {place} cannot be written, Not a directory; name another" in line
    monkeypatch.delenv("PARLE_HPC_CACHE", raising=False)
    assert horovod.writable(place) is None
    assert "so the wheel is not kept; PARLE_HPC_CACHE=FOLDER" in capsys.readouterr().out


def test_who_has_no_home_can_name_a_cache(horovod, monkeypatch, tmp_path):
    def nobody(*_):
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "PARLE_HPC_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert horovod.cache_folder() is None
    assert horovod.writable(None) is None
    monkeypatch.setenv("PARLE_HPC_CACHE", str(tmp_path))
    assert horovod.cache_folder() == tmp_path


LEFT_OVER = {
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_CPU_OPERATIONS": "GLOO",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_SKIP_COMPILE": "1",
    "HOROVOD_NCCL_HOME": "/opt/nccl",
}


def test_what_the_shell_says_of_other_builds_of_horovod_is_not_heeded_and_named(tmp_path, unbuilt, monkeypatch):
    (tmp_path / "file").touch()
    unbuilt["PARLE_HPC_CACHE"] = str(tmp_path / "file" / "cache")
    result = script(**LEFT_OVER, HOROVOD_CYCLE_TIME="1", **unbuilt)
    # with what else is wrong
    assert f"PARLE_HPC_CACHE={tmp_path}/file/cache: " in the_line(result)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("not heeded: ")]
    assert all(f"{name}={value}" in line for name, value in LEFT_OVER.items())
    assert "HOROVOD_CYCLE_TIME" not in line
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)
    told = building.build_environment(tmp_path)
    ours = {"HOROVOD_WITH_PYTORCH", "HOROVOD_WITH_MPI", "HOROVOD_WITHOUT_TENSORFLOW", "HOROVOD_WITHOUT_MXNET"}
    ours |= {"HOROVOD_WITHOUT_GLOO", "HOROVOD_CMAKE", "HOROVOD_NCCL_HOME"}
    assert {name for name in told if name.startswith("HOROVOD_")} == ours
    # which is the user's to say where there is CUDA
    assert building.unused("/usr/local/cuda") == sorted(
        f"{name}={value}" for name, value in LEFT_OVER.items() if name != "HOROVOD_NCCL_HOME"
    )


def test_an_nccl_that_is_named_is_there_and_linked_as_the_user_says(tmp_path, monkeypatch, capsys):
    for name in ("HOROVOD_NCCL_HOME", "NCCL_HOME", "HOROVOD_NCCL_INCLUDE", "HOROVOD_NCCL_LIB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOROVOD_NCCL_HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        building.check_nccl()
    assert f"HOROVOD_NCCL_HOME={tmp_path}: no include/nccl.h there; unset HOROVOD_NCCL_HOME" in capsys.readouterr().err
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "nccl.h").touch()
    building.check_nccl()
    assert building.cuda_environment(tmp_path, tmp_path)["HOROVOD_NCCL_LINK"] == "SHARED"
    monkeypatch.setenv("HOROVOD_NCCL_LINK", "STATIC")
    assert building.cuda_environment(tmp_path, tmp_path)["HOROVOD_NCCL_LINK"] == "STATIC"


def test_headers_of_another_mpi_and_settings_of_cmake_and_make_do_not_reach_the_build(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mpi.h").touch()
    monkeypatch.setenv("CPATH", f"{tmp_path / 'other'}{os.pathsep}/usr/include/x")
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", str(tmp_path / "other"))
    for name, value in {"CMAKE_GENERATOR": "Ninja", "CMAKE_PREFIX_PATH": "/x", "MPI_HOME": "/x", "AR": "/x/ar"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setenv("MAKEFLAGS", "kB -j8 --jobserver-auth=3,4")
    monkeypatch.setattr(building, "memory", lambda: 3e9)
    machine.forget(os.environ)
    told = building.build_environment(tmp_path)
    assert told["CPATH"] == "/usr/include/x"
    assert not {"CPLUS_INCLUDE_PATH", "CMAKE_GENERATOR", "CMAKE_PREFIX_PATH", "MPI_HOME", "AR"} & set(told)
    assert told["MAKEFLAGS"] == "-j1"  # one compiler, for which there is memory
    # what a user says is another matter
    monkeypatch.setenv("MAKEFLAGS", "-j3")
    assert building.build_environment(tmp_path)["MAKEFLAGS"] == "-j3"
    monkeypatch.setattr(building, "memory", lambda: 1e15)
    assert building.jobs() == len(os.sched_getaffinity(0))


def test_an_environment_with_odd_characters_is_built_for_through_links(tmp_path, monkeypatch):
    """Python's own names, and what CMake hears from the MPI's wrapper, have none of them."""
    prefix, mpi, work = tmp_path / "a folder (x) $#'" / ".venv", tmp_path / "my mpi", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    work.mkdir()
    (mpi / "bin").mkdir(parents=True)
    for folder, status in ((prefix, 0), (mpi, 3)):
        wrapper = folder / "bin" / "mpicxx"
        wrapper.write_text(f'#!/bin/sh\ncat <<"E"\nc++ $* -I{folder}/include\nE\nexit {status}\n')
        wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "executable", f"{prefix}/bin/python")
    for folder, status, link in ((prefix, 0, "link-0"), (mpi, 3, "link-1")):
        told = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOROVOD_NCCL_INCLUDE": f"{prefix}/nccl"}
        python = building.plain(told, work)
        shown = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
        assert shown.stdout == f"{work}/link-0\n"
        assert told["HOROVOD_NCCL_INCLUDE"] == f"{work}/link-0/nccl"
        asked = subprocess.run(["mpicxx", "-show"], env=told, capture_output=True, text=True)
        assert (asked.stdout, asked.returncode) == (f"c++ $* -I{work}/{link}/include\n", status)
        assert (work / link).resolve() == folder
        shutil.rmtree(work)
        work.mkdir()
    # and as it is where it is plain
    monkeypatch.setattr(sys, "prefix", "/usr")
    (tmp_path / "mpicxx").touch(0o755)
    assert building.plain({"PATH": str(tmp_path)}, work) == sys.executable
    assert not list(work.iterdir())


NOEXEC = "no program starts there; is it mounted noexec?"


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts 2 MB of memory with options, and gives the folder."""
    folders = []

    def mount(options):
        folders.append(tmp_path / f"mount{len(folders)}")
        folders[-1].mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size=2m,{options}", "tmpfs", folders[-1]]
        if subprocess.run(command, capture_output=True).returncode:
            folders.pop().rmdir()
            pytest.skip("root mounts file systems")
        return folders[-1]

    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


def test_horovod_is_built_where_programs_start_and_there_is_room(tmp_path, mounted, monkeypatch, capsys):
    (tmp_path / "a space").mkdir()
    noexec, small = mounted("noexec"), mounted("exec")
    monkeypatch.setattr(building, "ROOM", 1e6)
    reasons = {
        tmp_path / "missing": "No such file or directory",
        tmp_path / "a space": "its name has a character that CMake does not take",
        noexec: NOEXEC,
    }
    for place, reason in reasons.items():
        assert building.unfit(place) == reason
    assert building.unfit(small) is None
    # the next that fits is taken
    monkeypatch.setenv("TMPDIR", str(noexec))
    with building.work_folder(None) as work:
        assert not work.startswith(str(noexec))
    monkeypatch.setattr(building, "ROOM", 1e15)
    with pytest.raises(SystemExit):
        building.work_folder(tmp_path)
    line = capsys.readouterr().err
    assert f"there is no folder to build Horovod in ({noexec}: {NOEXEC}; /tmp: 1000000.0 GB are needed" in line
    assert "TMPDIR=FOLDER names one" in line


def test_room_is_what_the_file_system_gives(tmp_path, mounted):
    small = mounted("exec")
    assert machine.room(small, 1e6) is None
    assert machine.room(small, 3e6) == "0.0 GB are needed and 0.0 GB free"
    assert not list(small.iterdir())
    assert machine.room(tmp_path, 1e6) is None


@pytest.mark.parametrize("error", ["No space left on device", "Disk quota exceeded"])
def test_a_quota_is_seen_before_it_is_met(tmp_path, monkeypatch, error):
    """The file system says no to what df shows as free."""
    import errno

    number = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT}[error]
    monkeypatch.setattr(machine.ctypes, "get_errno", lambda: number)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda *_, **__: type("", (), {"fallocate": lambda *_: -1}))
    assert machine.room(tmp_path, 1e6) == f"0.0 GB are needed: {error}"


def test_a_wheel_is_another_one_where_the_compilers_are_told_something_else(horovod, monkeypatch):
    for name in ("CXX", "CXXFLAGS", "LDFLAGS", "HOROVOD_NCCL_HOME", "HOROVOD_BUILD_ARCH_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    plain = horovod.key_of("2.13.0", None, "mpi")
    assert plain.endswith("-torch2.13.0-cpu-mpi-horovod0.28.1")
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    native = horovod.key_of("2.13.0", None, "mpi")
    assert native.startswith(f"{plain}-")
    monkeypatch.setenv("HOROVOD_NCCL_HOME", "/opt/nccl")
    assert horovod.key_of("2.13.0", None, "mpi") == native
    assert horovod.key_of("2.13.0", "/cuda", "mpi") != native


def test_a_wheel_that_was_built_elsewhere_and_does_not_load_is_built_anew(horovod, tmp_path, monkeypatch, capsys):
    """A home folder that machines with other system libraries share; a second build waits for the first."""
    done, glibc = [], "/lib64/libc.so.6: version `GLIBC_2.34' not found"
    monkeypatch.setattr(sys, "argv", ["horovod.py"])
    monkeypatch.setattr(horovod, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(horovod, "torch_facts", lambda: ("2.13.0", None, "20"))
    monkeypatch.setattr(horovod, "mpi_facts", lambda: ("mpi", ""))
    monkeypatch.setattr(horovod.machine, "check_pip", lambda _: None)
    monkeypatch.setattr(horovod.machine, "forget", lambda *_, **__: None)
    monkeypatch.setattr(horovod, "run_pip", lambda *_: None)
    monkeypatch.setattr(horovod, "install", lambda wheel: done.append(f"installed {wheel.name}"))
    monkeypatch.setattr(
        horovod, "together", lambda *_: (None, glibc) if len(done) < 2 else (["lib", "MPI", "no"], None)
    )
    monkeypatch.setattr(horovod, "build", lambda folder, *given: done.append(f"into {folder} {given[2]}"))
    folder = tmp_path / "wheels" / horovod.key_of("2.13.0", None, "mpi")
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "horovod-0.28.1-old.whl", "w") as archive:
        archive.writestr("x", "x")
    horovod.main()
    why = f"Horovod 0.28.1 for torch 2.13.0 and mpi, since {folder}/horovod-0.28.1-old.whl does not load here ({glibc})"
    assert done == ["installed horovod-0.28.1-old.whl", f"into {folder} {why}"]
    assert capsys.readouterr().out == "Horovod 0.28.1 and mpi4py share MPI (lib), NCCL: no\n"


def test_a_torn_wheel_in_the_cache_is_none(horovod, tmp_path):
    wheel = tmp_path / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("horovod/__init__.py", "x" * 10_000)
    assert horovod.cached(tmp_path) == wheel
    wheel.write_bytes(wheel.read_bytes()[:5000])
    assert horovod.cached(tmp_path) is None
    assert horovod.cached(None) is None


def test_a_toolkit_of_another_cuda_is_refused(horovod, tmp_path, capsys):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    horovod.check_toolkit("12.6", tmp_path)
    with pytest.raises(SystemExit):
        horovod.check_toolkit("13.0", tmp_path)
    message = capsys.readouterr().err
    assert "torch is built for CUDA 13.0, but the toolkit in" in message
    assert "whl/cu124" in message


@pytest.mark.cluster
def test_a_compiler_that_cannot_compile_is_found_before_the_build(tmp_path, unbuilt):
    """One without a licence, and one too old for torch's C++."""
    for text, words in (
        ("c++: fatal error: no licence for this compiler", "fatal error: no licence for this compiler"),
        ("c++: error: unrecognized command line option '-std=c++20'", "load a newer compiler"),
    ):
        compiler = tmp_path / "c++"
        compiler.write_text(f'#!/bin/sh\necho "{text}" >&2\nexit 1\n')
        compiler.chmod(0o755)
        line = the_line(script(CXX=str(compiler), **unbuilt))
        assert words in line
        assert f"CXX={compiler}" in line
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_failing_build_shows_the_first_error_and_the_log(horovod, tmp_path, monkeypatch, capsys):
    """pip in the place of a build: what it prints, and that memory ran out."""
    said = "c++: fatal error: Killed signal terminated program cc1plus"
    archive = tmp_path / "horovod-0.28.1.tar.gz"
    monkeypatch.setattr(building, "check_sdist", lambda _: None)
    monkeypatch.setattr(building, "run_pip", lambda *_: None)
    monkeypatch.setattr(building, "patch", lambda *_: None)
    monkeypatch.setattr(building, "pip", lambda *_: ["sh", "-c", f"echo all well; echo '{said}'; exit 1"])
    monkeypatch.setenv("CXXFLAGS", "-O3")
    monkeypatch.setenv("PATH", ENVIRONMENT["PATH"])
    subprocess.run(["tar", "czf", archive, "-C", tmp_path, "--files-from", "/dev/null"], check=True)
    with pytest.raises(SystemExit):
        building.build(tmp_path, tmp_path / "log", archive, None, "20", "")
    line = capsys.readouterr().err
    assert f"the build failed: {said}; whole log: {tmp_path}/log; memory ran out: MAKEFLAGS=-j1" in line
    assert "set in this shell: CXXFLAGS=-O3" in line
    assert (tmp_path / "log").read_text() == f"all well\n{said}\n"


@pytest.mark.parametrize(
    ("printed", "advice"),
    [
        ("error: externally-managed-environment", "this Python is the system's own: python3 -m venv FOLDER"),
        ("ERROR: Could not install packages: [Errno 122] Disk quota exceeded: 'x'", "the disk, or your quota, is full"),
    ],
)
def test_what_pip_cannot_do_is_one_line_with_a_remedy(monkeypatch, capsys, printed, advice):
    monkeypatch.setattr(machine, "pip", lambda *_: ["sh", "-c", f'echo all well; echo "{printed}" >&2; exit 1'])
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@example.org/simple")
    with pytest.raises(SystemExit) as end:
        machine.run_pip(sys.executable, "x could not be installed")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"x could not be installed: {printed}; {advice}" in line
    # what may be the reason is shown, and no password
    assert "PIP_INDEX_URL=https://...@example.org/simple" in line
    assert (end.value.code, "secret" in line) == (2, False)


def test_a_foreign_source_archive_is_refused_at_once(tmp_path):
    archive = tmp_path / "horovod-0.28.1.tar.gz"
    archive.write_text("something else")
    assert "is not the source archive of Horovod 0.28.1" in the_line(script("--sdist", archive))
    assert "No such file or directory; horovod-0.28.1.tar.gz is wanted" in the_line(
        script("--sdist", tmp_path / "missing")
    )
    assert "Is a directory" in the_line(script("--sdist", tmp_path))


def test_the_first_error_of_a_log_is_found():
    log = "all well\n  x.cc:3:1: error: 'y' was not declared\nx.cc:9: error: another\nmake: *** Error 2\n"
    assert machine.first_error(log) == "x.cc:3:1: error: 'y' was not declared"
    assert machine.first_error("nothing\nlast line\n") == "last line"
    broken = "WARNING: Retrying after connection broken by 'Errno -2] Name or service not known': /simple/x/"
    log = f"{broken}\nERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
    assert machine.first_error(log).startswith("ERROR: Could not find a version that satisfies the requirement x")
    assert "Name or service not known" in machine.first_error(log)


@pytest.mark.parametrize("cuda", [True, False])
def test_the_patch_changes_what_it_must(tmp_path, cuda, capsys):
    files = {
        "CMakeLists.txt": "project(horovod CXX)\nset(CMAKE_CXX_STANDARD 14)\n"
        "include(CheckLanguage)\ncheck_language(CUDA)\nmacro(ADD_CUDA)\n",
        "horovod/torch/CMakeLists.txt": "set(CMAKE_CXX_STANDARD 14)\n"
        "from distutils.sysconfig import get_python_inc; print(get_python_inc())\n",
        "horovod/common/ops/cuda/CMakeLists.txt": "set(CMAKE_CUDA_STANDARD 11)\n",
        "cmake/Modules/FindPytorch.cmake": "(torch.version.cuda is not None) and (CUDA_HOME is not None)\n"
        "(torch.version.hip is not None) and (ROCM_HOME is not None)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    building.patch(tmp_path, "20", cuda, "$ORIGIN/..")
    main, binding, kernels, finder = ((tmp_path / name).read_text() for name in files)
    assert "CMAKE_CXX_STANDARD 20" in main
    assert "CMAKE_CXX_STANDARD 20" in binding
    assert "rpath,$ORIGIN/.." in main
    assert "distutils" not in binding
    assert "STANDARD 17" in kernels
    assert ("check_language(CUDA)" in main) is cuda
    assert ("CUDA_HOME" in finder) is cuda
    assert ("ROCM_HOME" in finder) is cuda
    assert "macro(ADD_CUDA)" in main
    # a source that is not the one we know is not patched half
    with pytest.raises(SystemExit):
        building.patch(tmp_path, "20", cuda, "$ORIGIN/..")
    assert "this is not the source of Horovod 0.28.1" in capsys.readouterr().err


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_cuda_toolkit_is_found_behind_a_wrapper(horovod, tmp_path, monkeypatch, wrapped):
    toolkit, elsewhere = tmp_path / "cuda", tmp_path / "bin"
    for folder in (toolkit / "bin", toolkit / "include", elsewhere):
        folder.mkdir(parents=True)
    (toolkit / "include/cuda_runtime.h").touch()
    (toolkit / "bin/nvcc").write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}' >&2\n")
    (toolkit / "bin/nvcc").chmod(0o755)
    (elsewhere / "nvcc").write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    (elsewhere / "nvcc").chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    first = elsewhere if wrapped else toolkit / "bin"
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{os.environ['PATH']}")
    assert horovod.cuda_toolkit() == toolkit


def test_what_needs_no_mpi_imports_none():
    """A laptop without MPI reads, tests and uses these."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("mpi4py", "horovod"), name
sys.meta_path.insert(0, Refuse())
import parle_hpc.equations, parle_hpc.models, parle_hpc.cluster.topology, parle_hpc.evaluate, parle_hpc.training.loop
from parle_hpc import Parle, EntropySGD, ElasticSGD, Topology
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, cwd=ROOT)


@pytest.mark.cluster
def test_a_source_install_holds_the_whole_package(tmp_path):
    """pip install . without the extra: recipes included, neither MPI nor Horovod asked for."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "parle_hpc", source / "parle_hpc", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, timeout=200)
    assert built.returncode == 0, built.stderr
    command = [sys.executable, "-P", "-m", "parle_hpc.train", "--help"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(target)}
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "--data.batch_size" in shown.stdout, shown.stderr

    def files(folder):
        return {str(p.relative_to(folder)) for p in (folder / "parle_hpc").rglob("*") if p.suffix in (".py", ".toml")}

    assert files(target) == files(ROOT)
    (metadata,) = target.glob("parle_hpc-*.dist-info/METADATA")
    needs = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist:")]
    assert all("extra ==" in line for line in needs if "mpi4py" in line or "horovod" in line)
