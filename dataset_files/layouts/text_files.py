"""Find and read the text, JSON, YAML and XML files of tools; an unreadable one raises a one-line ValueError."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import yaml

from dataset_files.coco_file import naming_json
from dataset_files.image_files import in_order, names_in, split_in, split_paths
from dataset_files.problems import Problems, shown

MOST_FILES = 20  # of a suffix in one folder; if there are more, each belongs to an image
HEAD = 1 << 18  # bytes that are read to recognise a file
LARGEST_XML = 10 << 20  # bytes


def file_per_split(root: Path, suffix: str, is_of_tool: Callable[[Path], bool], tool: str) -> dict[str, Path]:
    """Find a tool's annotation file for each split. Return split -> file; the key "" means no split.

    `root` is the folder or one such file. If several files may be meant for one split, the ValueError names them and
    the tool (`tool`).
    """

    def files_in(folder: Path) -> list[Path]:
        names = names_in(folder, suffix)
        return [folder / name for name in names if is_of_tool(folder / name)] if len(names) <= MOST_FILES else []

    if root.is_file():
        return {"": root} if is_of_tool(root) else {}
    found = [(split, path) for split, folder in split_paths(root).items() for path in files_in(folder)]
    found = found or [(split_in(path.stem), path) for path in files_in(root)]
    if len(dict(found)) < len(found):
        names = ", ".join(path.relative_to(root).as_posix() for _, path in found)
        raise ValueError(f"{root}: has several {tool} ({names}); keep one, or name it instead of the folder")
    return in_order(dict(found))


def beginning(path: Path) -> bytes:
    """Read the first bytes of a file, without zero bytes, byte-order mark and leading white space; b"" on an error."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(HEAD).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    return b""


def read_text(path: Path, problems: Problems | None = None) -> str:
    """Read a text file in UTF-8, UTF-16 or GB 18030.

    These are the encodings that editors on Windows use; UTF-16 needs a byte-order mark. If the encoding is only
    assumed, this is noted in `problems`; any other encoding raises ValueError.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # East Asian text has its bytes beyond ASCII in pairs; European 8-bit encodings mostly have single ones.
        runs = re.findall(rb"[\x80-\xff]+", data)
        if 2 * sum(len(run) % 2 == 0 for run in runs) > len(runs):
            with suppress(UnicodeDecodeError):
                text = data.decode("gb18030")
                if problems is not None:
                    beyond_ascii = re.search(r"[^\x00-\x7f]+", text)
                    example = shown(beyond_ascii[0] if beyond_ascii else "")
                    problems.add("assumed encoding", f"{path} as GB 18030, e.g. {example}")
                return text
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from error


def read_lines(path: Path, problems: Problems | None = None) -> list[str]:
    """Read all lines of a text file, empty ones too, without surrounding white space; see `read_text`."""
    return [line.strip() for line in read_text(path, problems).splitlines()]


def read_json(path: Path, problems: Problems | None = None) -> Any:
    """Read a JSON file in any encoding of `read_text`; ValueError if it is not JSON."""
    text = read_text(path, problems)
    with naming_json(path):
        return json.loads(text)


def parse_xml(path: Path, largest: int = LARGEST_XML) -> ElementTree.Element:
    """Parse an XML file of at most `largest` bytes and return its root. Callers add the file name to a ValueError.

    A document type is refused: annotations need none, and its entities could expand without end or read other files.
    """

    def refuse_document_type(*_: object) -> None:
        raise ValueError("refused, as it declares a document type, which may define entities")

    if not path.is_file():
        raise ValueError("not found")
    if path.stat().st_size > largest:
        raise ValueError(f"has {path.stat().st_size} bytes, far more than an annotation")
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse_document_type
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except expat.ExpatError as error:
        raise ValueError(f"not readable as XML ({error})") from error
    except LookupError as error:
        raise ValueError(f"not readable as XML (unknown encoding: {error})") from error


class TextLoader(yaml.BaseLoader):
    """PyYAML loader that keeps scalars as text. It rejects repeated keys, and aliases, which can expand without end."""

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


def read_yaml(path: Path, problems: Problems | None = None) -> Any:
    """Read YAML as dicts, lists and text; ValueError if it is invalid, or has repeated keys or aliases."""
    text = read_text(path, problems)
    try:
        return yaml.load(text, Loader=TextLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {error.problem}; expected lines such as 'names: [cat, dog]'") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
