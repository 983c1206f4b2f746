"""Sends a model's layers through their rules for the length of one pass, and puts them back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch import attention, embedding, normalisation, recurrent, refusals
from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.convolution import ConvolutionRule
from leptonai.security.privacy.pytorch.fallback import FallbackRule
from leptonai.security.privacy.pytorch.linear import LinearRule
from leptonai.security.privacy.pytorch.tape import Rule, Tape


def default_rules() -> dict[type[nn.Module], Rule]:
    """The rules of every layer type known here; what one call returns shares its timed choices."""
    chooser = Chooser()
    convolution = ConvolutionRule(chooser)
    return {
        nn.Linear: LinearRule(chooser),
        nn.Conv1d: convolution,
        nn.Conv2d: convolution,
        nn.Conv3d: convolution,
        **embedding.RULES,
        **normalisation.RULES,
        **attention.rules(chooser),
        **recurrent.rules(chooser),
        **refusals.RULES,
    }


@dataclass(frozen=True, slots=True)
class Site:
    """A module that goes through a rule.

    Args:
        name: as in ``model.named_modules()``.
        module: the layer, with all that lies below it.
        rule: how its gradients are found.
        parameters: the trainable ones that it covers.
    """

    name: str
    module: nn.Module
    rule: Rule
    parameters: tuple[nn.Parameter, ...]


def find_sites(model: nn.Module, rules: Mapping[type, Rule]) -> tuple[Site, ...]:
    """Which modules go through which rule: the outermost that have one, or that own trainable parameters.

    Raises:
        InputError: a module cannot be trained privately; the message names it and the substitute.
    """
    for name, module in model.named_modules():
        rule = _rule_of(module, rules)
        reason = None if rule is None else rule.refusal(module)
        if reason is not None:
            raise InputError(f"{name or type(module).__name__}: {reason}")
    sites: list[Site] = []
    seen: set[int] = set()

    def visit(module: nn.Module, name: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        rule = _rule_of(module, rules)
        if rule is None and any(
            each.requires_grad for each in module._parameters.values() if each is not None
        ):
            rule = FallbackRule()
        if rule is None:
            for child_name, child in module.named_children():
                visit(child, f"{name}.{child_name}" if name else child_name)
            return
        parameters = tuple(each for each in module.parameters() if each.requires_grad)
        if parameters:
            sites.append(Site(name or type(module).__name__, module, rule, parameters))

    visit(model, "")
    return tuple(sites)


def _rule_of(module: nn.Module, rules: Mapping[type, Rule]) -> Rule | None:
    """The rule of the module's type, or of the ancestor whose forward it runs unchanged."""
    for base in type(module).__mro__:
        if base in rules:
            changed = getattr(type(module), "forward", None) is not getattr(base, "forward", None)
            return None if changed else rules[base]
    return None


@contextlib.contextmanager
def installed(sites: tuple[Site, ...], tape: Tape) -> Iterator[None]:
    """Within, each site's module runs its rule; afterwards every module is as before."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for site in sites:
            before.append((site.module, site.module.__dict__.get("forward")))
            site.module.__dict__["forward"] = _through(site, tape)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def _through(site: Site, tape: Tape) -> Callable[..., Any]:
    def forward(*inputs: Any, **options: Any) -> Any:
        try:
            return site.rule.forward(site.module, tape, *inputs, **options)
        except InputError as error:
            raise InputError(f"{site.name}: {error.message}", hint=error.hint) from error

    return forward
