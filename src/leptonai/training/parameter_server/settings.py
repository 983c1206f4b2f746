"""The part of a job that asks for a parameter server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.consistency import (
    Consistency,
    ElasticAveraging,
    StreamingDiloco,
    is_local,
    parse_consistency,
)

Durability = Literal["journal", "replica", "none"]
Reads = Literal["auto", "views", "copies"]
Transport = Literal["auto", "tcp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterServer:
    """Train with parameters in server processes instead of all-reduce.

    Args:
        consistency: how far workers may drift apart, as a value or as text such as ``"ssp(3)"``.
        servers: server processes, >= 1; None: as many as the plan finds useful.
        durability: ``"journal"``: an acknowledged update survives the death of its server process;
            ``"replica"``: also that of its machine, by a second server elsewhere; ``"none"``: neither, and faster.
        codec: how pushes are compressed, such as ``"int8"`` or ``"topk(0.01)+fp16"``; empty: float32.
        reads: ``"views"``: workers compute from the servers' memory itself, ``"copies"``: from a copy in which
            no update is half done. ``"auto"``: views where nobody updates while others compute, else copies.
        delay_compensation: lambda of DC-ASGD, >= 0: ``g + lambda * g * g * (w_now - w_read)`` (Zheng et al. 2017).
        staleness_scaled_lr: divide the learning rate of a push by its staleness, where that is above 1
            (Zhang et al. 2016).
        hogwild: workers of one host update the shared weights themselves, without locks (Recht et al. 2011);
            asynchronous plain SGD only, nothing survives a crash of the host's workers.
        record: keep the interleaving, so that ``lepton replay`` reproduces the run bit for bit.
        transport: ``"auto"``: shared memory between processes of one host; ``"tcp"``: TCP also there.
        tcp_fallback: use TCP on the same host where shared memory is too small, instead of ending.

    Raises:
        InputError: a value lies outside its range, or two do not go together.

    >>> ParameterServer(consistency="ssp(3)").mode
    Ssp(staleness=3)
    """

    consistency: Consistency | str = "bsp"
    servers: int | None = None
    durability: Durability = "journal"
    codec: str = ""
    reads: Reads = "auto"
    delay_compensation: float = 0.0
    staleness_scaled_lr: bool = False
    hogwild: bool = False
    record: bool = False
    transport: Transport = "auto"
    tcp_fallback: bool = False

    def __post_init__(self) -> None:
        if self.servers is not None and (type(self.servers) is not int or self.servers < 1):
            raise InputError(f"ParameterServer: expected servers >= 1, found {self.servers!r}")
        for name, words in (
            ("durability", ("journal", "replica", "none")),
            ("reads", ("auto", "views", "copies")),
            ("transport", ("auto", "tcp")),
        ):
            if getattr(self, name) not in words:
                raise InputError(
                    f"ParameterServer: unknown {name} {getattr(self, name)!r}",
                    hint=f"one of {', '.join(words)}",
                )
        if not self.delay_compensation >= 0.0:
            raise InputError(
                f"ParameterServer: expected delay_compensation >= 0, found {self.delay_compensation}"
            )
        self._check_together()

    @property
    def mode(self) -> Consistency:
        """The consistency setting as a value."""
        return parse_consistency(self.consistency) if isinstance(self.consistency, str) else self.consistency

    @property
    def identity(self) -> str:
        """What of these settings alters results, as text: not how many servers there are, or how they are reached."""
        same = dataclasses.replace(
            self, consistency=self.mode, servers=None, durability="none", reads="auto", record=False,
            transport="auto", tcp_fallback=False,
        )  # fmt: skip
        return repr(same)

    def _check_together(self) -> None:
        mode = self.mode
        if self.record and (self.hogwild or self.reads == "views"):
            raise InputError(
                "ParameterServer: record needs copies: what a view or Hogwild reads cannot be recorded",
                hint='reads="copies", hogwild=False',
            )
        if is_local(mode) and (self.delay_compensation or self.staleness_scaled_lr):
            raise InputError(
                "ParameterServer: delay_compensation and staleness_scaled_lr act on gradients, "
                "not on the movements of a local mode",
                hint="use asp or ssp, or leave them out",
            )
        if isinstance(mode, StreamingDiloco | ElasticAveraging) and self.codec:
            raise InputError(
                f"ParameterServer: codec {self.codec!r} does not go with this mode",
                hint="streaming_diloco compresses by its own bits, elastic_averaging not at all",
            )
        if self.transport == "tcp" and (self.hogwild or self.reads == "views"):
            raise InputError(
                "ParameterServer: over TCP nobody computes from the servers' own memory",
                hint='reads="copies", hogwild=False',
            )
        if self.hogwild and (self.codec or self.delay_compensation or self.durability != "none"):
            raise InputError(
                "ParameterServer: hogwild workers update shared memory themselves: "
                "no codec, delay_compensation or durability",
                hint='durability="none", codec=""',
            )
