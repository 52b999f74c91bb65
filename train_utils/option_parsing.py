"""How a script's options become typed settings: the description of an option, the types of values, the parser.

`options.py` has the options themselves, as fields of dataclasses derived from `Settings`.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from train_utils.options_file import options_in_file

T = TypeVar("T", bound="Settings")
SAME = object()  # the demo's default is that of all other data
LARGEST = 1e9  # no option means anything beyond it


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
    group: str | None
    demo: Any
    changes_result: bool
    inherited: bool
    one_start: bool


def option(
    default: Any,
    help: str,
    *flags: str,
    group: str | None = None,
    demo: Any = SAME,
    changes_result: bool = False,
    inherited: bool = False,
    one_start: bool = False,
    **argparse_arguments: Any,
) -> Any:
    """A dataclass field that is an option of the command line.

    Args:
        default: the value where the option is not given; None if it depends on other things, which `help` says.
        help: `{default}` in it is replaced by the defaults.
        flags: names other than the field's.
        group: the group in --help of this option and of those that follow it.
        demo: the default on the demo's data.
        changes_result: whether another value makes another run, which a resume refuses without --force.
        inherited: whether a resumed run takes the checkpoint's value where the option is not given.
        one_start: whether it is about one start of the script and not about the run, so that --config does not set it.
        argparse_arguments: type, choices, nargs and so on; a field without them is a flag, bare or with True or False.
    """
    described = Option(help, flags, argparse_arguments, group, demo, changes_result, inherited, one_start)
    return field(default=default, metadata={"option": described})


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Lines of at most 100 columns; flags without their values, other options with short metavars."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.type is boolean:
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


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


def whole(text: str, least: int, most: int = 2**31 - 1) -> int:
    """A whole number within limits."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not between {least} and {most}")
    return value


def number(text: str, least: float, most: float) -> float:
    """A number within limits; neither nan nor infinite."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not between {least:g} and {most:g}")
    return value


def positive(text: str) -> int:
    return whole(text, 1)


def natural(text: str) -> int:
    return whole(text, 0)


def seed_number(text: str) -> int:
    return whole(text, 0, 2**63 - 1)


def integer(text: str) -> int:
    return whole(text, -(2**31))


def positive_number(text: str) -> float:
    return number(text, 1e-12, LARGEST)


def natural_number(text: str) -> float:
    return number(text, 0, LARGEST)


def fraction(text: str) -> float:
    value = number(text, 0, 1)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"'{text}' is not between 0 and 1")
    return value


def share(text: str) -> float:
    return number(text, 0, 0.9)


def strength(text: str) -> float:
    return number(text, 0, 1)


def add_flag(parser: argparse.ArgumentParser, name: str, help: str, default: bool | None = False) -> None:
    """An option that is given bare or with True or False."""
    parser.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


METAVARS = {positive: "N", natural: "N", integer: "N", seed_number: "N", str: "TEXT", int: "N"}


@dataclass
class Settings:
    """Options of a script.

    Attributes:
        given: the names of those that stood on the command line or in a file of options.
        from_file: those of them that only the file had.
    """

    @classmethod
    def parser(cls, description: str | None) -> Parser:
        parser = Parser(
            description=description, usage="%(prog)s [options]", formatter_class=HelpFormatter,
            epilog="Options that show no value are flags: --amp, --amp True, --amp False.",
        )  # fmt: skip
        cls.add_options(parser)
        return parser

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        groups: dict[str, argparse._ArgumentGroup] = {}
        title = ""
        for each in cls.options():
            described: Option = each.metadata["option"]
            title = described.group or title
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            flags = described.flags or (f"--{each.name.replace('_', '-')}",)
            arguments = dict(described.argparse)
            if not arguments:
                arguments = {"type": boolean, "nargs": "?", "const": True, "metavar": "True|False"}
            elif "choices" not in arguments:
                arguments.setdefault("metavar", METAVARS.get(arguments.get("type"), "X"))
            help = described.help.replace("{default}", f"default: {default_in_words(each)}")
            groups[title].add_argument(*flags, dest=each.name, default=argparse.SUPPRESS, help=help, **arguments)

    @classmethod
    def options(cls) -> list[Field]:
        return [f for f in fields(cls) if "option" in f.metadata]

    @classmethod
    def parse(cls: type[T], description: str | None, arguments: Sequence[str] | None = None) -> T:
        """Settings from the command line; argparse ends the process, with status 2, for what it does not know."""
        given = vars(cls.parser(description).parse_args(arguments))
        in_file: dict[str, Any] = {}
        if given.get("config"):
            one_start = {each.name for each in cls.options() if each.metadata["option"].one_start}
            in_file = options_in_file(given["config"], cls.add_options, one_start)
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
