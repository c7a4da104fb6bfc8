"""The equations of Parle, in the paper's letters.

Each function updates the tensors that it is given and touches nothing else. Arguments in capitals of the paper's text
(L, B, N) are integers; every tensor argument is a list of tensors of equal shapes from list to list, so that a whole
network, or the part of it that fits into a cache, is one call. `v` is the Nesterov momentum of the variable before it
(Remark 2): with d the bracket of an equation,

    v <- mu v + d ;   p <- p - eta (d + mu v).

`g` is the mini-batch's gradient of f, weight decay included, averaged over the ranks of the replica.
"""

import torch
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

FUSED = _get_fused_kernels_supported_devices()  # types of devices for which torch has its optimisers in one pass
Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]


def nesterov(p: Tensors, v: Tensors, d: Tensors, *, eta: float, mu: float) -> None:
    """Remark 2, in the form of torch.optim.SGD(nesterov=True): v = mu v + d ; p = p - eta (d + mu v). Overwrites d."""
    torch._foreach_mul_(v, mu)
    torch._foreach_add_(v, d)
    torch._foreach_add_(d, v, alpha=mu)
    torch._foreach_add_(p, d, alpha=-eta)


def proximal_step(
    p: Tensors, v: Tensors, g: Tensors, center: Tensors, *, eta: float, strength: float, mu: float
) -> None:
    """p = p - eta [ g + strength (p - center) ], momentum included: (6a), (7a) and (8a), the work of every mini-batch.

    What pulls p to the center is a weight decay, strength p, and a gradient, g - strength center, so that torch's fused
    SGD, on a device that has it, goes through memory once. Where a vector ends, its last bits may differ from what
    another cut would give; all ranks of a replica must cut alike. v is left alone where mu is 0.
    """
    d = torch._foreach_add(g, center, alpha=-strength)
    if p[0].device.type in FUSED:
        torch._fused_sgd_(
            p,
            d,
            v if mu else [],
            lr=eta,
            momentum=mu,
            weight_decay=strength,
            dampening=0.0,
            nesterov=mu > 0,
            maximize=False,
            is_first_step=False,
        )
        return
    torch._foreach_add_(d, p, alpha=strength)
    if mu:
        nesterov(p, v, d, eta=eta, mu=mu)
    else:
        torch._foreach_add_(p, d, alpha=-eta)


def eq_6a(y: Tensors, v: Tensors, g: Tensors, x: Tensors, *, eta: float, gamma: float, mu: float) -> None:
    """(6a)  y = y - eta' [ grad f(y) + (y - x) / gamma ]"""
    proximal_step(y, v, g, x, eta=eta, strength=1 / gamma, mu=mu)


def eq_6b(z: Tensors, y: Tensors, *, alpha: float) -> None:
    """(6b)  z = alpha z + (1 - alpha) y"""
    torch._foreach_lerp_(z, y, 1 - alpha)


def eq_6c(x: Tensors, v: Tensors, z: Tensors, *, eta: float, mu: float) -> None:
    """(6c)  x = x - eta (x - z)        at the end of a round"""
    nesterov(x, v, torch._foreach_sub(x, z), eta=eta, mu=mu)


def eq_7a(xa: Tensors, v: Tensors, g: Tensors, x: Tensors, *, eta: float, rho: float, mu: float) -> None:
    """(7a)  x^a = x^a - eta [ grad f(x^a) + (x^a - x) / rho ]"""
    proximal_step(xa, v, g, x, eta=eta, strength=1 / rho, mu=mu)


def eq_7b(x: Tensors, mean: Tensors, *, eta: float) -> None:
    """(7b)  x = x - eta (x - 1/n sum_a x^a)"""
    torch._foreach_lerp_(x, mean, eta)


def eq_8a(y: Tensors, v: Tensors, g: Tensors, xa: Tensors, *, eta: float, gamma: float, mu: float) -> None:
    """(8a)  y^a = y^a - eta' [ grad f(y^a) + (y^a - x^a) / gamma ]        the same as (6a)"""
    eq_6a(y, v, g, xa, eta=eta, gamma=gamma, mu=mu)


def eq_8a_apart(y: Tensors, xa: Tensors, *, eta: float, gamma: float) -> None:
    """(8a) after an optimiser's own step on grad f(y^a): y^a = y^a - eta'/gamma (y^a - x^a), as AdamW's decay"""
    torch._foreach_lerp_(y, xa, eta / gamma)


def eq_8b(z: Tensors, y: Tensors, *, alpha: float) -> None:
    """(8b)  z^a = alpha z^a + (1 - alpha) y^a        the same as (6b)"""
    eq_6b(z, y, alpha=alpha)


def eq_8c(xa: Tensors, v: Tensors, z: Tensors, x: Tensors, *, eta: float, rho: float, mu: float) -> None:
    """(8c)  x^a = x^a - eta (x^a - z^a) - eta/rho (x^a - x)        at the end of a round"""
    d = torch._foreach_sub(xa, z)
    torch._foreach_add_(d, torch._foreach_sub(xa, x), alpha=1 / rho)
    nesterov(xa, v, d, eta=eta, mu=mu)


def eq_8d(x: Tensors, n: int) -> None:
    """(8d) with eta'' = rho/n (section 3.1)  x = 1/n sum_a x^a        x comes in as the sum"""
    torch._foreach_div_(x, n)


def eq_8d_free(x: Tensors, v: Tensors, mean: Tensors, *, eta: float, rho: float, n: int, mu: float) -> None:
    """(8d)  x = x - (eta'' n / rho) (x - 1/n sum_a x^a)        with any eta'', and momentum (Remark 2)"""
    nesterov(x, v, torch._foreach_sub(x, mean), eta=eta * n / rho, mu=mu)


def eq_9(initial: float, t: int, B: int, *, clip: float) -> float:
    """(9)  gamma_t = max(1, gamma_0 (1 - 1/(2B))^t) ;  rho_t = max(0.1, rho_0 (1 - 1/(2B))^t)"""
    return max(clip, initial * (1 - 1 / (2 * B)) ** t)
