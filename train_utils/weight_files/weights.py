"""Find or download weight files, read them safely, and load them into a network."""

import io
import mmap
import pickle
import re
import socket
import zipfile
from argparse import Namespace
from codecs import encode
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dataset_files.atomic_files import link_atomically, replacing
from network_files.mask_rcnn import rename_old_keys
from train_utils.distributed import broadcast_from_main, is_main, run_on_main
from train_utils.errors import InputError, first_line
from train_utils.weight_files.detectron2 import from_detectron2, is_detectron2
from train_utils.weight_files.safe_pickle import TORCH_NAMES, Refused, check_opcodes, is_pickle, read_arrays


class PublishedFile(NamedTuple):
    name: str  # file name in the working folder
    url: str  # its file name ends with the first digits of the SHA-256


def published(name: str, digits: str) -> PublishedFile:
    return PublishedFile(f"{name}.pth", f"https://download.pytorch.org/models/{name}-{digits}.pth")


MASK_RCNN_COCO = published("maskrcnn_resnet50_fpn_coco", "bf2d0c1e")
MASK_RCNN_V2_COCO = published("maskrcnn_resnet50_fpn_v2_coco", "73cbd019")
RESNET50 = published("resnet50", "0676ba61")

# Training scripts also save options and milestones; `check_values` checks that these hold plain values.
torch.serialization.add_safe_globals([Namespace, Counter, encode, set, complex])  # torch 2.4 lacks the last three
WHOLE_MODELS = ("torch.nn.", "torchvision.", "network_files.", "backbone.", "__main__.", "models.")
PREFIXES = ("module.", "model.", "_orig_mod.")
PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)

# Layers whose size depends on the number of classes.
CLASS_LAYERS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
ANCHOR_LAYERS = ("rpn.head.cls_logits.", "rpn.head.bbox_pred.")  # their size depends on the number of anchor ratios


def find_pretrained(pretrain: bool | str, arch: str) -> Path:
    """Return the path of the file that `--pretrain` names, or else of a published file, downloaded if missing."""

    def found() -> Path:
        if isinstance(pretrain, str):
            if not Path(pretrain).is_file():
                raise InputError(f"{pretrain}: no such file (--pretrain)")
            return Path(pretrain)
        detector = MASK_RCNN_V2_COCO if arch == "v2" else MASK_RCNN_COCO
        for file in (detector, RESNET50):  # which fits both architectures
            if Path(file.name).is_file():
                return Path(file.name)
        download(detector)
        return Path(detector.name)

    return broadcast_from_main(run_on_main(found))


def download(file: PublishedFile) -> None:
    """Download a published file into the working folder, with a progress bar. Keep it only if its hash matches."""
    prefix = file.url.rpartition("-")[2].removesuffix(".pth")
    print(f"downloading {file.url} to {file.name}", flush=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)
    try:
        torch.hub.download_url_to_file(file.url, file.name, hash_prefix=prefix)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"pretrained weights: {file.url} could not be downloaded ({error}); save it in this folder as "
            f"{file.name} (or {RESNET50.url} as {RESNET50.name}), or train from scratch with --pretrain False"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def read_weight_file(path: str | Path, label_json: str | None = None) -> dict[str, Any]:
    """Read a weight file without running code in it. Convert Detectron2's weights. Invalid files raise InputError."""
    content = read_tensors(Path(path))
    if is_detectron2(inner_state(content)):
        content = from_detectron2(state_dict_of(content, path), path, label_json)
    return content


THRESHOLDS = "score_thresholds"  # label -> score with the best F1 on the validation images


def write_thresholds(path: Path, thresholds: Mapping[int, float], target: Path) -> None:
    """Copy a checkpoint to `target` and add the score threshold of each label. Without thresholds, only link it."""
    if not thresholds and target != path:
        return link_atomically(path, target)
    content = read_weight_file(path)
    require_checkpoint(content, path)
    with replacing(target) as file:
        torch.save(content | {THRESHOLDS: dict(thresholds)}, file)


def require_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    if "model_config" not in content:
        raise InputError(f"{path}: only a checkpoint of train.py can hold thresholds; leave --save-thresholds out")


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file that torch.save wrote, or a pickle of numpy arrays."""
    if not path.is_file():
        fault = "is a folder; name a weight file in it" if path.is_dir() else "no such weight file"
        raise InputError(f"{path}: {fault}")
    try:
        if is_pickle(path):
            return {"model": read_arrays(path)}
        if zipfile.is_zipfile(path):
            check_records(path)
        else:  # torch.save before 2020: magic number, version, machine, content, names of the storages
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pickles:
                for _ in range(5):
                    check_opcodes(pickles, TORCH_NAMES)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):  # torchvision's reference scripts save their options as a Namespace
            content = {k: vars(v) if isinstance(v, Namespace) else v for k, v in content.items()}
        check_values(content)
    except InputError:
        raise
    except (pickle.UnpicklingError, Refused) as error:
        reason, remedy = f"it names {error}", ""
        if isinstance(error, pickle.UnpicklingError):  # torch's message goes on to explain how to load it unsafely
            named = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it names {named.group(1)}" if named else first_line(error)
        elif str(error).startswith(WHOLE_MODELS):
            remedy = "; a whole model was pickled: save only its weights, torch.save(model.state_dict(), 'weights.pth')"
        raise InputError(f"{path}: refused: it is not a file of tensors and plain values ({reason}){remedy}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: broken or not a weight file ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint or state dict")
    return content


def check_records(path: Path) -> None:
    """Check a file of torch.save, a zip archive, for what torch.load ignores: checksums, sizes, and pickled names."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile("its records are compressed, unlike those of a weight file")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise zipfile.BadZipFile("its records claim more data than the file has")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        for record in records:
            if record.filename.endswith("data.pkl"):
                check_opcodes(io.BytesIO(archive.read(record)), TORCH_NAMES)


def check_values(content: Any) -> None:
    """Raise ValueError if `content` holds anything but containers, plain values and complete tensors."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, Tensor):
            if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
                raise ValueError(f"it has a tensor of an unsupported kind: {value.layout} on {value.device}")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor has shape {list(value.shape)}, but not the bytes for it")
        elif not isinstance(value, PLAIN):
            raise ValueError(f"it holds a {type(value).__name__}")


def state_dict_of(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a weight file. Remove prefixes such as "module.", and rename torchvision's old keys."""
    state = dict(inner_state(content))
    state.pop("n_averaged", None)  # of torchvision's averages
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise InputError(f"{path}: holds no state dict (neither itself nor under 'model' or 'state_dict')")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    rename_old_keys(state)
    return state


def inner_state(content: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a file that holds the weights, preferably averaged weights, or else the whole content."""
    inside = [content[key] for key in ("model_ema", "model", "state_dict") if isinstance(content.get(key), dict)]
    return inside[0] if inside else content


def is_classifier(state: dict[str, Tensor]) -> bool:  # rather than a detector
    return "layer1.0.conv1.weight" in state


def is_mask_rcnn(state: dict[str, Tensor]) -> bool:
    return "roi_heads.box_predictor.cls_score.weight" in state and "roi_heads.mask_predictor.conv5_mask.weight" in state


def not_finite(state: dict[str, Tensor]) -> list[str]:
    if not (keys := [key for key, value in state.items() if value.is_floating_point()]):
        return []
    finite = torch.stack([state[key].isfinite().all() for key in keys]).tolist()  # one synchronisation
    return [key for key, good in zip(keys, finite) if not good]


def check_finite(state: dict[str, Tensor], path: str | Path) -> None:
    if bad := not_finite(state):
        raise InputError(
            f"{path}: {len(bad)} of {len(state)} tensors are not finite ({bad[0]}, ...): the run that wrote it has "
            "diverged; use an earlier checkpoint, or train again with a lower --lr"
        )


def load_weights(
    model: nn.Module, state: dict[str, Tensor], path: str | Path, replaceable: tuple[str, ...] = ()
) -> None:
    """Load a detector's state dict. InputError names the keys and shapes that do not fit the model.

    There are two exceptions. BatchNorm's counters, which FrozenBatchNorm2d lacks, may be missing or superfluous. Keys
    that begin with one of `replaceable` may be missing or of another shape; the model's values are then kept.
    """
    check_finite(state, path)
    own = model.state_dict()
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    dropped = [key for key in own if key.startswith(replaceable) and (key not in state or key in misshapen)]
    state = {key: value for key, value in state.items() if key not in dropped}
    misshapen = [key for key in misshapen if key not in dropped]
    if dropped and is_main():
        print(f"{path}: has other classes or anchors; newly initialised layers: {', '.join(dropped)}")
    missing = [k for k in own if k not in state and k not in dropped and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own and not key.endswith("num_batches_tracked")]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise InputError(f"{path}: does not fit this network; " + "; ".join(problems))
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
