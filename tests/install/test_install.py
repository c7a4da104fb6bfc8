"""The set-up: what the Horovod script builds for, and what it says when it cannot."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.mpi import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "install" / "horovod.py"


@pytest.fixture(scope="module")
def horovod():
    spec = importlib.util.spec_from_file_location("install_horovod", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_horovod_and_mpi4py_share_one_mpi(horovod, capsys):
    horovod.check()
    assert "Horovod 0.28.1 and mpi4py share" in capsys.readouterr().out


def test_two_mpi_libraries_are_found(horovod, monkeypatch, capsys, tmp_path):
    """Another library of that name, loaded beside the real one."""
    other = tmp_path / "libmpi.so.99"
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", str(other)], check=True)
    load = f"import ctypes\nctypes.CDLL({str(other)!r})\n"
    monkeypatch.setattr(horovod, "CHECK", horovod.CHECK.replace("import mpi4py\n", f"{load}import mpi4py\n", 1))
    with pytest.raises(SystemExit):
        horovod.check()
    message = capsys.readouterr().err
    assert "load different MPI libraries" in message
    assert str(other) in message
    assert "--no-binary mpi4py" in message


def test_without_mpi_it_says_what_is_missing(tmp_path):
    result = script(PATH=str(tmp_path))
    assert result.returncode == 1
    assert "mpicxx not found on PATH" in result.stderr


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
def test_a_failing_build_shows_the_first_error_and_the_log(tmp_path):
    """A C++ compiler that cannot compile, and nothing in the cache."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'c++: fatal error: no licence for this compiler' >&2\nexit 1\n")
    compiler.chmod(0o755)
    result = script(PARLE_HPC_CACHE=str(tmp_path / "cache"), CXX=str(compiler))
    if "could not be installed" in result.stderr or "could not be downloaded" in result.stderr:
        pytest.skip(f"no package index here: {result.stderr.strip()}")
    assert result.returncode == 1
    (log,) = (tmp_path / "cache" / "logs").glob("*.log")
    assert f"whole log: {log}" in result.stderr
    assert "the build failed: CMake Error" in result.stderr
    assert "no licence for this compiler" in log.read_text()
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert "Traceback" not in result.stderr


@pytest.mark.cluster
def test_a_foreign_source_archive_is_refused(tmp_path):
    archive = tmp_path / "horovod-0.28.1.tar.gz"
    archive.write_text("something else")
    result = script("--sdist", str(archive), PARLE_HPC_CACHE=str(tmp_path / "cache"))
    if "could not be installed" in result.stderr:
        pytest.skip(f"no package index here: {result.stderr.strip()}")
    assert result.returncode == 1
    assert "is not the source archive of Horovod 0.28.1" in result.stderr
    assert "no such file" in script("--sdist", str(tmp_path / "missing")).stderr


def test_the_first_error_of_a_log_is_found(horovod):
    log = "all well\n  x.cc:3:1: error: 'y' was not declared\nx.cc:9: error: another\nmake: *** Error 2\n"
    assert horovod.first_error(log) == "x.cc:3:1: error: 'y' was not declared"
    assert horovod.first_error("nothing\nlast line\n") == "last line"


@pytest.mark.parametrize("cuda", [True, False])
def test_the_patch_changes_what_it_must(horovod, tmp_path, cuda, capsys):
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
    horovod.patch(tmp_path, "20", cuda, "$ORIGIN/..")
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
        horovod.patch(tmp_path, "20", cuda, "$ORIGIN/..")
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
