"""Renames state-dict keys between namings by the rules of ``key_tables``."""

import re
from collections.abc import Iterable
from functools import lru_cache

from mobilevit_kernels.models.checkpoints.key_tables import (
    FORMATS,
    GENERATIONS,
    HF_PREFIXES,
    PARAMETERS,
    TABLES,
    Format,
    Generation,
    Names,
)

_STAGE_OFFSET: dict[Format, int] = {"timm": 0, "cvnets": 1, "hf": 0}
_CONV_STAGES, _BLOCK_STAGES = (0, 1), (2, 3, 4)


@lru_cache
def _patterns(source: Format, generation: Generation) -> tuple[tuple[re.Pattern[str], Names], ...]:
    """One compiled pattern for each module of a naming."""
    offset = _STAGE_OFFSET[source]
    groups = {
        "c": "[" + "".join(str(stage + offset) for stage in _CONV_STAGES) + "]",
        "t": "[" + "".join(str(stage + offset) for stage in _BLOCK_STAGES) + "]",
        "j": r"\d+",
        "depth": r"\d+",
    }

    def pattern(template: str) -> re.Pattern[str]:
        escaped = re.escape(template)
        for name, expression in groups.items():
            escaped = escaped.replace(rf"\{{{name}\}}", f"(?P<{name}>{expression})")
        return re.compile(escaped)

    return tuple((pattern(getattr(names, source)), names) for names in TABLES[generation])


@lru_cache(maxsize=4096)
def _parse_module(module: str, source: Format, generation: Generation) -> tuple[Names, dict[str, int]] | None:
    """The module that a name stands for and its indices, stages counted from 0; None if no rule fits."""
    for pattern, names in _patterns(source, generation):
        match = pattern.fullmatch(module)
        if match is not None:
            indices = {name: int(value) for name, value in match.groupdict().items()}
            for stage in ("c", "t"):
                if stage in indices:
                    indices[stage] -= _STAGE_OFFSET[source]
            return names, indices
    return None


def _parse(key: str, source: Format, generation: Generation) -> tuple[Names, dict[str, int], str] | None:
    """Splits a key into module, indices and parameter name; None if no rule fits."""
    module, _, parameter = key.rpartition(".")
    parsed = _parse_module(module, source, generation) if parameter in PARAMETERS else None
    return None if parsed is None else (parsed[0], dict(parsed[1]), parameter)


def _write(
    names: Names, indices: dict[str, int], parameter: str, target: Format, generation: Generation
) -> str | None:
    """The key in the target's naming; None if it needs the depth of a stage whose layers are not there."""
    template = getattr(names, target)
    if "{depth}" in template and "depth" not in indices:
        return None
    offset = _STAGE_OFFSET[target]
    name = template.format(
        **{key: value + offset if key in ("c", "t") else value for key, value in indices.items()}
    )
    if target == "hf" and not name.startswith("classifier"):
        name = HF_PREFIXES[generation] + name
    return f"{name}.{parameter}"


def rename_keys(
    keys: Iterable[str], source: Format, target: Format, generation: Generation
) -> tuple[dict[str, str], list[str]]:
    """Maps keys of one naming to another.

    Keys of transformers come without the model's prefix and with query, key and value joined as ``qkv``; they go out
    with the prefix and joined.

    Returns:
        (source key -> target key, keys that no rule can rename, or only to a name that another key has).
    """
    parsed = {key: _parse(key, source, generation) for key in keys}
    depths: dict[int, int] = {}
    for parts in parsed.values():
        if parts is not None and "t" in parts[1] and "transformer" in parts[0].timm:
            stage, layer = parts[1]["t"], parts[1]["j"]
            depths[stage] = max(depths.get(stage, 0), layer + 1)
    renamed: dict[str, str] = {}
    unknown: list[str] = []
    taken: set[str] = set()
    for key, parts in parsed.items():
        if parts is None:
            unknown.append(key)
            continue
        names, indices, parameter = parts
        if "depth" not in indices and "t" in indices and indices["t"] in depths:
            indices["depth"] = depths[indices["t"]]
        name = _write(names, indices, parameter, target, generation)
        if name is None or name in taken:
            unknown.append(key)
            continue
        taken.add(name)
        renamed[key] = name
    return renamed, unknown


def count_matches(keys: Iterable[str]) -> dict[tuple[Format, Generation], int]:
    """Counts, for each naming and generation, the keys that a rule names."""
    keys = list(keys)
    return {
        (source, generation): sum(_parse(key, source, generation) is not None for key in keys)
        for source in FORMATS
        for generation in GENERATIONS
    }
