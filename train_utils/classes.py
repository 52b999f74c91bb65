"""Table of labels, category ids and names: built from the training data and stored in the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_files.dataset import InstanceDataset
from train_utils.errors import InputError, read_json

COCO_NAMES = Path(__file__).resolve().parent.parent / "coco91_indices.json"


@dataclass
class ClassTable:
    """Names and category ids of the network's labels, except label 0, the background."""

    names: dict[int, str]  # label -> name
    category_ids: dict[int, int]  # label -> category id in the data and in written results

    @classmethod
    def of_dataset(cls, dataset: InstanceDataset) -> "ClassTable":
        return cls(dict(dataset.class_names), dict(dataset.category_ids))

    @classmethod
    def of_weights(cls, content: Mapping[str, Any], num_classes: int, label_json: str | None) -> "ClassTable":
        """Return a weight file's class table, or a default one. Names in the JSON file `label_json` take precedence."""
        if "class_names" in content:
            table = cls(dict(content["class_names"]), dict(content.get("category_ids", {})))
        elif num_classes == 91:
            table = cls.of_json(COCO_NAMES)
        else:
            table = cls({label: f"class {label}" for label in range(1, num_classes)}, {})
        if label_json is not None:
            table.names |= cls.of_json(label_json).names
        table.names = {label: name for label, name in table.names.items() if 0 < label < num_classes}
        table.category_ids = {label: table.category_ids.get(label, label) for label in table.names}
        return table

    @classmethod
    def of_json(cls, path: str | Path) -> "ClassTable":
        """Read the names from a JSON file, {"1": "person"} or {"person": 1}; each category id equals the label."""
        content = read_json(path, "--label-json-path")
        try:
            pairs = [(k, v) if str(k).isdigit() else (v, k) for k, v in content.items()]
            names = {int(label): str(name) for label, name in pairs if str(name) != "N/A"}
        except (ValueError, TypeError, AttributeError) as error:
            example = '{"1": "person"}'
            raise InputError(f"{path}: not a JSON object of labels and names, like {example} ({error})") from error
        return cls(names, {label: label for label in names})

    def are_named(self) -> bool:
        """Whether the labels have names rather than just numbers."""
        return any(not name.startswith("class ") for name in self.names.values())

    def require_labels_of(self, dataset: InstanceDataset, weights: str | Path) -> None:
        """Raise InputError if the dataset has a category that the network lacks."""
        known = set(self.category_ids.values())
        for label, category in dataset.category_ids.items():
            if category not in known:
                raise InputError(
                    f"{weights}: has no class for the data's category {category} '{dataset.class_names[label]}' "
                    f"(it has {len(known)})"
                )


def some_of(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if names[8:] else "")
