"""Read the text, JSON and YAML files of labelling tools; a file that is not readable is a ValueError of one line."""

import json
import re
from pathlib import Path
from typing import Any

import yaml


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, in UTF-16 with a byte-order mark, or in GB 18030, as editors on Windows save it.

    Raises:
        ValueError: it has another encoding.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Chinese text has its bytes beyond ASCII in pairs; European 8-bit encodings mostly have single ones.
        runs = re.findall(rb"[\x80-\xff]+", data)
        if 2 * sum(len(run) % 2 == 0 for run in runs) > len(runs):
            try:
                return data.decode("gb18030")
            except UnicodeDecodeError:
                pass
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from error


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file without surrounding white space, empty ones included."""
    return [line.strip() for line in read_text(path).splitlines()]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    except RecursionError:
        raise ValueError(f"{path}: not readable as JSON (nested too deeply)") from None


class TextLoader(yaml.BaseLoader):
    """PyYAML's loader that keeps scalars as text, without aliases, which can expand without end."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is repeated", key.start_mark)
            known.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file: dicts, lists, and text, which is "" where there is no value.

    Raises:
        ValueError: it is not YAML, or has repeated keys or aliases.
    """
    text = read_text(path)
    try:
        return yaml.load(text, Loader=TextLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {error.problem}; expected lines such as 'names: [cat, dog]'") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not readable as YAML ({reason})") from error
