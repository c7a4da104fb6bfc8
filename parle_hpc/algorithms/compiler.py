"""torch's compiler is loaded where something is compiled, and not by the first optimiser: half a second on each rank.

torch keeps its compiler away from some methods, its optimisers' among them, and loads it for that at their first call.
As long as nobody else has loaded it there is nothing to keep away.
"""

import sys

import torch


def load_late(owner):
    """The methods of a class from which torch keeps its compiler away do not load it."""
    for method in vars(owner).values():
        function = getattr(method, "__wrapped__", None)
        if function is not None:
            function.__dynamo_disable = until_loaded(function)


def until_loaded(function):
    """What torch is to call in place of `function`, where it finds it: the function, until there is a compiler."""
    kept_away = torch._disable_dynamo(lambda *arguments, **settings: function(*arguments, **settings))

    def call(*arguments, **settings):
        return (kept_away if "torch._dynamo" in sys.modules else function)(*arguments, **settings)

    return call


load_late(torch.optim.Optimizer)
