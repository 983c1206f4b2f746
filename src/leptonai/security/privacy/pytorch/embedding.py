"""Rules of Embedding and EmbeddingBag: an example's gradient has a row only for each id it uses.

An id that an example uses several times has one row, the sum; a norm taken use by use would be wrong.
Legend: B examples, N uses of an id in the whole batch, U pairs of example and id, V ids, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.tape import Rule, Tape
from leptonai.security.privacy.pytorch.tapping import require_examples_first, tap, trainable


@dataclass(slots=True)
class RowsRecord:
    """The rows of a table that each example uses, with their gradients.

    Args:
        parameters: the table, (V, D).
        key: see :class:`~leptonai.security.privacy.pytorch.tape.Record`.
        num_examples: B.
        examples_U, ids_U: who uses which row; no pair twice.
        rows_UD: the gradients.
    """

    parameters: tuple[nn.Parameter, ...]
    key: tuple[Any, ...]
    num_examples: int
    examples_U: Tensor
    ids_U: Tensor
    rows_UD: Tensor

    def squared_norms_B(self) -> Tensor:
        """(B,): each example's squared norm."""
        norms_U = torch.linalg.vector_norm(self.rows_UD, dim=1).square_()
        norms_B: Tensor = norms_U.new_zeros(self.num_examples)
        return norms_B.index_add_(0, self.examples_U, norms_U)

    def per_example(self) -> tuple[Tensor, ...]:
        """(B, V, D): mostly zeros."""
        grads = self.rows_UD.new_zeros(self.num_examples, *self.parameters[0].shape)
        grads[self.examples_U, self.ids_U] = self.rows_UD
        return (grads,)

    def add_weighted(self, factors_B: Tensor, out: tuple[Tensor, ...]) -> None:
        """Add ``sum_i factors_i * gradient_i`` to ``out``."""
        factors_U, ids_U, rows_UD = factors_B[self.examples_U], self.ids_U, self.rows_UD
        kept_U = factors_U != 0
        if not bool(kept_U.all()):
            factors_U, ids_U, rows_UD = factors_U[kept_U], ids_U[kept_U], rows_UD[kept_U]
        out[0].index_add_(0, ids_U, rows_UD * factors_U[:, None])


def rows_record(
    module: nn.Module,
    *,
    num_examples: int,
    examples_N: Tensor,
    ids_N: Tensor,
    grads_D: Tensor,
    weights_N: Tensor | None,
) -> RowsRecord:
    """A record of the module's ``weight`` from single uses: the uses of a row by an example become one.

    Args:
        module: an Embedding or EmbeddingBag; uses of its ``padding_idx`` are left out.
        num_examples: B.
        examples_N, ids_N: which example uses which row.
        grads_D: each use's gradient, (N, D); with ``weights_N`` each example's, (B, D).
        weights_N: what each use's gradient is in units of its example's; None: they have their own.
    """
    layer: Any = module
    num_rows = layer.num_embeddings
    if layer.padding_idx is not None:
        real_N = ids_N != layer.padding_idx
        examples_N, ids_N = examples_N[real_N], ids_N[real_N]
        grads_D = grads_D[real_N] if weights_N is None else grads_D
        weights_N = None if weights_N is None else weights_N[real_N]
    pairs_U, place_N = torch.unique(examples_N * num_rows + ids_N, return_inverse=True)
    examples_U = pairs_U // num_rows
    if weights_N is None:
        rows_UD = grads_D.new_zeros(len(pairs_U), grads_D.shape[1]).index_add_(0, place_N, grads_D)
    else:
        weights_U = weights_N.new_zeros(len(pairs_U)).index_add_(0, place_N, weights_N)
        rows_UD = grads_D[examples_U].mul_(weights_U[:, None])
    key = (type(module).__name__, tuple(layer.weight.shape), len(ids_N) // max(1, num_examples))
    return RowsRecord((layer.weight,), key, num_examples, examples_U, pairs_U % num_rows, rows_UD)


def _table_refusal(layer: Any) -> str | None:
    """What neither of the two can do privately."""
    name = type(layer).__name__
    if layer.max_norm is not None:
        return (
            f"{name} with max_norm rescales the rows in use, so that the weights show without noise which ids the "
            "data holds; leave max_norm out"
        )
    if layer.scale_grad_by_freq:
        return (
            f"{name} with scale_grad_by_freq scales one example's gradient by the others' ids; "
            "use scale_grad_by_freq=False"
        )
    if layer.sparse:
        return (
            f"{name} with sparse=True asks for a gradient that shows which ids were used, but noise must reach "
            "every row; use sparse=False"
        )
    return None


class EmbeddingRule:
    """Embedding on ids (B, ...)."""

    def refusal(self, module: nn.Module) -> str | None:
        """Options whose effect crosses examples or shows the ids."""
        return _table_refusal(module)

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """Look the ids up; record the rows' gradients."""
        layer: Any = module
        (ids,) = (*inputs, *options.values())
        if not (torch.is_grad_enabled() and trainable(layer.weight)):
            return type(layer).forward(layer, ids)
        require_examples_first(layer, tape, ids)
        y = F.embedding(ids, layer.weight.detach(), layer.padding_idx)

        def listen(grad: Tensor, ids: Tensor) -> None:
            num_examples, each = ids.shape[0], ids[0].numel() if len(ids) else 0
            examples_N = torch.arange(num_examples, device=ids.device).repeat_interleave(each)
            tape.add(
                rows_record(
                    layer,
                    num_examples=num_examples,
                    examples_N=examples_N,
                    ids_N=ids.reshape(-1).long(),
                    grads_D=grad.reshape(-1, grad.shape[-1]),
                    weights_N=None,
                )
            )

        return tap(tape, y, listen, ids)


class EmbeddingBagRule:
    """EmbeddingBag on ids (B, T), or on flat ids with the start of each of B bags: a bag is an example."""

    def refusal(self, module: nn.Module) -> str | None:
        """Options whose effect crosses examples or shows the ids; the mode ``max``."""
        layer: Any = module
        if layer.mode == "max":
            return 'EmbeddingBag with mode="max" has no rule; use mode="sum" or "mean", or Embedding and amax(dim=1)'
        return _table_refusal(module)

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """Sum or average the rows; record their gradients."""
        layer: Any = module
        if not (torch.is_grad_enabled() and trainable(layer.weight)):
            return type(layer).forward(layer, *inputs, **options)
        return self._taped(layer, tape, *inputs, **options)

    def _taped(
        self,
        layer: Any,
        tape: Tape,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        y = F.embedding_bag(
            input,
            layer.weight.detach(),
            offsets,
            mode=layer.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=layer.include_last_offset,
            padding_idx=layer.padding_idx,
        )
        require_examples_first(layer, tape, y)
        ids_N, examples_N = input.reshape(-1).long(), _bags(layer, input, offsets)
        weights = torch.ones(0) if per_sample_weights is None else per_sample_weights.reshape(-1)

        def listen(grad_BD: Tensor, ids_N: Tensor, examples_N: Tensor, weights: Tensor) -> None:
            weights_N = weights if per_sample_weights is not None else grad_BD.new_ones(len(ids_N))
            if layer.mode == "mean":
                weights_N = 1 / _bag_sizes(layer, ids_N, examples_N, len(grad_BD))[examples_N]
            tape.add(
                rows_record(
                    layer,
                    num_examples=len(grad_BD),
                    examples_N=examples_N,
                    ids_N=ids_N,
                    grads_D=grad_BD,
                    weights_N=weights_N,
                )
            )

        return tap(tape, y, listen, ids_N, examples_N, weights)


def _bags(layer: Any, ids: Tensor, offsets: Tensor | None) -> Tensor:
    """(N,): the bag of each id.

    Raises:
        InputError: the first bag does not start at 0, so that some ids belong to none.
    """
    if offsets is None:
        return torch.arange(ids.shape[0], device=ids.device).repeat_interleave(ids.shape[1])
    ends = (
        offsets[1:] if layer.include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
    )
    sizes = ends - (offsets[:-1] if layer.include_last_offset else offsets)
    if int(sizes.sum()) != len(ids):
        raise InputError("EmbeddingBag: the offsets leave ids that belong to no bag")
    return torch.arange(len(sizes), device=ids.device).repeat_interleave(sizes.long())


def _bag_sizes(layer: Any, ids_N: Tensor, examples_N: Tensor, num_examples: int) -> Tensor:
    """(B,) float32: how many ids count in each bag, at least 1."""
    counts = torch.ones(len(ids_N), device=ids_N.device)
    if layer.padding_idx is not None:
        counts = (ids_N != layer.padding_idx).float()
    return counts.new_zeros(num_examples).index_add_(0, examples_N, counts).clamp_(min=1)


RULES: dict[type[nn.Module], Rule] = {nn.Embedding: EmbeddingRule(), nn.EmbeddingBag: EmbeddingBagRule()}
"""Layer type to rule."""
