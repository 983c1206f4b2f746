"""Rule of MultiheadAttention: its projections are linear layers on sequences, recorded as such.

Scaled dot-product attention itself has no parameters and needs no rule. With ``batch_first=True`` the examples lie
in dimension 0 of query, key and value; with ``batch_first=False`` in dimension 1, and only there: a model around
such a layer must still hold examples first, and transpose for the call.
Legend: B examples, T positions of the query, S of the key, E features, H heads.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.projections import Part, project
from leptonai.security.privacy.pytorch.tape import Rule, Tape
from leptonai.security.privacy.pytorch.tapping import TapedRule, per_example_copies


class AttentionRule(TapedRule):
    """MultiheadAttention with packed or separate projections, all options."""

    def _taped(
        self,
        layer: Any,
        tape: Tape,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        _check_batch(layer, tape, query, key, value)
        if is_causal and attn_mask is None:
            raise InputError("MultiheadAttention: is_causal needs attn_mask too")
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else _float_mask(attn_mask, query)
        padding = _float_mask(key_padding_mask, query)
        if not layer.batch_first:
            # Keeps "the same tensor" the same, on which the packed projection depends.
            views = {id(each): each.transpose(0, 1) for each in (query, key, value)}
            query, key, value = (views[id(each)] for each in (query, key, value))
        q, k, v = self._in_projection(layer, tape, query, key, value)
        k, v, num_extra = self._with_extra(layer, tape, k, v)
        mask_BHTS = _merged(layer, mask, padding, num_examples=len(q), num_extra=num_extra)
        out, weights = _attend(layer, q, k, v, mask_BHTS, need_weights=need_weights, is_causal=causal)
        out = self._out_projection(layer, tape, out)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return (out if layer.batch_first else out.transpose(0, 1)), weights

    def _in_projection(
        self, layer: Any, tape: Tape, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, T, E) each."""
        size, bias = layer.embed_dim, layer.in_proj_bias
        same, pair = query is key and key is value, key is value
        streams = [query, key, value]
        if layer.in_proj_weight is None:
            weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
            parts = [
                Part(weight, slice(0, size), bias, slice(i * size, (i + 1) * size))
                for i, weight in enumerate(weights)
            ]
            q, k, v = project(tape, self._chooser, streams, parts)
            return q, k, v
        bounds = [0, 3 * size] if same else [0, size, 3 * size] if pair else [0, size, 2 * size, 3 * size]
        rows = [slice(low, high) for low, high in itertools.pairwise(bounds)]
        parts = [Part(layer.in_proj_weight, each, bias, each) for each in rows]
        outs = project(tape, self._chooser, streams[: len(parts)], parts)
        found: list[Tensor] = []
        for out in outs:
            found += _unpacked(out, size)
        q, k, v = found
        return q, k, v

    def _out_projection(self, layer: Any, tape: Tape, heads_BTE: Tensor) -> Tensor:
        """The last map, (B, T, E) to (B, T, E)."""
        last = layer.out_proj
        part = Part(last.weight, slice(0, layer.embed_dim), last.bias, slice(0, layer.embed_dim))
        (out,) = project(tape, self._chooser, [heads_BTE], [part])
        return out

    def _with_extra(self, layer: Any, tape: Tape, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append the learned position and the zero one; says how many were appended."""
        extra = 0
        if layer.bias_k is not None:
            k = torch.cat([k, _extra_position(tape, layer.bias_k, len(k))], dim=1)
            v = torch.cat([v, _extra_position(tape, layer.bias_v, len(v))], dim=1)
            extra += 1
        if layer.add_zero_attn:
            zero = k.new_zeros(len(k), 1, layer.embed_dim)
            k, v = torch.cat([k, zero], dim=1), torch.cat([v, zero], dim=1)
            extra += 1
        return k, v, extra


def _extra_position(tape: Tape, parameter: nn.Parameter, num_examples: int) -> Tensor:
    """(B, 1, E): each example's own copy of a (1, 1, E) parameter."""
    if not parameter.requires_grad:
        return parameter.detach().expand(num_examples, 1, -1)
    copies = per_example_copies(tape, parameter, key=("bias_kv",), num_examples=num_examples)
    return copies.view(num_examples, 1, -1)


def _unpacked(projected: Tensor, size: int) -> tuple[Tensor, ...]:
    """(B, T, n * E) as n of (B, T, E), n >= 1."""
    return (projected,) if projected.shape[-1] == size else projected.split(size, dim=-1)


def _merged(
    layer: Any, mask: Tensor | None, padding: Tensor | None, *, num_examples: int, num_extra: int
) -> Tensor | None:
    """Both masks as one that broadcasts to (B, H, T, S); appended positions are open."""
    if mask is not None:
        mask = F.pad(mask, (0, num_extra))
        mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (num_examples, layer.num_heads))
    if padding is None:
        return mask
    padding = F.pad(padding, (0, num_extra))[:, None, None, :]
    return padding if mask is None else mask + padding


def _attend(
    layer: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    need_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention of (B, T, E) on (B, S, E): (B, T, E), and the weights (B, H, T, S) if they are asked for."""
    dropout = layer.dropout if layer.training else 0.0
    q, k, v = (each.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, p=dropout) if dropout > 0 else weights
        out = weights @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    return out.transpose(1, 2).flatten(2), weights


def _float_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask to be added to the scores."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def _check_batch(layer: Any, tape: Tape, *streams: Tensor) -> None:
    dim = 0 if layer.batch_first else 1
    for each in streams:
        if each.dim() != 3 or each.shape[dim] != tape.num_examples:
            raise InputError(
                f"MultiheadAttention(batch_first={layer.batch_first}): expected the {tape.num_examples} examples "
                f"of the pass in dimension {dim} of a 3-dimensional input, found shape {tuple(each.shape)}",
                hint="use batch_first=True and inputs (examples, positions, features)",
            )


def rules(chooser: Chooser) -> dict[type[nn.Module], Rule]:
    """Layer type to rule."""
    return {nn.MultiheadAttention: AttentionRule(chooser)}


RULES: dict[type[nn.Module], Rule] = rules(Chooser())
"""Layer type to rule."""
