"""Rate of predict.py over a folder of photos, beside that of its network alone on the same photos in memory.

    python benchmarks/predict_folder.py                          # CPU, 6 photos of COCO at 800/1333
    python benchmarks/predict_folder.py --amp
    python benchmarks/predict_folder.py --device cuda --photos 80 --rounds 5

Reading, drawing and saving run in threads beside the network, so both rates should be the same. The goal is 0.9 of the
network's. The weights are random, such that the network does about as much work as with trained ones; the threshold is
chosen so that ten objects per photo are drawn. Both use the same batches.
"""

import contextlib
import io
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from common import coco_tiny, machine, parser, random_weights
from measured_rows import HEADER, progress, table, timed

from predict import Predictor, predict_images
from prediction.sources import find_sources
from train_utils.classes import ClassTable
from train_utils.device import Precision, choose_device
from train_utils.errors import one_line_errors
from train_utils.models import ModelConfig, build_model
from train_utils.option_parsing import add_flag, positive
from train_utils.options import PredictSettings
from train_utils.trained_model import TrainedModel

GOAL = 0.9
OBJECTS = 10  # drawn per photo
FORMATS = {"drawn": [], "drawn, --save json coco csv masks crops": ["json", "coco", "csv", "masks", "crops"]}


def main(args: Namespace) -> None:
    device = choose_device(args.device)
    print(machine(device))
    with tempfile.TemporaryDirectory() as folder:
        photos = copy_photos(Path(folder) / "photos", args.photos)
        settings = PredictSettings(output_dir=f"{folder}/out", box_thresh=0, batch_size=args.batch_size)
        trained = random_network(photos, args, device)
        predictor = Predictor.of_trained(trained, settings)
        loaded = [predictor.load(path) for path in photos]
        step = predictor.images_per_step
        predictor.box_thresh = threshold_for(predictor, loaded, OBJECTS * len(photos))
        what = f"{len(photos)} photos, {predictor.batch_size} per step"
        print(f"{what}, short side {args.min_size}, {args.rounds} rounds; threshold {predictor.box_thresh:.3f}")

        def network_alone() -> None:
            for start in range(0, len(loaded), step):
                predictor.find(loaded[start : start + step])

        rows = []
        for name, formats in FORMATS.items():
            chosen = PredictSettings(output_dir=settings.output_dir, save=formats)

            def whole_script(chosen: PredictSettings = chosen) -> None:
                shutil.rmtree(settings.output_dir, ignore_errors=True)
                with contextlib.redirect_stdout(io.StringIO()):
                    predict_images(predictor, find_sources([f"{folder}/photos"], Path(chosen.output_dir)), chosen)

            rows.append(timed(f"{name}{', --amp' if args.amp else ''}", whole_script, network_alone, args.rounds, GOAL))
            progress(f"  {' | '.join(map(str, rows[-1][1:]))}")
    print(f"\n{table(what, rows, ('', 'predict.py', 'network alone', *HEADER[3:]))}")


def copy_photos(folder: Path, count: int) -> list[Path]:
    """Copy the first photos of COCO's validation split into a folder."""
    folder.mkdir(parents=True)
    return [Path(shutil.copy(path, folder)) for path in sorted((coco_tiny() / "val2017").iterdir())[:count]]


def random_network(photos: list[Path], args: Namespace, device: torch.device) -> TrainedModel:
    config = ModelConfig(91, norm="frozen", min_size=args.min_size, max_size=round(args.min_size * 1333 / 800))
    model = build_model(config)
    trained = TrainedModel(
        photos[0].parent,
        model,
        config,
        {},
        ClassTable.of_weights({}, 91, None),
        device,
        Precision.choose(device, args.amp),
        {},
    )
    first = [Predictor.of_trained(trained, PredictSettings()).load(path).pixels for path in photos[:2]]
    model.load_state_dict(random_weights(config, first), strict=True)
    model.eval().to(device, memory_format=torch.channels_last)
    return trained


def threshold_for(predictor: Predictor, loaded: list, objects: int) -> float:
    """The score that so many detections in all images reach."""
    step = predictor.images_per_step
    found = [one for k in range(0, len(loaded), step) for one in predictor.find(loaded[k : k + step])]
    scores = torch.cat([tile.detection["scores"] for tiles in found for tile in tiles])
    return float(scores.sort(descending=True).values[: objects + 1][-1])


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--device", default="cpu", help="cuda, cuda:N or cpu (default: %(default)s)")
    p.add_argument("--photos", type=positive, default=6, help="(default: %(default)s)")
    p.add_argument("-b", "--batch-size", type=positive, help="images per step (default: predict.py's)")
    p.add_argument("--min-size", type=positive, default=800, help="short side of the input (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=2, help="(default: %(default)s)")
    add_flag(p, "--amp", "mixed precision")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args()
    if args.quick:
        args.photos, args.min_size, args.rounds = 2, 64, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
