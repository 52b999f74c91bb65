"""Parse the options that `options.py` declares, from the command line and from a JSON file (--config)."""

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from typing import Any, NoReturn, TypeVar

from train_utils.errors import InputError, read_json, warn

T = TypeVar("T", bound="Settings")
N = TypeVar("N", int, float)
V = TypeVar("V")
SAME = object()  # the demo's default is the same as for other data
LARGEST = 1e9  # upper limit of all numbers

# Roles of an option in a resumed run, and in --config. An option without a role is never taken from the checkpoint.
RESULT = "result"  # taken from the checkpoint; another value changes the result, and is refused without --force
KEPT = "kept"  # taken from the checkpoint if not given
START = "start"  # concerns one start of the script rather than the run; --config ignores it


def option(
    default: Any, help: str, *flags: str, group: str | None = None, demo: Any = SAME, role: str | None = None,
    **argparse_arguments: Any,
) -> Any:  # fmt: skip
    """Declare a dataclass field that is a command-line option.

    Args:
        default: the value if the option is not given; None if `help` explains what it depends on.
        help: text for --help, in which `{default}` becomes the default, and the demo's if it differs.
        flags: further names on the command line.
        group: title in --help above this option and those that follow it.
        role: RESULT, KEPT, START or None.
        argparse_arguments: type, choices, nargs and so on; without them the option is a flag: bare, True or False.
    """
    described = dict(help=help, flags=flags, argparse=argparse_arguments, group=group, demo=demo, role=role)
    return field(default=default, metadata=described)


def boolean(text: str) -> bool:
    """Parse `True`, `false`, `1`, `no`, ... as a bool."""
    if text.lower() in ("true", "t", "yes", "y", "on", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def boolean_or(other: Callable[[str], V]) -> Callable[[str], bool | V]:

    def parse(text: str) -> bool | V:
        with suppress(argparse.ArgumentTypeError):
            return boolean(text)
        return other(text)

    return parse


def between(kind: type[N], least: N, most: N, inclusive: bool = True) -> Callable[[str], N]:
    """Return a function that parses a number within limits."""

    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"'{text}' is not a {whole}number") from None
        if not least <= value <= most or not inclusive and value in (least, most):
            limits = f"{least} and {most}" if kind is int else f"{least:g} and {most:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not between {limits}")
        return value

    return parse


integer = between(int, -(2**31), 2**31 - 1)
natural = between(int, 0, 2**31 - 1)
positive = between(int, 1, 2**31 - 1)
seed_number = between(int, 0, 2**63 - 1)
natural_number = between(float, 0, LARGEST)
positive_number = between(float, 1e-12, LARGEST)
fraction = between(float, 0, 1, inclusive=False)
share = between(float, 0, 0.9)
strength = between(float, 0, 1)
boolean_or_path = boolean_or(str)
boolean_or_decay = boolean_or(strength)
METAVARS: dict[Any, str] = dict.fromkeys((integer, natural, positive, seed_number, int), "N")
FLAG: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True, "metavar": "True|False"}


def add_flag(parser: argparse.ArgumentParser, name: str, help: str, default: bool | None = False) -> None:
    """Add a flag, which may be followed by True or False."""
    parser.add_argument(name, default=default, help=help, **FLAG)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Format --help in at most 100 columns, and show no value after a flag."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.type is boolean:
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """Parser that accepts `-` and `_` alike in the names of long options."""

    file: str | None = None  # whose options are parsed; errors then raise InputError instead of ending the process

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse has overloads
        args = sys.argv[1:] if args is None else args
        dashed = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), a) for a in args]
        return super().parse_known_args(dashed, namespace)

    def error(self, message: str) -> NoReturn:
        if self.file is not None:
            raise InputError(f"{self.file}: {message}")
        super().error(message)


@dataclass
class Settings:
    """Options of a script. `given` names the options that the user set, `from_file` those set only in --config."""

    # Without annotations, so that they are not fields, and thus not options.
    given = frozenset[str]()
    from_file = frozenset[str]()

    @classmethod
    def parse(cls: type[T], description: str | None, arguments: Sequence[str] | None = None) -> T:
        """Parse the command line; argparse ends the process with status 2 for unknown or invalid options."""
        parser = cls.parser(description)
        given = vars(parser.parse_args(arguments))
        for name, value in given.items():
            if value == "" or isinstance(value, list) and "" in value:
                parser.error(f"--{name.replace('_', '-')} '': the value is empty")
        in_file = cls.options_in_file(given["config"]) if given.get("config") else {}
        settings = cls(**(in_file | given))
        settings.given = frozenset(in_file) | frozenset(given)
        settings.from_file = frozenset(in_file) - frozenset(given)
        return settings

    @classmethod
    def options(cls) -> list[Field]:
        return [f for f in fields(cls) if "role" in f.metadata]

    def to_plain(self) -> dict[str, Any]:
        """Return the options as a dict, name -> value, as in args.json and checkpoints."""
        return {each.name: getattr(self, each.name) for each in self.options()}

    @classmethod
    def parser(cls, description: str | None, add_help: bool = True) -> Parser:
        parser = Parser(
            description=description, usage="%(prog)s [options]", formatter_class=HelpFormatter, add_help=add_help,
            epilog="Options that show no value are flags: --amp, --amp True, --amp False.",
        )  # fmt: skip
        group: Any = parser
        for each in cls.options():
            described, arguments = each.metadata, dict(each.metadata["argparse"] or FLAG)
            if described["group"]:
                titles = {g.title: g for g in parser._action_groups}
                group = titles.get(described["group"]) or parser.add_argument_group(described["group"])
            if "choices" not in arguments:
                arguments.setdefault("metavar", METAVARS.get(arguments.get("type"), "X"))
            default = f"default: {describe(each.default)}"
            if described["demo"] is not SAME:
                default += f", demo {describe(described['demo'])}"
            group.add_argument(
                *described["flags"], f"--{each.name.replace('_', '-')}", dest=each.name, default=argparse.SUPPRESS,
                help=described["help"].replace("{default}", default), **arguments,
            )  # fmt: skip
        return parser

    @classmethod
    def options_in_file(cls, path: str) -> dict[str, Any]:
        """Read options from a JSON file, {"name": value}, and check them as on the command line."""
        if not isinstance(content := read_json(path, "--config"), dict):
            raise InputError(f"{path}: not an object of options and values like a run's args.json")
        parser = cls.parser(None, add_help=False)
        parser.file = path
        actions = {action.dest: action for action in parser._actions}
        actions |= {name.strip("-").replace("-", "_"): a for a in parser._actions for name in a.option_strings}
        ignored = {each.name for each in cls.options() if each.metadata["role"] == START}
        found: dict[str, Any] = {}
        for name, value in content.items():
            if (action := actions.get(name.replace("-", "_"))) is None:
                near = difflib.get_close_matches(name, actions, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise InputError(f"{path}: there is no option '{name}'{hint}")
            if value is not None and action.dest == "hooks":  # it would run a file
                warn(f"{path}: 'hooks' is ignored in a file; give --hooks {value} to run it")
            if value is not None and action.dest not in ignored:
                flag = action.option_strings[-1]
                words = [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
                found[action.dest] = vars(parser.parse_args(words))[action.dest]  # no option inside a value
        return found


def describe(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)
