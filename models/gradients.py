"""How the gradients of the tasks are combined at the shared embedding.

Tang et al., Touch the Core: Exploring Task Dependence Among Hybrid Targets for Recommendation (HTLNet), RecSys 2024,
Algorithm 1, equations 16 and 17.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.config import CoreGradients


class CoreRule:
    """The gradient of the shared embedding as a combination of the tasks' gradients.

    It combines gradients with respect to the embedding's output, not its tables. This costs a fraction of the time and
    gives the same inner products for single ids that do not repeat in the batch. The paper does not say which of the
    two it uses.
    """

    def __init__(self, tasks: Sequence[str], config: CoreGradients) -> None:
        self._config = config
        self._core = len(tasks) - 1 if config.core is None else tasks.index(config.core)
        others = [name for i, name in enumerate(tasks) if i != self._core]
        self._others = [i for i in range(len(tasks)) if i != self._core]
        self.diagnostics = (
            *(f"gradient_norm/{name}" for name in tasks),
            *(f"gradient_cosine/{name}" for name in others),
            *(f"gradient_conflict/{name}" for name in others),
        )

    def __call__(
        self, losses: Tensor, leaves: list[Tensor], total: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients for the leaves.

        Args:
            losses: ``(tasks,)``, this worker's share of each.
            leaves: outputs of the embedding, each ``(batch, ...)``.
            total: sum over all workers, so that directions and lengths are those of the global batch.

        Returns:
            One gradient per leaf, and the numbers that `diagnostics` names, detached.
        """
        by_task = [
            torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in losses
        ]
        stacked = [torch.stack(gradients) for gradients in zip(*by_task, strict=True)]  # per leaf: (tasks, batch, ...)
        flat = [gradients.flatten(1) for gradients in stacked]
        products = torch.stack([rows @ rows.T for rows in flat]).double().sum(0)
        summed = total(torch.cat([products.flatten(), products.new_ones(1)]))
        workers = summed[-1]
        products = summed[:-1].view_as(products) / workers.square()  # for the mean over the global batch
        coefficients = core_coefficients(products, self._core, self._config).to(losses.dtype)
        return [torch.einsum("t,t...->...", coefficients, rows) for rows in stacked], self._measure(products)

    def _measure(self, products: Tensor) -> Tensor:
        norms = products.diagonal().clamp(min=0).sqrt()
        dots = products[self._core, self._others]
        cosines = dots / (norms[self._core] * norms[self._others]).clamp(min=torch.finfo(norms.dtype).tiny)
        return torch.cat([norms, cosines, (dots < 0).to(norms.dtype)]).float()


def core_coefficients(products: Tensor, core: int, config: CoreGradients) -> Tensor:
    """Factors of the tasks' gradients in ``G_core + sum_t G'_t``.

        direction (16):  G_t <- G_t - projection <G_t, G_core> / |G_core|^2 G_core    where <G_t, G_core> < 0
        magnitude (17):  G'_t = gamma r G_t + (1 - gamma) G_t,   r = |G_core| / |G_t| within [1 / C, C]

    The core gradient itself is never changed. Where a gradient has length zero, both steps are skipped.

    Args:
        products: inner products of the tasks' gradients, ``(tasks, tasks)``.
        core: index of the core task.
        config: configuration of the rule.

    Returns:
        ``(tasks,)``.
    """
    core_square, squares, dots = products[core, core], products.diagonal(), products[core]
    removed = torch.where((dots < 0) & (core_square > 0), config.projection * dots / core_square, 0.0)
    lengths = (squares - 2 * removed * dots + removed.square() * core_square).clamp(min=0).sqrt()
    ratios = (core_square.sqrt() / lengths).clamp(1 / config.max_ratio, config.max_ratio)
    ratios = torch.where((lengths > 0) & (core_square > 0), ratios, 1.0)
    factors = config.gamma * ratios + (1 - config.gamma)
    is_other = torch.arange(len(squares), device=products.device) != core
    factors = torch.where(is_other, factors, 1.0)
    of_core = (factors * removed * is_other).sum()
    return factors - torch.where(is_other, 0.0, of_core)
