"""Reuse pretrained weights for other classes: copy each class's rows of the last layers by class name."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from train_utils.classes import some_of
from train_utils.distributed import is_main
from train_utils.weight_files.detectron2 import CLASS_LOGITS
from train_utils.weight_files.weights import CLASS_LAYERS

SILENT = -10.0  # a new class's first logits, from the mean of the others: they take under 1/20,000 of the probability


def match_class_rows(
    state: dict[str, Tensor], model: nn.Module, known: Mapping[int, str], names: Mapping[int, str], path: str | Path
) -> dict[str, Tensor]:
    """Return the state dict with class layers that fit `model`: rows are copied by class name, or newly initialised.

    The background is always copied. The logits of new classes start so low that the detections of other classes do not
    change. Without a class in common, the class layers are dropped. `known` maps the labels of the weights to names,
    `names` those of the data.
    """
    own = {key: value.clone() for key, value in model.state_dict().items() if key.startswith(CLASS_LAYERS)}
    if any(key not in state or state[key].shape[1:] != own[key].shape[1:] for key in own):
        return state
    before, now = (len(each[f"{CLASS_LOGITS}.bias"]) for each in (state, own))
    if any(len(state[key]) * now != len(own[key]) * before for key in own):
        return state
    labels = {plain(name): label for label, name in known.items()}
    sources = {label: labels[plain(name)] for label, name in names.items() if plain(name) in labels}
    if is_main() and sources:
        new = [name for label, name in names.items() if label not in sources]
        print(
            f"{path}: the rows of {len(sources)} of {len(names)} classes are kept, by name: "
            f"{some_of([names[label] for label in sources])}" + (f"; newly initialised: {some_of(new)}" if new else "")
        )
    if not sources:
        return {key: value for key, value in state.items() if key not in own}
    kept = [0, *sources.values()]
    own[f"{CLASS_LOGITS}.weight"] += state[f"{CLASS_LOGITS}.weight"][kept].mean(dim=0)
    own[f"{CLASS_LOGITS}.bias"].copy_(state[f"{CLASS_LOGITS}.bias"][kept].mean(dim=0) + SILENT)
    unused = set(range(now)) - set(names) - {0}  # gaps in the ids
    sources |= {i: i for i in unused if i < before and i not in sources.values() and (now == before or i not in known)}
    target, source = [0, *sources], [0, *sources.values()]
    for key, value in own.items():
        value.unflatten(0, (now, -1))[target] = state[key].unflatten(0, (before, -1))[source].to(value.dtype)
    return state | own


def plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ")
