"""Whether two runs left the same, to the last bit of the weights."""

from pathlib import Path

import torch

TEXTS_AND_CURVES = ("det_results.txt", "seg_results.txt", "log.jsonl", "loss_and_lr.png", "mAP.png")
OF_A_CHECKPOINT = ("model", "model_ema", "optimizer", "lr_scheduler", "progress", "epoch", "steps_per_epoch", "facts")
OF_A_CHECKPOINT += ("scaler",)


def differences(folder: Path, other: Path) -> list[str]:
    """What differs between two runs' folders; nothing, if one may stand for the other."""
    names = [{file.name for file in each.iterdir()} for each in (folder, other)]
    if names[0] != names[1]:
        return sorted(names[0] ^ names[1])
    same_bytes = [*TEXTS_AND_CURVES, *sorted(name for name in names[0] if name.startswith("predictions_"))]
    found = [name for name in same_bytes if (folder / name).read_bytes() != (other / name).read_bytes()]
    if "tensorboard" in names[0] and scalars(folder) != scalars(other):
        found.append("tensorboard")
    for name in sorted(name for name in names[0] if name.endswith(".pth")):
        one, two = (torch.load(each / name, weights_only=True) for each in (folder, other))
        found += [where for key in OF_A_CHECKPOINT for where in unlike(one.get(key), two.get(key), f"{name}: {key}")]
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run's folder: tag -> steps and values, in the order of its files.

    The start of a writer purges what was written before from its step on.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        for event in EventFileLoader(str(file)).Load():
            if event.session_log.status == event.session_log.START:
                found = {tag: [each for each in values if each[0] < event.step] for tag, values in found.items()}
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.tensor.float_val else float(value.image.width)
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def unlike(one: object, other: object, where: str) -> list[str]:
    """Where two contents differ by a bit or a type."""
    if type(one) is not type(other):
        return [where]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [where]
        return [w for key in one for w in unlike(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [where]
        return [w for i, (a, b) in enumerate(zip(one, other)) for w in unlike(a, b, f"{where}[{i}]")]
    same = torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other
    return [] if same else [where]
