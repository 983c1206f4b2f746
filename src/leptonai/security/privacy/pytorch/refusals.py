"""What cannot be trained privately, by type: modules whose result for one example depends on the others."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from leptonai.core.errors import Refused
from leptonai.security.privacy.pytorch import embedding, normalisation
from leptonai.security.privacy.pytorch.tape import Rule, Tape

_BATCH_NORM = (
    "{name} normalises each example by the others, so that no example's effect can be bounded; use "
    "GroupNorm(min(32, {features}), {features}) or InstanceNorm"
)
_MIXTURE = re.compile(
    r"MoE|MOE|Moe([A-Z0-9]|$)|Mixture_?Of_?Experts|Switch(MLP|FFN|Transformer)|ExpertRouter"
)
"""Type names of layers that route examples to experts of limited room."""

_BATCH_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


def refusal(module: nn.Module) -> str | None:
    """Why a module cannot take part in private training, with the substitute; None: nothing known against it.

    >>> refusal(nn.GroupNorm(2, 8)) is None
    True
    """
    layer: Any = module
    kind = type(module)
    name = kind.__name__
    if isinstance(module, LazyModuleMixin):
        return f"{name} has no parameters yet; run the model once on an example, or give the sizes"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _BATCH_NORM.format(name=name, features=layer.num_features)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return normalisation.InstanceNormRule().refusal(module)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and layer.weight.requires_grad:
        return embedding.RULES[nn.Embedding if isinstance(module, nn.Embedding) else nn.EmbeddingBag].refusal(
            module
        )
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        if not layer.self_attn.batch_first:
            return (
                f"{name} with batch_first=False gives its inner layers the examples in dimension 1; "
                "use batch_first=True and inputs (examples, positions, features)"
            )
        return None
    if "weight" not in module._parameters and isinstance(getattr(module, "weight", None), Tensor):
        return (
            f"{name} computes its weight from other parameters (weight or spectral normalisation), whose gradients its "
            "rule does not see; use torch.nn.utils.parametrize.remove_parametrizations, or LayerNorm"
        )
    if _MIXTURE.search(name):
        return f"{name} seems to route examples to experts, where they compete for room; use a dense layer"
    return None


def check_model(model: nn.Module) -> None:
    """Check everything about a model that shows without running it.

    Raises:
        Refused: a module or parameter cannot be trained privately; the message names its full path and what to use.

    >>> check_model(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    Traceback (most recent call last):
        ...
    leptonai.core.errors.Refused: 1: BatchNorm1d normalises each example by the others, so that no example's \
effect can be bounded; use GroupNorm(min(32, 4), 4) or InstanceNorm
    """
    for path, module in model.named_modules():
        reason = refusal(module)
        if reason is not None:
            raise Refused(f"{path or 'the model'}: {reason}")
    trainable = [(path, each) for path, each in model.named_parameters() if each.requires_grad]
    if not trainable:
        raise Refused(
            "the model has no trainable parameter", hint="set requires_grad on what is to be trained"
        )
    for path, parameter in trainable:
        if parameter.dtype != torch.float32:
            raise Refused(
                f"{path}: private training needs float32 parameters, found {parameter.dtype}",
                hint="model.float(), or freeze the parameter",
            )


class RefusalRule:
    """Stands in the table of rules for types that have none."""

    def refusal(self, module: nn.Module) -> str | None:
        """See :func:`refusal`."""
        return refusal(module)

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """The plain module: reached only where nothing was refused."""
        return type(module).forward(module, *inputs, **options)


RULES: dict[type[nn.Module], Rule] = {kind: RefusalRule() for kind in _BATCH_NORMS}
"""Layer type to rule."""
