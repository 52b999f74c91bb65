"""Parse a script's options into typed settings: description of an option, types of values, parser.

The options themselves are in `options.py`, as fields of dataclasses derived from `Settings`.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from train_utils.options_file import options_in_file

T = TypeVar("T", bound="Settings")
SAME = object()  # the demo's default is the same as for other data
LARGEST = 1e9  # upper limit of all numbers


@dataclass(frozen=True)
class PerImage:
    """A learning rate proportional to the total batch size."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g} per image of the total batch"


@dataclass(frozen=True)
class Option:
    """Description of a command-line option; see `option`."""

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
    """Declare a dataclass field that is a command-line option.

    Args:
        default: the value if the option is not given; None if it depends on other things, which `help` explains.
        help: text for --help, in which `{default}` is replaced by the defaults.
        flags: names on the command line, if they differ from the field's name.
        group: group in --help of this option and of those that follow it.
        demo: the default for the demo's data.
        changes_result: whether the value affects the result, so that a resume refuses another value without --force.
        inherited: whether a resumed run uses the checkpoint's value if the option is not given.
        one_start: whether the option concerns one start of the script, not the run, so that --config ignores it.
        argparse_arguments: type, choices, nargs and so on. Without them the option is a flag: bare, True or False.
    """
    described = Option(help, flags, argparse_arguments, group, demo, changes_result, inherited, one_start)
    return field(default=default, metadata={"option": described})


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Format help with at most 100 columns and short metavars, and show flags without values."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.type is boolean:
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """Parser that accepts `-` and `_` alike in the names of long options."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse has overloads
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([dashed(a) for a in args], namespace)


def dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.partition("=")
    return name.replace("_", "-") + separator + value


def boolean(text: str) -> bool:
    """Parse `True`, `false`, `1`, `no`, ... as a bool."""
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


def boolean_or_decay(text: str) -> bool | float:
    try:
        return boolean(text)
    except argparse.ArgumentTypeError:
        return number(text, 0, 1)


def whole(text: str, least: int, most: int = 2**31 - 1) -> int:
    """Parse a whole number within limits."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not between {least} and {most}")
    return value


def number(text: str, least: float, most: float) -> float:
    """Parse a finite number within limits."""
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
    """Add an option that is given bare or with True or False."""
    parser.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


METAVARS = {positive: "N", natural: "N", integer: "N", seed_number: "N", str: "TEXT", int: "N"}


@dataclass
class Settings:
    """Options of a script.

    Attributes:
        given: names of the options given on the command line or in the --config file.
        from_file: names of those given only in the file.
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
        """Parse the command line; argparse ends the process with status 2 for unknown or invalid options."""
        given = vars(cls.parser(description).parse_args(arguments))
        in_file: dict[str, Any] = {}
        if given.get("config"):
            one_start = {each.name for each in cls.options() if each.metadata["option"].one_start}
            in_file = options_in_file(given["config"], cls.add_options, one_start)
        settings = cls(**(in_file | given))
        settings.given = frozenset(in_file) | frozenset(given)
        settings.from_file = frozenset(in_file) - frozenset(given)
        return settings

    # Without annotations, so that they are not fields, and thus not options.
    given = frozenset[str]()
    from_file = frozenset[str]()

    def to_plain(self) -> dict[str, Any]:
        """Return name -> value, as stored in args.json and checkpoints."""
        return {each.name: getattr(self, each.name) for each in self.options()}


def default_in_words(each: Field) -> str:
    demo = each.metadata["option"].demo
    words = [in_words(each.default)] + ([] if demo is SAME else [f"demo {in_words(demo)}"])
    return ", ".join(words)


def in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)
