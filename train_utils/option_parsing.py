"""How a script's options become typed settings: the description of an option, the types of values, the parser.

`options.py` has the options themselves, as fields of dataclasses derived from `Settings`.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from train_utils.options_file import options_in_file

T = TypeVar("T", bound="Settings")
SAME = object()  # the demo's default is that of all other data


@dataclass(frozen=True)
class PerImage:
    """A learning rate in proportion to the total batch."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g} per image of the total batch"


@dataclass(frozen=True)
class Option:
    """What a field's value on the command line is; see `option`."""

    help: str
    flags: tuple[str, ...]
    argparse: dict[str, Any]
    demo: Any
    changes_result: bool
    inherited: bool
    multi_gpu: bool
    one_start: bool


def option(
    default: Any,
    help: str,
    *flags: str,
    demo: Any = SAME,
    changes_result: bool = False,
    inherited: bool = False,
    multi_gpu: bool = False,
    one_start: bool = False,
    **argparse_arguments: Any,
) -> Any:
    """A dataclass field that is an option of the command line.

    Args:
        default: the value where the option is not given; None if it depends on other things, which `help` says.
        help: `{default}` in it is replaced by the defaults.
        flags: names other than the field's.
        demo: the default on the demo's data.
        changes_result: whether another value makes another run, which a resume refuses without --force.
        inherited: whether a resumed run takes the checkpoint's value where the option is not given.
        multi_gpu: an option of train_multi_GPU.py only.
        one_start: whether it is about one start of the script and not about the run, so that --config does not set it.
        argparse_arguments: type, choices, nargs and so on; a field without them is a flag, bare or with True or False.
    """
    described = Option(help, flags, argparse_arguments, demo, changes_result, inherited, multi_gpu, one_start)
    return field(default=default, metadata={"option": described})


class Parser(argparse.ArgumentParser):
    """Accepts every long option with `-` and with `_` in its name."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse has overloads
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([dashed(a) for a in args], namespace)


def dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.partition("=")
    return name.replace("_", "-") + separator + value


def boolean(text: str) -> bool:
    """`True`, `false`, `1`, `no`, ... as a bool."""
    if text.lower() in ("true", "t", "yes", "y", "on", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def boolean_or_path(text: str) -> bool | str:
    try:
        return boolean(text)
    except argparse.ArgumentTypeError:
        return text


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is below 0")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not between 0 and 1")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 0.9:
        raise argparse.ArgumentTypeError(f"'{text}' is not between 0 and 0.9")
    return value


def strength(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not between 0 and 1")
    return value


def add_flag(parser: argparse.ArgumentParser, name: str, help: str, default: bool | None = False) -> None:
    """An option that is given bare or with True or False."""
    parser.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


@dataclass
class Settings:
    """Options of a script.

    Attributes:
        given: the names of those that stood on the command line or in a file of options.
        from_file: those of them that only the file had.
    """

    @classmethod
    def parser(cls, description: str | None, multi_gpu: bool = False) -> Parser:
        parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        cls.add_options(parser, multi_gpu)
        return parser

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser, multi_gpu: bool) -> None:
        for each in cls.options(multi_gpu):
            described: Option = each.metadata["option"]
            flags = described.flags or (f"--{each.name.replace('_', '-')}",)
            arguments = dict(described.argparse)
            if not arguments:
                arguments = {"type": boolean, "nargs": "?", "const": True, "metavar": "True|False"}
            help = described.help.replace("{default}", f"default: {default_in_words(each)}")
            parser.add_argument(*flags, dest=each.name, default=argparse.SUPPRESS, help=help, **arguments)

    @classmethod
    def options(cls, multi_gpu: bool = True) -> list[Field]:
        return [f for f in fields(cls) if "option" in f.metadata and (multi_gpu or not f.metadata["option"].multi_gpu)]

    @classmethod
    def parse(
        cls: type[T], description: str | None, arguments: Sequence[str] | None = None, multi_gpu: bool = False
    ) -> T:
        """Settings from the command line; argparse ends the process, with status 2, for what it does not know."""
        given = vars(cls.parser(description, multi_gpu).parse_args(arguments))
        in_file: dict[str, Any] = {}
        if given.get("config"):
            one_start = {each.name for each in cls.options() if each.metadata["option"].one_start}
            in_file = options_in_file(given["config"], lambda other: cls.add_options(other, multi_gpu=True), one_start)
        settings = cls(**(in_file | given))
        settings.given = frozenset(in_file) | frozenset(given)
        settings.from_file = frozenset(in_file) - frozenset(given)
        return settings

    # No annotations, so no fields: they are not options.
    given = frozenset[str]()
    from_file = frozenset[str]()

    def to_plain(self) -> dict[str, Any]:
        """Name -> value, as args.json and checkpoints hold them."""
        return {each.name: getattr(self, each.name) for each in self.options()}


def default_in_words(each: Field) -> str:
    demo = each.metadata["option"].demo
    words = [in_words(each.default)] + ([] if demo is SAME else [f"demo {in_words(demo)}"])
    return ", ".join(words)


def in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)
