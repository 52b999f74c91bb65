"""Read options from a JSON file (--config): args.json of an earlier run, or one written by hand."""

import argparse
import difflib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from train_utils.errors import InputError, warn


class FileParser(argparse.ArgumentParser):
    """Parser that raises ValueError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def options_in_file(
    path: str, add_options: Callable[[argparse.ArgumentParser], None], passed_over: Collection[str]
) -> dict[str, Any]:
    """Read the options of a JSON object, name -> value; null means not given.

    Names are those of args.json or of the command line, with `-` or `_`. Values are checked as on the command line.

    Args:
        add_options: function that adds the known options to a parser.
        passed_over: names of options that are ignored in a file.

    Raises:
        InputError: the file cannot be read, names an option that does not exist, or has an invalid value.
    """
    parser = FileParser(add_help=False)
    add_options(parser)
    actions = {action.dest: action for action in parser._actions}
    actions |= {name.strip("-").replace("-", "_"): a for a in parser._actions for name in a.option_strings}
    found: dict[str, Any] = {}
    for name, value in read_object(path).items():
        action = actions.get(name.replace("-", "_"))
        if action is None:
            near = difflib.get_close_matches(name, actions, n=1)
            raise InputError(f"{path}: there is no option '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        if value is None or action.dest in passed_over:
            if value is not None and action.dest == "hooks":  # it would run a file
                warn(f"{path}: 'hooks' is ignored in a file; give --hooks {value} to run it")
            continue
        flag = action.option_strings[-1]
        words = [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
        try:
            found |= vars(parser.parse_args(words))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
    return found


def read_object(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (--config)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not an object of options and values like a run's args.json")
    return content
