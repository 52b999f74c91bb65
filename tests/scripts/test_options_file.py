"""--config: the options of an earlier run, or of a JSON by hand, for all that the command line does not give."""

import json
from pathlib import Path

import pytest

from prediction.options import PredictSettings
from tests.helpers.commands import assert_refused, run
from train_utils.errors import InputError
from train_utils.option_parsing import boolean_or_path
from train_utils.options import DataSettings, TrainSettings, ValidationSettings


def parsed(folder: Path, content: object, *words: str) -> TrainSettings:
    file = folder / "options.json"
    file.write_text(json.dumps(content))
    return TrainSettings.parse("", ["--config", str(file), *words])


def args_json(words: list[str]) -> dict:
    """What a run with these options leaves as args.json."""
    settings = TrainSettings.parse("", words)
    settings.resolve(processes=2)
    return settings.to_plain()


RUNS = {
    "the demo": [],
    "the demo with the usual epochs": ["--epochs", "26", "--lr", "0.01", "--amp", "False"],
    "own data": ["--data-path", "data", "--lr-steps", "3", "5", "--pretrain", "weights.pth", "--color-jitter", "0.25"],
    "sizes": ["--data-path", "data", "--min-size", "640", "800", "--wd", "0.05", "--amp", "--proposals", "1500"],
    "one size": ["--data-path", "data", "--min-size", "512", "--pretrain", "False", "--output-dir", "a b/c"],
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_args_json_of_a_run_gives_the_options_of_that_run(tmp_path, words):
    before = args_json(words)
    settings = parsed(tmp_path, before)
    settings.resolve(processes=1)  # the learning rate is that of the run, whatever the number of processes
    assert settings.to_plain() == before | {"config": str(tmp_path / "options.json")}


def test_the_command_line_goes_before_the_file(tmp_path):
    settings = parsed(tmp_path, {"epochs": 3, "lr": 0.5, "min_size": [640, 800]}, "--epochs", "4", "--min_size=96")
    assert (settings.epochs, settings.lr, settings.min_size) == (4, 0.5, [96])
    assert settings.given == {"config", "epochs", "lr", "min_size"} and settings.from_file == {"lr"}


def test_names_are_those_of_the_command_line_too(tmp_path):
    content = {"batch-size": 7, "wd": 0.25, "lr_steps": [1, 2], "b": 3, "skip-bad": True, "val_json": None}
    settings = parsed(tmp_path, content)
    assert (settings.batch_size, settings.weight_decay, settings.lr_steps, settings.skip_bad) == (3, 0.25, [1, 2], True)
    assert "val_json" not in settings.given


def test_options_of_one_start_are_not_taken(tmp_path):
    """A run that was started with --overwrite must not make another one delete its folder."""
    content = {"overwrite": True, "force": True, "resume": "auto", "test_only": True, "show_batch": True, "epochs": 2}
    settings = parsed(tmp_path, content | {"config": "other.json"})
    assert settings.given == {"config", "epochs"}
    assert not (settings.overwrite or settings.force or settings.resume or settings.test_only or settings.show_batch)


def test_hooks_of_a_file_are_not_run_but_named(tmp_path, capsys):
    """A file of another person must not run code."""
    assert parsed(tmp_path, {"hooks": "theirs.py"}).hooks is None
    assert "'hooks' is ignored in a file; give --hooks theirs.py" in capsys.readouterr().err


def test_an_option_hidden_in_the_value_of_another_is_not_taken(tmp_path):
    settings = parsed(tmp_path, {"lr_steps": [1, "--hooks=theirs.py"], "anchor_ratios": ["1", "--overwrite"]})
    assert settings.hooks is None and not settings.overwrite and settings.lr_steps == [1]


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "o.json").write_text('{"epochs": 3}', encoding="utf-8-sig")
    assert TrainSettings.parse("", ["--config", str(tmp_path / "o.json")]).epochs == 3


NUMBERS = sorted(each.name for each in TrainSettings.options() if (kind := each.metadata["argparse"].get("type"))
                 and kind not in (str.lower, boolean_or_path))  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_no_run_can_use_are_refused_where_they_are_parsed(tmp_path, name, capsys):
    for value in (float("nan"), float("inf"), -float("inf"), 1e300, 10**30):
        with pytest.raises(InputError, match=name.replace("_", "-") + "|--wd"):
            parsed(tmp_path, {name: value})
        with pytest.raises(SystemExit):
            TrainSettings.parse("", [f"--{name}={value}"])


def test_a_share_that_the_run_had_by_default_is_not_asked_for(tmp_path):
    """--val-fraction is refused for data that are split; args.json names it all the same."""
    settings = parsed(tmp_path, args_json(["--data-path", "data"]))
    assert settings.val_fraction == DataSettings().val_fraction and "val_fraction" in settings.from_file


@pytest.mark.parametrize("name", ["color_jitter", "momentum", "nms_thresh"])
def test_a_strength_includes_both_of_its_ends(tmp_path, name):
    assert [getattr(parsed(tmp_path, {name: value}), name) for value in (0, 1.0)] == [0, 1]
    with pytest.raises(InputError, match="'1.01' is not between 0 and 1"):
        parsed(tmp_path, {name: 1.01})


FLAWED = {
    "unknown": ({"epohcs": 3}, "there is no option 'epohcs'; did you mean 'epochs'?"),
    "nothing like it": ({"zzz": 3}, "there is no option 'zzz'"),
    "type": ({"epochs": "many"}, "argument --epochs: 'many' is not a whole number"),
    "range": ({"color_jitter": 3}, "argument --color-jitter: '3' is not between 0 and 1"),
    "choice": ({"data_augmentation": "cutout"}, "argument --data-augmentation: invalid choice"),
    "list": ({"epochs": [1, 2]}, "argument|unrecognized"),
    "object": ({"epochs": {"a": 1}}, "argument --epochs"),
    "empty list": ({"lr_steps": []}, "argument --lr-steps: expected at least one argument"),
    "no object": ([1], "not an object of options and values"),
}


@pytest.mark.parametrize("content, message", FLAWED.values(), ids=FLAWED)
def test_what_is_wrong_in_the_file_is_named_with_the_file(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        parsed(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'options.json'}: ")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match="missing.json: no such file"):
        TrainSettings.parse("", ["--config", str(tmp_path / "missing.json")])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="broken.json: cannot be read as JSON"):
        TrainSettings.parse("", ["--config", str(tmp_path / "broken.json")])


@pytest.mark.parametrize("script", [TrainSettings, ValidationSettings, PredictSettings])
def test_help_can_be_printed(script):
    """A percent sign that argparse takes for a format ends --help in a traceback."""
    assert "--device" in script.parser("").format_help()


def test_the_script_ends_in_one_line(tmp_path):
    (tmp_path / "o.json").write_text('{"learning_rate": 1}')
    assert_refused(run(tmp_path, "train.py", "--config", "o.json"), "o.json: there is no option 'learning_rate'")


def test_a_resumed_run_of_an_older_version_has_the_plain_default_of_what_it_did_not_know():
    settings = TrainSettings.parse(None, ["--resume", "auto"])
    settings.resolve(1, {"epochs": 7, "lr": 0.02, "data_path": "demo_data"})  # before --opt and --lr-scheduler
    assert (settings.epochs, settings.lr) == (7, 0.02)
    assert settings.is_demo() and (settings.opt, settings.lr_scheduler) == ("sgd", "multisteplr")
    fresh = TrainSettings.parse(None, [])
    fresh.resolve(1)
    assert (fresh.opt, fresh.lr_scheduler) == ("adamw", "cosineannealinglr")
