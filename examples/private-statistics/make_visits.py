"""Makes ``visits.csv``: visits to the libraries of a few cities. All of it is invented; the seed is fixed."""

from __future__ import annotations

import random
from pathlib import Path

CITIES = ["Paris"] * 5 + ["Rome"] * 3 + ["Oslo"] * 2
chance = random.Random(7)

lines = ["visitor,city,age,minutes"]
for visitor in range(2000):
    city, age = chance.choice(CITIES), min(95, 6 + int(chance.gammavariate(3, 12)))
    for _ in range(min(12, 1 + int(chance.expovariate(0.8)))):
        minutes = min(400, int(chance.gammavariate(2, 25)))
        lines.append(f"v{visitor},{city},{age},{minutes}")
lines.append("v2000,Longyearbyen,41,300")  # the only visitor from there
Path("visits.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
