"""How long one kernel takes on a machine that was probed, by its kind, size, threads and busy neighbours.

A roofline (Williams et al. 2009) with a measured roof: products and convolutions follow a curve through what was
timed, everything else passes over memory at the rate measured at its size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from leptonai.compute.measured import Measured, RateSample
from leptonai.compute.prediction.curves import (
    UNKNOWN_ERROR,
    ByteCurve,
    ProductCurve,
    Timed,
    fit_bytes,
    fit_products,
)
from leptonai.compute.prediction.kernel_sizes import (
    FLOAT_BYTES,
    PRODUCT_DIMS,
    TOUCHES,
    UPDATE_TOUCHES,
    kernel_flops,
    moved_bytes,
)
from leptonai.core.errors import InputError

Setting = tuple[int, int]
"""Threads of a process, processes that compute at once."""

MEMORY_KINDS = (*TOUCHES, "gather")
STAND_INS = {
    "reduction": ("elementwise", "copy"),
    "copy": ("elementwise", "reduction"),
    "gather": ("copy", "elementwise"),
    "elementwise": ("copy", "reduction"),
}
"""Whose curve serves where a kind was not timed: bytes moved decide both."""
FAR_SETTING_ERROR = 0.25
"""Relative error where the threads or neighbours asked for were not measured, but others were."""


class Rates:
    """Times of kernels, from what a probe measured.

    Args:
        measured: the machine.
        precision: of the arithmetic.

    Raises:
        InputError: nothing in this precision was timed.
    """

    def __init__(self, measured: Measured, *, precision: str = "float32") -> None:
        self.measured, self._precision = measured, precision
        self._samples: dict[tuple[str, bool], dict[Setting, list[RateSample]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for sample in measured.kernels:
            if sample.precision == precision or sample.kind not in PRODUCT_DIMS:
                setting = (sample.threads, sample.num_busy)
                self._samples[sample.kind, sample.backward][setting].append(sample)
        if not any(kind in PRODUCT_DIMS for kind, _ in self._samples):
            raise InputError(
                f"nothing was measured in {precision}", hint="probe this machine: lepton cluster probe"
            )
        self._products: dict[tuple[str, bool, Setting], ProductCurve] = {}
        self._bytes: dict[tuple[str, Setting], ByteCurve] = {}

    # -- kernels ----------------------------------------------------------------------------------

    def product(
        self,
        kind: str,
        dims: Sequence[float],
        *,
        flops: float | None = None,
        threads: int = 1,
        num_busy: int = 1,
        backward: bool = False,
    ) -> Timed:
        """One matrix product or convolution.

        Args:
            kind: ``matmul`` (m, k, n), ``batched_matmul`` (batch, m, k, n) or ``convolution`` (images, input
                channels, output channels, kernel positions, output positions, groups).
            flops: of the call; None: those of its kind. A convolution may compute one gradient of two.
            backward: whether it is a gradient.

        Raises:
            InputError: not such a kind, or other dims.
        """
        whole = kernel_flops(kind, dims, backward=backward)
        wanted = whole if flops is None else flops
        found = self._setting(kind, backward, (threads, num_busy))
        if found is None and kind == "batched_matmul":
            one = self.product("matmul", dims[1:], threads=threads, num_busy=num_busy, backward=backward)
            return Timed(seconds=one.seconds * dims[0], error=math.hypot(one.error, FAR_SETTING_ERROR))
        if found is None and backward:
            return self.product(kind, dims, flops=wanted, threads=threads, num_busy=num_busy)
        if found is None:
            raise InputError(f"no {kind} was measured", hint="probe this machine: lepton cluster probe")
        timed = self._product_curve(kind, backward, found).seconds(dims, whole)
        share = wanted / whole if whole else 1.0
        return self._moved(
            Timed(seconds=timed.seconds * share, error=timed.error), found, (threads, num_busy)
        )

    def passing(self, kind: str, num_bytes: float, *, threads: int = 1, num_busy: int = 1) -> Timed:
        """One kernel that passes over so many bytes of memory, reading and writing together."""
        for each in (kind, *STAND_INS.get(kind, MEMORY_KINDS)):
            found = self._setting(each, False, (threads, num_busy))
            if found is not None:
                timed = self._byte_curve(each, found).seconds(num_bytes)
                return self._moved(timed, found, (threads, num_busy))
        bandwidth = self.bandwidth(threads=threads, num_busy=num_busy)
        return Timed(seconds=num_bytes / bandwidth, error=UNKNOWN_ERROR)

    def passing_once(self, kind: str, num_bytes: float, *, threads: int = 1, num_busy: int = 1) -> Timed:
        """As :meth:`passing`, over what nobody touched since the last step: it comes from memory, not from a cache.

        A kernel that is timed again and again finds tensors of a few MB in a cache, but the activations of a step
        push out what only its end needs.
        """
        timed = self.passing(kind, num_bytes, threads=threads, num_busy=num_busy)
        return self._from_memory(timed, num_bytes, threads, num_busy)

    def update(
        self,
        num_elements: float,
        *,
        num_tensors: int = 1,
        num_states: int = 1,
        threads: int = 1,
        num_busy: int = 1,
    ) -> Timed:
        """One fused step of an optimiser over all parameters, which come from memory: see :meth:`passing_once`.

        Args:
            num_elements: trainable numbers.
            num_tensors: they lie in.
            num_states: numbers it keeps for each: 0 plain SGD, 1 momentum, 2 Adam.
        """
        kind = "update_adam" if num_states >= 2 else "update_momentum"
        setting = self._setting(kind, False, (threads, num_busy))
        touches = 3 + 2 * num_states  # reads parameter, gradient and states, writes parameter and states
        if setting is None:
            return self.passing_once(
                "elementwise", touches * FLOAT_BYTES * num_elements, threads=threads, num_busy=num_busy
            )
        samples = self._samples[kind, False][setting]
        wanted = touches * FLOAT_BYTES * num_elements
        known = min(wanted, max(moved_bytes(kind, each.dims) for each in samples))
        timed = self._byte_curve(kind, setting).seconds(known)
        seconds = timed.seconds + _per_tensor(samples) * max(
            0, num_tensors - _tensors_at(samples, num_elements)
        )
        if wanted > known:  # there memory decides, not what a small step's calls made of its bytes
            seconds += self.passing(
                "elementwise", wanted - known, threads=setting[0], num_busy=setting[1]
            ).seconds
        whole = self._moved(Timed(seconds=seconds, error=timed.error), setting, (threads, num_busy))
        return self._from_memory(whole, wanted, threads, num_busy)

    def _from_memory(self, timed: Timed, num_bytes: float, threads: int, num_busy: int) -> Timed:
        if not self.measured.memory_bytes_per_second:
            return timed
        least = num_bytes / self.bandwidth(threads=threads, num_busy=num_busy)
        return Timed(seconds=max(timed.seconds, least), error=max(timed.error, COLD_ERROR))

    # -- the machine ------------------------------------------------------------------------------

    def call(self, *, backward: bool) -> float:
        """Seconds that one smallest operation adds to a forward pass, or to the backward pass after it."""
        for each in self._samples.get(("call", backward), {}).values():
            return each[0].seconds
        both = next((seconds for _, seconds in self.measured.call_seconds), 0.0)
        return both * (BACKWARD_SHARE if backward else 1.0 - BACKWARD_SHARE)

    def fixed_pass(self) -> float:
        """Seconds that a backward pass costs beside its operations."""
        for each in self._samples.get(("pass", True), {}).values():
            return each[0].seconds
        return 0.0

    def bandwidth(self, *, threads: int = 1, num_busy: int = 1) -> float:
        """Bytes a second that one process of several moves beyond the caches.

        Raises:
            InputError: memory was not measured.
        """
        known = dict(self.measured.memory_bytes_per_second)
        if not known:
            raise InputError("memory bandwidth was not measured", hint="lepton cluster probe")
        wanted = threads * num_busy
        near = min(known, key=lambda each: abs(math.log(each / wanted)))
        return known[near] / num_busy * min(1.0, wanted / near)

    # -- curves -----------------------------------------------------------------------------------

    def _setting(self, kind: str, backward: bool, wanted: Setting) -> Setting | None:
        """The measured setting nearest to the one asked for; None: this kind was not measured at all."""
        known = self._samples.get((kind, backward))
        if not known:
            return None
        return min(known, key=lambda each: _distance(each, wanted))

    def _moved(self, timed: Timed, found: Setting, wanted: Setting) -> Timed:
        """A time measured in one setting, as it should be in another: threads share the work of a call."""
        if found == wanted:
            return timed
        cores = self.measured.cores
        have = min(found[0], cores / found[1])
        want = min(wanted[0], cores / wanted[1])
        return Timed(seconds=timed.seconds * have / want, error=math.hypot(timed.error, FAR_SETTING_ERROR))

    def _product_curve(self, kind: str, backward: bool, setting: Setting) -> ProductCurve:
        key = (kind, backward, setting)
        if key not in self._products:
            samples = self._samples[kind, backward][setting]
            flops = [kernel_flops(kind, each.dims, backward=backward) for each in samples]
            self._products[key] = fit_products(
                [each.dims for each in samples], flops, [each.seconds for each in samples]
            )
        return self._products[key]

    def _byte_curve(self, kind: str, setting: Setting) -> ByteCurve:
        if (kind, setting) not in self._bytes:
            samples = self._samples[kind, False][setting]
            self._bytes[kind, setting] = fit_bytes(
                [moved_bytes(kind, each.dims) for each in samples], [each.seconds for each in samples]
            )
        return self._bytes[kind, setting]


COLD_ERROR = 0.25
"""Of what is charged at memory's bandwidth: some of it may lie in a cache after all, or another core be writing it."""
BACKWARD_SHARE = 0.6
"""Of a smallest call's forward and backward pass together, where only their sum is known: making and visiting
a node of the graph and adding up its gradient costs a little more than the call itself."""


def _distance(each: Setting, wanted: Setting) -> float:
    # Threads change a kernel's time more than neighbours do.
    return 2.0 * abs(math.log(each[0] / wanted[0])) + abs(math.log(each[1] / wanted[1]))


def _per_tensor(samples: Sequence[RateSample]) -> float:
    """What one tensor more costs a fused step: from the smallest steps, of one tensor and of several."""
    small = sorted(samples, key=lambda each: each.dims[1])[:2]
    if len(small) < 2 or small[1].dims[0] <= small[0].dims[0]:
        return 0.0
    more = small[1].dims[0] - small[0].dims[0]
    return max(0.0, small[1].seconds - small[0].seconds) / more


def _tensors_at(samples: Sequence[RateSample], num_elements: float) -> int:
    """Tensors of the measured step of about this size, whose cost its time holds already."""
    near = min(samples, key=lambda each: abs(math.log(each.dims[1] / max(num_elements, 1.0))))
    return near.dims[0]


__all__ = ["MEMORY_KINDS", "UPDATE_TOUCHES", "Rates", "Timed"]
