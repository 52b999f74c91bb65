"""`Predictor`: every form of an image, lists, threads, and what a prediction offers; against the network itself."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from my_dataset_coco import read_image
from predict import Predictor
from prediction.prediction import Prediction
from tests.helpers.thin_weights import CATEGORY_IDS, NAMES, noise_image, thin_networks, write_thin_weights
from train_utils.errors import InputError


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    with thin_networks():
        weights = write_thin_weights(tmp_path_factory.mktemp("weights") / "thin.pth")
        yield Predictor(weights, device="cpu", box_thresh=0.2)


def assert_same(one: Prediction, other: Prediction) -> None:
    assert len(one) > 0 and one.names == other.names and one.codes == other.codes
    for name in ("boxes", "labels", "scores"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_a_prediction_is_what_the_network_returns(predictor: Predictor) -> None:
    image = noise_image(1)
    found = predictor(image)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with torch.inference_mode():
        (expected,) = predictor.network([pixels])
    keep = expected["scores"] >= 0.2
    assert 3 < len(found) == int(keep.sum()) < len(keep)
    assert np.array_equal(found.boxes, expected["boxes"][keep].numpy()) and found.boxes.dtype == np.float32
    assert np.array_equal(found.labels, expected["labels"][keep].numpy())
    assert np.array_equal(found.scores, expected["scores"][keep].numpy())
    assert np.array_equal(found.masks, (expected["masks"][keep, 0] > 0.5).numpy()) and found.masks.any()
    assert found.names == [NAMES[label] for label in found.labels.tolist()]
    assert found.size == (60, 80) and repr(found).startswith("Prediction(") and len(repr(found)) < 100


def test_masks_take_the_given_threshold(predictor: Predictor) -> None:
    strict = Predictor.of_trained(predictor.trained, predictor_settings(mask_thresh=0.8))
    one, other = predictor(noise_image(1)).masks, strict(noise_image(1)).masks
    assert other.sum() < one.sum() and (one | other == one).all()


def predictor_settings(**options):
    from prediction.options import PredictorSettings

    return PredictorSettings(box_thresh=0.2, **options)


def test_file_pillow_image_and_array_give_the_same(predictor: Predictor, tmp_path: Path) -> None:
    image = noise_image(1)
    image.save(tmp_path / "a.png")
    expected = predictor(image)
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), np.array(image), image.convert("RGBA")):
        assert_same(predictor(form), expected)


def test_a_list_gives_a_list_in_batches_of_the_given_size(predictor: Predictor) -> None:
    batched = Predictor.of_trained(predictor.trained, predictor_settings(batch_size=3))
    sizes = []
    detect = batched.network.detect
    batched.network.detect = lambda images: sizes.append(len(images)) or detect(images)
    images = [noise_image(seed) for seed in range(8)]
    found = batched(images)
    assert sizes == [3, 3, 2] and len(found) == 8
    for one, image in zip(found, images):
        alone = predictor(image)
        assert one.names == alone.names
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-4)
        assert (one.masks != alone.masks).mean() < 1e-3
    assert batched([]) == []


def test_several_threads_get_what_one_gets(predictor: Predictor) -> None:
    images = [noise_image(seed, (80 + 3 * seed, 60)) for seed in range(12)]
    expected = [predictor(image) for image in images]
    start = threading.Barrier(4)

    def predict(image: Image.Image) -> Prediction:
        start.wait(10)
        return predictor(image)

    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(predict, images), expected):
            assert_same(one, other)


def test_only_one_thread_at_a_time_is_in_the_network(predictor: Predictor) -> None:
    own = Predictor.of_trained(predictor.trained, predictor_settings())
    inside, most = 0, 0
    detect = own.network.detect

    def watched(images):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        found = detect(images)
        inside -= 1
        return found

    own.network.detect = watched
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(own, [noise_image(seed) for seed in range(8)]))
    assert most == 1


def test_files_are_turned_by_their_exif_tag_and_images_are_not(predictor: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise_image(1).save(tmp_path / "a.png", exif=exif)
    assert predictor(tmp_path / "a.png").size == (80, 60)
    with Image.open(tmp_path / "a.png") as image:
        assert predictor(image).size == (60, 80)
    as_stored = Predictor.of_trained(predictor.trained, predictor_settings(exif="ignore"))
    assert as_stored(tmp_path / "a.png").size == (60, 80)


@pytest.mark.parametrize("annotated, frame", [((60, 80), (60, 80)), ((80, 60), (80, 60)), (None, (80, 60))])
def test_with_annotations_the_frame_is_that_of_their_sizes_as_in_training(
    predictor: Predictor, tmp_path: Path, annotated: tuple[int, int] | None, frame: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "a.png"
    noise_image(1).save(path, exif=exif)
    loaded = predictor.load(path, annotated)
    assert predictor.describe(loaded, predictor.find([loaded])[0]).size == frame
    if annotated is not None:
        assert read_image(path, annotated).shape[1:] == frame


def test_coco_results_have_boxes_category_ids_and_masks(predictor: Predictor) -> None:
    found = predictor(noise_image(1))
    results = found.to_coco(7)
    assert len(results) == len(found)
    for k, result in enumerate(results):
        assert set(result) == {"image_id", "category_id", "score", "bbox", "segmentation"}
        assert result["image_id"] == 7 and result["category_id"] == CATEGORY_IDS[int(found.labels[k])]
        x, y, w, h = result["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], found.boxes[k], atol=1e-4)
        assert np.array_equal(coco_mask.decode(result["segmentation"]).astype(bool), found.masks[k])


def test_a_drawing_shows_the_objects_and_is_enlarged_unless_told(predictor: Predictor) -> None:
    found = predictor(noise_image(1))
    assert found.draw().size == (640, 480)
    same_size = found.draw(enlarge=False)
    assert same_size.size == (80, 60) and same_size.tobytes() != noise_image(1).tobytes()


def test_labels_that_no_class_has_are_not_predicted(predictor: Predictor) -> None:
    found = predictor(noise_image(1))
    gap = int(found.labels[0])
    own = Predictor.of_trained(predictor.trained, predictor_settings())
    own.classes = type(own.classes)(
        {k: v for k, v in NAMES.items() if k != gap}, {k: v for k, v in CATEGORY_IDS.items() if k != gap}
    )
    rest = own(noise_image(1))
    assert gap not in rest.labels and len(rest) == int((found.labels != gap).sum()) > 0


def test_an_image_without_objects_has_an_empty_prediction(predictor: Predictor) -> None:
    strict = Predictor.of_trained(predictor.trained, predictor_settings())
    strict.box_thresh = 1.1
    found = strict(noise_image(1))
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.masks.shape == (0, 60, 80)
    assert found.to_coco() == [] and found.summary() == "nothing" and found.draw().size == (640, 480)


def test_wrong_input_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(ValueError, match="bad.jpg: cannot be read as an image"):
        predictor(tmp_path / "bad.jpg")
    with pytest.raises(ValueError, match="gone.jpg: no such file"):
        predictor([noise_image(1), tmp_path / "gone.jpg"])
    with pytest.raises(ValueError, match=r"RGB, uint8 \[H, W, 3\]; got float64 \[4, 5, 3\]"):
        predictor(np.zeros((4, 5, 3)))
    with pytest.raises(TypeError, match="not int"):
        predictor([3])
    with pytest.raises(TypeError, match="not int"):
        predictor(3)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    for options, words in (
        ({"overlap": 0.3}, "--overlap 0.3 needs --tile"),
        ({"tile": 0}, "--tile 0"),
        ({"tile": 100, "overlap": 1.0}, "--overlap 1 is not between"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"exif": "sideways"}, "--exif sideways"),
    ):
        with pytest.raises(InputError, match=words):
            Predictor(tmp_path / "none.pth", **options)
    with pytest.raises(TypeError, match="output_dir"):
        Predictor(tmp_path / "none.pth", output_dir="x")
    with pytest.raises(InputError, match="none.pth"):
        Predictor(tmp_path / "none.pth", device="cpu")
