"""What is public says what it takes, in types and in words, and is imported without MPI or a long wait."""

import inspect
import subprocess
import sys

import pytest

import parle_hpc
from parle_hpc import equations, models

PUBLIC = [
    *(getattr(parle_hpc, name) for name in parle_hpc.__all__),
    *(f for name, f in vars(equations).items() if inspect.isfunction(f)),
    models.build,
]


def callables(thing):
    """A public function, or a class's constructor and what of its public methods is ours."""
    if not inspect.isclass(thing):
        return [thing]
    ours = [c for c in thing.__mro__ if c.__module__.startswith("parle_hpc")]
    found = [f for c in ours for name, f in vars(c).items() if not name.startswith("_")]
    unwrapped = [inspect.unwrap(f.fget if isinstance(f, property) else getattr(f, "__func__", f)) for f in found]
    made = [] if hasattr(thing, "split") else [thing.__init__]
    return [*made, *(f for f in unwrapped if inspect.isfunction(f))]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_it_has_types_and_words(thing):
    assert thing.__doc__
    for function in callables(thing):
        signature = inspect.signature(function)
        given = [p for name, p in signature.parameters.items() if name != "self" and name != "cls"]
        assert all(p.annotation is not p.empty for p in given), function
        assert signature.return_annotation is not signature.empty or function.__name__ == "__init__", function
        assert function.__doc__ or function.__name__ == "__init__", function


def test_the_package_alone_loads_no_torch():
    loaded = "import sys, parle_hpc; assert 'torch' not in sys.modules; parle_hpc.Parle"
    subprocess.run([sys.executable, "-c", f"{loaded}; assert 'mpi4py' not in sys.modules"], check=True)
