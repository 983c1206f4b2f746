"""Where the time of one layout goes, in words: each phase with its seconds, its formula and the formula's source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leptonai.compute.prediction.layouts import Layout, Layouts
from leptonai.compute.prediction.outcome import PHASES, Predictor

PHASE_SOURCES: Mapping[str, str] = {
    "forward": "micro-batches x layers of a stage x roofline of four matrix products, attention and "
    "element-wise traffic, and the output with its loss (Shoeybi et al. 2019, section 3; "
    "Williams et al. 2009)",
    "backward": "twice the forward pass (Narayanan et al. 2021, appendix)",
    "recompute": "the layer's forward pass again, or attention's scores alone (Korthikanti et al. 2022, "
    "sections 4 and 5)",
    "host": "what the framework's calls for each layer take beyond the device's time, by a soft "
    "maximum; a tensor group waits for its slowest host (fitted to measured rows of vTrain, "
    "Bang et al. 2024)",
    "tensor exchange": "two all-reduces of activations forward, two backward and two when recomputed, a layer "
    "(Shoeybi et al. 2019, section 3); with sequence parallelism the same bytes (Korthikanti et"
    " al. 2022, section 4.2)",
    "pipeline exchange": "an activation and its gradient between stages, for each micro-batch and chunk, in slices "
    "that are gathered again (Narayanan et al. 2021, section 4.1)",
    "pipeline bubble": "(stages - 1) / chunks micro-batches of a middle stage (Narayanan et al. 2021, section 2.2)",
    "gradient exchange": "a ring all-reduce over replicas, in nodes and then between them (Patarasuk & Yuan 2009; "
    "Jia et al. 2018), its copies and the tied embeddings'; reduce-scatter where states are "
    "divided (Rajbhandari et al. 2020)",
    "parameter exchange": "all-gather of parameters after the update, or of each layer forward and backward "
    "(Rajbhandari et al. 2020, section 7; Zhao et al. 2023)",
    "update": "the optimiser's memory traffic for each parameter a device updates, and its calls",
}
"""How each phase of a transformer's step is computed."""


@dataclass(frozen=True, slots=True)
class ExplainedPhase:
    """One phase.

    Args:
        name: from ``PHASES``.
        seconds: of one step.
        share: of the step.
        formula: how it was computed, and who says so.
    """

    name: str
    seconds: float
    share: float
    formula: str


def explain(predictor: Predictor, layout: Layout) -> tuple[ExplainedPhase, ...]:
    """The phases of one layout that take any time, in the order of ``PHASES``; their seconds add up to the step."""
    found = predictor.predict(Layouts.of([layout]))
    step = float(found.step_seconds[0])
    return tuple(
        ExplainedPhase(
            name,
            float(found.phases[name][0]),
            float(found.phases[name][0]) / step,
            PHASE_SOURCES.get(name, ""),
        )
        for name in PHASES
        if name in found.phases and found.phases[name][0] > 0
    )
