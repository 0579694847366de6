"""Feature extraction: a network that returns the maps of its stages, with timm's interface for features_only."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilevit_kernels.models.mobilevit import MobileViT, check_images


class FeatureInfo:
    """Describes the maps of a network and which of them are returned.

    Args:
        info: one entry per map, with "num_chs", "reduction" (stride) and "module".
        out_indices: indices of the returned maps; negative ones count from the end.

    Raises:
        ValueError: an index is out of range.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [{**entry, "index": index} for index, entry in enumerate(info)]
        for index in out_indices:
            if not -len(self.info) <= index < len(self.info):
                raise ValueError(f"out_indices: expected indices of {len(self.info)} maps, got {index}")
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Returns the value of ``key``: of the returned maps, of map ``idx``, or of the maps in ``idx``."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Returns the entries (or only their ``keys``), selected as in :meth:`get`."""
        if isinstance(idx, int):
            return self._select(idx, keys)
        return [self._select(i, keys) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Returns the number of channels, selected as in :meth:`get`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Returns the stride with respect to the image, selected as in :meth:`get`."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Returns the name of the module in the full model, selected as in :meth:`get`."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the entry of one map."""
        return self.info[index]

    def __len__(self) -> int:
        """Returns the number of maps, returned or not."""
        return len(self.info)

    def _select(self, index: int, keys: Sequence[str] | None) -> dict[str, Any]:
        entry = self.info[index]
        return entry if keys is None else {key: entry[key] for key in keys}


class FeatureExtractor(nn.ModuleDict):
    """Returns the maps of selected stages, in order of depth; modules after the last of them are dropped.

    Stage i of the full model is the child ``stages_i``, so that a state dict of timm's extractor fits.

    Args:
        model: the network to take apart.
        out_indices: indices of the maps, negative ones from the end; an int n takes the last n.

    Raises:
        ValueError: an index is out of range.
    """

    def __init__(self, model: MobileViT, out_indices: int | Sequence[int] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        if isinstance(out_indices, int):
            out_indices = tuple(range(-out_indices, 0))
        self.feature_info = FeatureInfo(model.feature_info, out_indices)
        self.in_chans = model.in_chans
        self.default_cfg = self.pretrained_cfg = {**model.default_cfg, "num_classes": 0}
        self.grad_checkpointing = False
        self.return_layers = [name.replace(".", "_") for name in self.feature_info.module_name()]
        children: OrderedDict[str, nn.Module] = OrderedDict(stem=model.stem)
        children.update((f"stages_{index}", stage) for index, stage in enumerate(model.stages))
        children["final_conv"] = model.final_conv
        last = max(list(children).index(name) for name in self.return_layers)
        self.update(OrderedDict(list(children.items())[: last + 1]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves memory in training: each stage recomputes its activations in the backward pass."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[B, in_chans, H, W]`` -> the selected maps, shallow to deep.

        Raises:
            ValueError: not four dimensions, or another number of channels than the model's.
        """
        check_images(x, self.in_chans)
        maps = []
        for name, module in self.items():
            x = checkpoint(module, x, use_reentrant=False) if self.grad_checkpointing else module(x)
            if name in self.return_layers:
                maps.append(x)
        return maps
