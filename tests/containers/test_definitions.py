"""The container definitions: read, compared, and their scripts checked. `make container-test` executes one of them."""

import shutil
import subprocess

import pytest
import tomlkit
from containers.definition import DEFINITIONS, ROOT, copy_files, files, read
from helpers.mpi import ENVIRONMENT

SCRIPTS = ("post", "environment", "runscript", "test")


def shellcheck(*arguments, text=None):
    program = shutil.which("shellcheck", path=ENVIRONMENT["PATH"])
    checked = subprocess.run([program, *arguments], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_there_is_one_for_each_kind_of_machine():
    assert [path.stem for path in DEFINITIONS] == ["cpu", "cuda", "rocm"]


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_it_says_what_it_is_made_of(path):
    header, sections = read(path)
    assert header["Bootstrap"] == "docker"
    image, version = header["From"].split(":")
    assert image
    assert version[0].isdigit(), "an image without a version is another one tomorrow"
    assert set(sections) == {"files", "post", "environment", "runscript", "test", "labels", "help"}
    for source, place in files(sections):
        assert source.exists()
        assert place == f"/opt/parle_hpc/source/{source.relative_to(ROOT)}"
    labels = dict(line.split(maxsplit=1) for line in sections["labels"].split("\n") if line)
    version = labels["org.opencontainers.image.version"]
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()
    assert f"apptainer build parle_hpc.sif containers/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_shellcheck_finds_nothing_in_its_scripts(path):
    _, sections = read(path)
    for name in SCRIPTS:
        # Apptainer gives them to sh; what %environment sets is for others
        shellcheck("--shell=sh", "-", text=sections[name])


def test_shellcheck_finds_nothing_in_the_script_that_they_share():
    shellcheck(ROOT / "containers" / "install.sh", ROOT / "tests" / "containers" / "apptainer")


def test_they_are_alike_where_the_machine_does_not_matter():
    for name in ("files", "runscript", "test"):
        assert len({read(path)[1][name].strip() for path in DEFINITIONS}) == 1


def test_an_image_has_all_that_the_installed_package_needs(tmp_path):
    """What %files brings is enough for setup.py and the recipes."""
    _, sections = read(DEFINITIONS[0])
    copy_files(sections, tmp_path)
    image = tmp_path / "opt" / "parle_hpc" / "source"
    recipes = sorted((image / "parle_hpc" / "recipes").glob("*.toml"))
    assert [tomlkit.parse(recipe.read_text()) for recipe in recipes]
    named = subprocess.run(
        ["python3", "setup.py", "--name"], cwd=image, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert named.stdout.strip() == "parle_hpc"
