"""SAM, and averages over time, against the oracle, float64, tolerance 1e-12."""

import copy

import numpy as np
import pytest
import torch
from helpers import oracle, replicas
from helpers.mpi import passes
from helpers.problems import flat, parameters, problem, set_gradients
from helpers.trajectories import assert_equal

from parle_hpc import SAM, DiLoCo, ElasticSGD, EntropySGD, Parle
from parle_hpc.algorithms.averaged import Averaged
from parle_hpc.algorithms.sgd import SGD

LR, MU, WD = 0.1, 0.9, 1e-3


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "lenet"])
@pytest.mark.parametrize("ascent", [0.05, 0.2])
def test_sam_is_the_papers(name, ascent):
    of, params = problem(name), parameters(problem(name))
    optimizer = SAM(params, lr=LR, ascent=ascent, weight_decay=WD)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8], gamma=0.5)
    settings = {"eta": lambda k: LR * (0.5 if k >= 8 else 1), "ascent": ascent, "mu": MU, "wd": WD}
    for k, w in enumerate(oracle.sam(of.start, of.grad, 1, 12, **settings)):
        set_gradients(params, of.grad(0, k, flat(params)))
        with optimizer.perturbed():
            set_gradients(params, of.grad(0, k, flat(params)))
        optimizer.step()
        scheduler.step()
        assert_equal(flat(params), w)
    assert optimizer.steps == 12


@pytest.mark.cluster
def test_the_ranks_of_sam_have_an_eps_each_and_one_reduction():
    assert passes(2, "sam.py", "quadratic", "rosenbrock", "lenet").split() == ["quadratic", "rosenbrock", "lenet"]


def test_sam_gives_the_weights_back_and_moves_nothing_without_gradient():
    torch.manual_seed(0)
    w, still, frozen = (torch.nn.Parameter(torch.randn(5), requires_grad=i < 2) for i in range(3))
    optimizer = SAM([w, still, frozen], lr=0.1, ascent=0.3)
    before = [p.detach().clone() for p in (w, still, frozen)]
    w.grad = torch.randn(5)
    eps = 0.3 * w.grad / w.grad.norm()
    with optimizer.perturbed():
        assert torch.allclose(w, before[0] + eps)
        assert torch.equal(still, before[1])
        assert torch.equal(frozen, before[2])
        assert w.grad is None
        with pytest.raises(RuntimeError, match="step inside perturbed"):
            optimizer.step()
    assert all(map(torch.equal, (w, still, frozen), before))
    # nor where all gradients are 0, or there is none
    w.grad = torch.zeros(5)
    for _ in range(2):
        with optimizer.perturbed():
            assert torch.equal(w, before[0])
    w.grad = torch.ones(5)
    optimizer.step()
    assert torch.equal(still, before[1])
    assert not torch.equal(w, before[0])


def test_the_radius_of_sam_must_be_one():
    with pytest.raises(ValueError, match="ascent is 0; it must be above 0"):
        SAM([torch.nn.Parameter(torch.zeros(1))], lr=0.1, ascent=0)


L, ROUNDS = 3, 7
AVERAGED = {
    "parle": (2, lambda p, comm: Parle(p, lr=LR, L=L, batches_per_epoch=2, comm=comm)),
    "parle, mean of z": (2, lambda p, comm: Parle(p, lr=LR, L=L, batches_per_epoch=2, comm=comm, reference="average")),
    "entropy_sgd": (1, lambda p, comm: EntropySGD(p, lr=LR, L=L, batches_per_epoch=2)),
    "elastic_sgd": (3, lambda p, comm: ElasticSGD(p, lr=LR, batches_per_epoch=2, comm=comm)),
    "diloco, overlapped": (2, lambda p, comm: DiLoCo(p, lr=LR, L=L, overlap=True, comm=comm)),
    "sgd": (1, lambda p, comm: SGD(p, lr=LR)),
    "sam": (1, lambda p, comm: SAM(p, lr=LR)),
}  # fmt: skip


def oracles(name, of, n):
    """[Of each replica the weights after each round], [the reference after each round], without averages."""
    steps, eta = L * ROUNDS, lambda k: LR
    if name == "elastic_sgd":
        found = list(oracle.elastic_sgd(of.start, of.grad, n, steps, eta=eta, mu=MU, rho0=1.0, B=2, scoping=True))
    elif name == "sgd":
        found = [([w], w) for w in oracle.sgd(of.start, of.grad, steps, eta=eta, mu=MU)]
    elif name == "sam":
        found = [([w], w) for w in oracle.sam(of.start, of.grad, 1, steps, eta=eta, ascent=0.05, mu=MU)]
    elif name == "diloco, overlapped":
        given = {"eta": eta, "mu": MU, "L": L, "outer_lr": 0.7, "outer_mu": 0.9, "overlap": True}
        found = [(x, sum(x) / n) for _, x in oracle.diloco(of.start, of.grad, n, steps, **given)]
    else:
        kind = {"reference": "average"} if "mean of z" in name else {}
        kind |= {"rho0": np.inf if name == "entropy_sgd" else 1.0}
        given = {"eta": eta, "inner_lr": LR, "mu": MU, "L": L, "alpha": 0.75, "gamma0": 100.0, "B": 2, **kind}
        found = [(x, sum(x) / n) for _, x, _ in oracle.parle(of.start, of.grad, n, steps, **given)]
    after = found[L - 1 :: L]
    return [[weights[a] for weights, _ in after] for a in range(n)], [reference for _, reference in after]


def one_step(optimizer, params, of, a, k):
    set_gradients(params, of.grad(a, k, flat(params)))
    if hasattr(optimizer, "perturbed"):
        with optimizer.perturbed():
            set_gradients(params, of.grad(a, k, flat(params)))
    optimizer.step()


def averaged(name, params, comm, *given, **named):
    optimizer = AVERAGED[name][1](params, comm)
    if not hasattr(optimizer, "L"):
        optimizer.round_length = L
    return Averaged(optimizer, *given, **named)


@pytest.mark.parametrize("average", ["ema", "swa"])
@pytest.mark.parametrize("name", AVERAGED)
def test_an_average_is_over_the_rounds_and_over_the_replicas(name, average):
    of, n, start, decay = problem("quadratic"), AVERAGED[name][0], 3, 0.8

    def replica(a, comm):
        params = parameters(of)
        optimizer = averaged(name, params, comm, average, decay=decay, start=start)
        found = []
        for k in range(L * ROUNDS):
            one_step(optimizer, params, of, a, k)
            if (k + 1) % L == 0:
                live, sent = flat(params), optimizer.coupling_bytes_sent
                with optimizer.at_reference():
                    found.append(flat(params))
                assert np.array_equal(flat(params), live)
                sent = optimizer.coupling_bytes_sent - sent
                averages = optimizer.rounds_averaged > 0
                # parts of 1/n of the weights out and back, with three numbers; these two also bring the newest x
                least = (n - 1) * 8 * (2 * -(-of.start.size // n) + 3)
                assert sent == least * (averages + (name in ("parle, mean of z", "diloco, overlapped")))
        return found

    weights, references = oracles(name, of, n)
    for found in replicas.run(n, replica):
        for t, reference in enumerate(found):
            if t < start:
                assert_equal(reference, references[t])
                continue
            mean = oracle.ema if average == "ema" else lambda points, _: oracle.swa(points)
            assert_equal(reference, sum(mean(w[start : t + 1], decay) for w in weights) / n)
    assert n == 1 or oracle.spread([w[-1] for w in weights]) > 1e-3


@pytest.mark.parametrize("name", AVERAGED)
def test_a_loaded_average_continues_bit_for_bit(name):
    of, n = problem("quadratic"), AVERAGED[name][0]

    def replica(a, comm, stop=None):
        params = parameters(of)
        optimizer = averaged(name, params, comm, "swa", start=2)
        for k in range(L * ROUNDS):
            if k == stop:
                with optimizer.at_reference():
                    pass
                state, weights = optimizer.state_dict(), torch.cat([p.detach().flatten() for p in params])
                params = parameters(of)
                torch.nn.utils.vector_to_parameters(weights, params)
                optimizer = averaged(name, params, comm, "swa", start=2)
                optimizer.load_state_dict(state)
            one_step(optimizer, params, of, a, k)
        with optimizer.at_reference():
            return flat(params)

    whole = replicas.run(n, replica)
    for stop in (L, 4 * L, 4 * L + 1):
        for one, other in zip(whole, replicas.run(n, lambda a, comm, stop=stop: replica(a, comm, stop)), strict=True):
            assert np.array_equal(one, other)


def test_where_averaging_begins_later_it_begins_anew():
    """As in a run that goes on with more rounds."""
    of = problem("quadratic")
    params = parameters(of)
    early = averaged("sgd", params, None, "swa")
    for k in range(2 * L):
        one_step(early, params, of, 0, k)
    later = averaged("sgd", params, None, "swa", start=3)
    groups = [{key: value for key, value in g.items() if key != "params"} for g in early.param_groups]
    later.restore({name: vector.numpy().copy() for name, (vector, _) in early.saved().items()}, 2 * L, groups)
    assert later.rounds_averaged == 2
    for k in range(2 * L, 4 * L):
        one_step(later, params, of, 0, k)
        if k < 4 * L - 1:
            assert later.rounds_averaged == (2 if k < 3 * L - 1 else 0)
    with later.at_reference():
        average = flat(params)
    assert later.rounds_averaged == 1
    assert np.array_equal(average, flat(params))


def test_a_copy_of_an_average_goes_on_alike_and_apart():
    of = problem("quadratic")
    params = parameters(of)
    optimizer = averaged("sam", params, None, "ema")
    for k in range(2 * L):
        one_step(optimizer, params, of, 0, k)
    others, twin = copy.deepcopy((params, optimizer))
    found = []
    for weights, mover in ((params, optimizer), (others, twin)):
        mover.optimizer.round_length, mover.optimizer.steps = L, 2 * L  # torch's copies know groups and state alone
        for k in range(2 * L, 3 * L):
            one_step(mover, weights, of, 0, k)
        with mover.at_reference():
            found.append(flat(weights))
    assert np.array_equal(*found)
    assert optimizer.rounds_averaged == twin.rounds_averaged == 3


def test_a_state_without_an_average_is_refused():
    w = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="the state has no average"):
        Averaged(SGD([w], lr=0.1), "ema").load_state_dict(SGD([w], lr=0.1).state_dict())


def test_weights_of_16_bits_are_averaged_in_32():
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = averaged("sgd", [w], None, "swa")
    for value in range(256, 256 + 3 * L):
        w.data.fill_(value)
        w.grad = torch.zeros_like(w)
        optimizer.step()
    average, _ = optimizer.saved()["average"]
    # 258, 261, 264 as bfloat16 knows them
    assert average.tolist() == pytest.approx([np.mean([258, 260, 264])] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"average": "mean"}, "average is 'mean'; it must be one of ema, swa"),
        ({"average": "ema", "decay": 1.0}, "decay is 1.0"),
        ({"average": "swa", "start": -1}, "start is -1"),
    ],
)
def test_an_average_must_be_one(given, words):
    with pytest.raises(ValueError, match=words):
        Averaged(SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), **given)
