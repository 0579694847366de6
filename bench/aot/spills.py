"""Keeps the record of configurations that do not fit a target's registers."""

import json
import os
from collections.abc import Iterable

from mobilevit_kernels.triton_kernels.launch import Choice
from mobilevit_kernels.triton_kernels.tuning import SPILLS_FILE


def add_spills(faulty: Iterable[tuple[str, Choice]]) -> None:
    """Adds (target, candidate) pairs to ``spills.json``, which leaves them out from then on."""
    recorded: dict[str, dict[str, list[str]]] = json.loads(SPILLS_FILE.read_text())
    for target, choice in faulty:
        configs = recorded.setdefault(target, {}).setdefault(f"{choice.family} {choice.group}", [])
        if str(choice.config) not in configs:
            configs.append(str(choice.config))
    ordered = {
        target: {group: sorted(configs) for group, configs in sorted(groups.items())}
        for target, groups in sorted(recorded.items())
    }
    unfinished = SPILLS_FILE.with_suffix(".tmp")
    unfinished.write_text(json.dumps(ordered, indent=1) + "\n")
    os.replace(unfinished, SPILLS_FILE)
