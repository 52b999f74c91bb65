"""Build the network from options or from a checkpoint, which stores its ModelConfig."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from backbone import BackboneWithFPN, resnet50_fpn_backbone
from backbone.resnet50_fpn import extend_stem, load_classification_weights
from dataset_files.dataset import InstanceDataset
from network_files import MaskRCNN
from network_files.anchors import AnchorGenerator
from network_files.heads import FastRCNNConvFCHead, MaskRCNNHeads, RPNHead
from network_files.roi_align import PyramidRoIAlign
from train_utils.augmentation import training_sizes
from train_utils.classes import ClassTable
from train_utils.distributed import broadcast_from_main, is_main, run_on_main
from train_utils.errors import InputError, reading_input
from train_utils.options import InferenceSettings, TrainSettings
from train_utils.sampled_images import pixel_statistics
from train_utils.weight_files import weights
from train_utils.weight_files.class_rows import match_class_rows
from train_utils.weight_files.detectron2 import CLASS_LOGITS, STEM


@dataclass
class ModelConfig:
    """Description of a network: with it and a state dict, the network is rebuilt as it was trained.

    arch: "v1", the paper's network as in torchvision's maskrcnn_resnet50_fpn; "v2", with BatchNorm in FPN and heads,
    two convolutions in the RPN head and four in the box head, as in maskrcnn_resnet50_fpn_v2; or "detectron2", v1 with
    strides, anchors, RoIAlign, resizing and pasting as in Detectron2.
    """

    num_classes: int  # including background
    arch: str = "v1"
    norm: str = "batch"  # normalisation of the backbone; or "frozen"
    norm_eps: float = 1e-5  # its epsilon
    trainable_layers: int = 3  # see `resnet50_fpn_backbone`
    min_size: int | list[int] = 800  # see `ImageTransform`
    max_size: int = 1333
    rois_per_image: int = 512  # proposals that the heads are trained on
    proposals: int | None = None  # kept per level before NMS, and per image after it; None: 2000, in evaluation 1000
    detections: int = 100  # at most, per image
    nms_thresh: float = 0.5  # of two detections of a class with a higher IoU, the one with the lower score is dropped
    agnostic_nms: bool = False  # whether detections of different classes suppress one another
    anchor_sizes: list[int] | None = None  # sides, one per pyramid level, if not the usual ones
    anchor_ratios: list[float] | None = None  # height over width, on all levels, if not the usual ones
    channels: int | None = None  # of images that are read as stored; None for 8-bit RGB
    values: str | None = None  # type of their values, see `ImageForm`
    image_mean: list[float] | None = None  # their statistics, see `pixel_statistics`; None for ImageNet's
    image_std: list[float] | None = None

    @classmethod
    def stored_in(cls, content: Mapping[str, Any], path: str | Path) -> "ModelConfig":
        """Return the ModelConfig stored in a checkpoint; InputError if it is invalid."""
        values = stored_fields(cls, content, "model_config", path)
        if "num_classes" not in values:
            raise InputError(f"{path}: broken: invalid model_config")
        return cls(**values)

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def stored_fields(kind: type, content: Mapping[str, Any], entry: str, path: str | Path) -> dict[str, Any]:
    """Read the fields of the dataclass `kind` from an entry of a checkpoint; InputError names an invalid field."""
    stored, found = content.get(entry), dict[str, Any]()
    if not isinstance(stored, dict):
        return found
    for field in fields(kind):
        if (value := stored.get(field.name)) is not None and not fits(value, field.type):
            raise InputError(f"{path}: broken: invalid {field.name} in {entry}")
        if value is not None or field.name in stored and field.default is None:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def fits(value: Any, annotated: Any) -> bool:
    """Whether a value matches a type annotation, such as `list[int] | None`. An int also counts as a float."""
    kind, inner = get_origin(annotated), get_args(annotated)
    if kind is UnionType:
        return any(fits(value, each) for each in inner)
    if kind is list:
        return isinstance(value, list | tuple) and all(fits(each, *inner) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    return isinstance(value, (int, float) if annotated is float else annotated)


def build_model(config: ModelConfig) -> MaskRCNN:
    """Build the network with newly initialised weights."""
    norm_class = FrozenBatchNorm2d if config.norm == "frozen" else nn.BatchNorm2d
    backbone = resnet50_fpn_backbone(
        norm_layer=partial(norm_class, eps=config.norm_eps),
        trainable_layers=config.trainable_layers,
        fpn_norm_layer=nn.BatchNorm2d if config.arch == "v2" else None,
        stride_in_1x1=config.arch == "detectron2",
        in_channels=config.channels or 3,
    )
    anchors = anchors_of(config)
    parts: dict[str, Any] = {"rpn_anchor_generator": anchors}
    if config.proposals is not None:
        kept = [f"rpn_{where}_nms_top_n_{mode}" for where in ("pre", "post") for mode in ("train", "test")]
        parts |= dict.fromkeys(kept, config.proposals)
    if config.arch == "v2":
        parts |= v2_heads(backbone.out_channels, anchors.num_anchors_per_location()[0])
    if config.arch == "detectron2":
        parts |= detectron2_parts()
    return MaskRCNN(
        backbone, config.num_classes, config.min_size, config.max_size, config.image_mean, config.image_std,
        box_batch_size_per_image=config.rois_per_image, box_detections_per_img=config.detections,
        box_nms_thresh=config.nms_thresh, box_agnostic_nms=config.agnostic_nms, **parts,
    )  # fmt: skip


def anchors_of(config: ModelConfig) -> AnchorGenerator:
    sizes, ratios = config.anchor_sizes or (32, 64, 128, 256, 512), config.anchor_ratios or (0.5, 1.0, 2.0)
    return AnchorGenerator([(size,) for size in sizes], [ratios] * len(sizes), rounded=config.arch != "detectron2")


def v2_heads(channels: int, anchors: int = 3) -> dict[str, nn.Module]:
    """Build the RPN, box and mask heads of v2 (Li et al., arXiv:2111.11429, A.2), with `anchors` per location."""
    return {
        "rpn_head": RPNHead(channels, anchors, conv_depth=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
        "mask_head": MaskRCNNHeads(channels, [256] * 4, norm_layer=nn.BatchNorm2d),
    }


def detectron2_parts() -> dict[str, Any]:
    """Return the MaskRCNN arguments that reproduce Detectron2, other than its backbone and anchors."""
    box, mask = (PyramidRoIAlign(output_size=size, sampling_ratio=0, aligned=True) for size in (7, 14))
    return {"box_roi_pool": box, "mask_roi_pool": mask, "antialias": True, "continuous_paste": True}


def build_training_model(
    args: TrainSettings, num_classes: int, resumed: tuple[Path, dict[str, Any]] | None,
    names: Mapping[int, str] | None = None, images: InstanceDataset | None = None,
) -> tuple[MaskRCNN, ModelConfig]:  # fmt: skip
    """Build the network to train. A resumed run keeps its ModelConfig; a new run loads the weights of `--pretrain`.

    With published weights, BatchNorm, stem and first stage are frozen; from scratch, nothing is. `--norm` and
    `--trainable-backbone-layers` override this. The class rows of the weights are matched by `names`, label -> name in
    the data. With --channels, the pixel statistics of a new network are those of `images`. InputError if the weights do
    not fit the data or the options.
    """
    kept = ("max_size", "rois_per_image", "proposals", "detections", "nms_thresh", "agnostic_nms")
    sizes = {"min_size": training_sizes(args), **{name: getattr(args, name) for name in kept}}
    sizes |= {name: getattr(args, name) for name in ("anchor_sizes", "anchor_ratios") if getattr(args, name)}
    if resumed is not None:
        path, content = resumed
        config = replace(ModelConfig.stored_in(content, path), **sizes)
        if config.num_classes != num_classes:
            raise InputError(f"{path}: has {config.num_classes - 1} classes, the data has {num_classes - 1}")
        for name in ("norm", "arch", "channels"):
            if getattr(args, name) not in (None, getattr(config, name)):
                raise InputError(
                    f"{path}: was trained with --{name} {getattr(config, name)}, which a resumed run cannot change"
                )
        return build_model(config), config
    config = ModelConfig(num_classes, args.arch or "v1", trainable_layers=5, **sizes)
    state: dict[str, Tensor] = {}
    stored = ModelConfig(0)
    if args.pretrain:
        path = weights.find_pretrained(args.pretrain, config.arch)
        content = weights.read_weight_file(path)
        state = weights_in(content, path)
        config.trainable_layers = 3
        if weights.is_classifier(state):
            config.norm = "batch" if config.arch == "v2" else "frozen"
        else:
            stored = config_of(content, state, args.arch, path)
            config.arch, config.norm, config.norm_eps = stored.arch, stored.norm, stored.norm_eps
            config.anchor_sizes = config.anchor_sizes or stored.anchor_sizes
            config.anchor_ratios = config.anchor_ratios or stored.anchor_ratios
            if config.arch == "detectron2" and (config.anchor_sizes or config.anchor_ratios):
                raise InputError(f"{path}: Detectron2's weights keep its anchors; omit --anchor-sizes, --anchor-ratios")
    if stored.channels not in (None, args.channels):
        raise InputError(f"{args.pretrain}: was trained with --channels {stored.channels}; give the same number")
    if args.channels is not None and images is not None:
        adapt_to_channels(config, stored, state, args.channels, images)
    config.norm = args.norm or ("batch" if args.sync_bn else config.norm)
    if config.norm == "batch":
        config.norm_eps = 1e-5
    if args.trainable_backbone_layers is not None:
        config.trainable_layers = args.trainable_backbone_layers
    model = build_model(config)
    if weights.is_classifier(state):
        if not isinstance(model.backbone, BackboneWithFPN):
            raise InputError(f"{path}: the weights of a ResNet-50 do not fit this backbone; give --pretrain False")
        with reading_input():
            load_classification_weights(model.backbone.body, path)
    elif state:
        known = ClassTable.of_weights(content, len(state.get(f"{CLASS_LOGITS}.bias", ())), None)
        if names and known.are_named():
            state = match_class_rows(state, model, known.names, names, path)
        replaceable = weights.CLASS_LAYERS + (weights.ANCHOR_LAYERS if args.anchor_ratios else ())
        weights.load_weights(model, state, path, replaceable)
    return model, config


def adapt_to_channels(
    config: ModelConfig, stored: ModelConfig, state: dict[str, Tensor], channels: int, images: InstanceDataset
) -> None:
    """Configure a new network for images with `channels` channels, and extend the weights of its first convolution.

    The statistics of the pixels are those of the pretrained network (`stored`, `state`) if its images had the same
    channels and type of values, else those of the data.
    """
    if state and stored.channels is None and channels != 3:
        if is_main():
            print(f"{channels} channels: the first convolution of the weights is extended from 3, and trained")
        config.trainable_layers = 5
        if STEM in state:  # of a detector; `load_classification_weights` extends its own
            state[STEM] = extend_stem(state[STEM], channels)
    config.channels, config.values = channels, images.form.values
    if stored.channels is not None and stored.values == config.values:
        config.image_mean, config.image_std = stored.image_mean, stored.image_std
    else:
        with reading_input():
            statistics = broadcast_from_main(run_on_main(lambda: pixel_statistics(images)))
        config.image_mean, config.image_std = statistics


def load_trained_model(path: str | Path, args: InferenceSettings) -> tuple[MaskRCNN, ModelConfig, dict[str, Any]]:
    """Load a network for evaluation from a checkpoint, or from weights of torchvision or Detectron2.

    Returns the network in evaluation mode, its description, and the file's content without weights and optimizer.
    InputError if the file is unusable, or contradicts `num_classes` (without background) or `arch`; other options
    override the file's. label_json_path names the classes of a Detectron2 file.
    """
    content = weights.read_weight_file(path, args.label_json_path)
    state = weights_in(content, path)
    if not weights.is_mask_rcnn(state):
        raise InputError(f"{path}: not the weights of a Mask R-CNN (no roi_heads.box_predictor.cls_score.weight)")
    config = config_of(content, state, args.arch, path)
    if args.num_classes is not None and args.num_classes + 1 != config.num_classes:
        raise InputError(
            f"{path}: has {config.num_classes - 1} classes plus background, but --num-classes is {args.num_classes}; "
            "leave --num-classes out"
        )
    for name in ("min_size", "max_size", "detections", "nms_thresh", "agnostic_nms"):
        if getattr(args, name) is not None:
            setattr(config, name, getattr(args, name))
    model = build_model(config)
    weights.load_weights(model, state, path)
    return model.eval(), config, {k: v for k, v in content.items() if k not in ("model", "model_ema", "optimizer")}


def weights_in(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a weight file. Print a line if its weights are averages (--model-ema)."""
    if "model_ema" in content and is_main():
        print(f"{path}: taking the averaged weights of --model-ema")
    return weights.state_dict_of(content, path)


def config_of(
    content: dict[str, Any], state: dict[str, Tensor], arch: str | None = None, path: str | Path = ""
) -> ModelConfig:
    """Return the ModelConfig stored in a weight file, or derive it from the names of the weights.

    InputError if the weights are not of `arch`. torchvision's published file, the only one with old-style keys, was
    trained with an epsilon of 0.
    """
    if "model_config" in content:
        config = ModelConfig.stored_in(content, path)
    else:
        keys = weights.inner_state(content)
        config = ModelConfig(len(state.get("roi_heads.box_predictor.cls_score.bias", ())))
        config.arch = "v2" if "backbone.fpn.inner_blocks.0.1.weight" in state else "v1"
        if not any(key.endswith("backbone.body.bn1.num_batches_tracked") for key in keys):
            config.norm, config.norm_eps = "frozen", 0.0 if "rpn.head.conv.weight" in keys else 1e-5
    if arch not in (None, config.arch):
        raise InputError(f"{path}: holds the weights of --arch {config.arch}, not of {arch}; leave --arch out")
    return config
