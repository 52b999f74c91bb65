"""Read the part of YAML that data set descriptions use; anything else is refused with its line.

Mappings and lists, in blocks or in brackets; plain and quoted scalars, which all stay text; literal blocks; comments.
"""

import re

KEY = re.compile(
    r"""
    ( "(?:[^"\\]|\\.)*" | '(?:[^']|'')*'
    | [^\s"'\[\]{},&*!|>%@`\#-] (?: [^#:] | :(?=\S) | (?<=\S)\# )*?
    | -\S[^:]*?
    ) \s* : (?=\s|$)""",
    re.VERBOSE,
)
UNSUPPORTED = {"&": "anchor", "*": "alias", "!": "tag", "%": "directive", "@": "character", "`": "character"}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "\\": "\\", "/": "/", " ": " "}
DEEPEST = 50  # levels

Value = str | list | dict


def parse_yaml(text: str, source: object) -> Value:
    """The content of a YAML file: dicts with text as keys, lists, and text; "" where there is no value.

    Args:
        source: what messages name.

    Raises:
        ValueError: the text has what this reader does not know; the message names the line.
    """
    return YamlReader(text, source).document()


class YamlReader:
    """Reads blocks line by line; what stands in brackets is joined to one line first."""

    def __init__(self, text: str, source: object):
        self.source = source
        self.lines: list[tuple[int, int, str]] = []  # line number, indent, content without comment
        self.raw = text.removeprefix("\ufeff").splitlines()
        self.position = 0
        for number, line in enumerate(self.raw, start=1):
            content = without_comment(line).rstrip()
            body = content.lstrip(" ")
            if body and not (body in ("---", "...") and body == content):
                self.lines.append((number, len(content) - len(body), body))

    def fail(self, number: int, message: str) -> ValueError:
        return ValueError(f"{self.source}, line {number}: {message}; expected lines such as 'names: [cat, dog]'")

    def document(self) -> Value:
        if not self.lines:
            return ""
        value = self.block(self.lines[0][1], 0)
        if self.position < len(self.lines):
            number, _, body = self.lines[self.position]
            raise self.fail(number, f"unexpected indentation or text {body[:40]!r}")
        return value

    def block(self, indent: int, level: int) -> Value:
        """The mapping, list or scalar that begins at the current line, all of whose lines have this indent."""
        number, _, body = self.lines[self.position]
        if level > DEEPEST:
            raise self.fail(number, "nested too deeply")
        if body.startswith("\t"):
            raise self.fail(number, "indented by a tab")
        if body == "-" or body.startswith("- "):
            return self.block_list(indent, level)
        if KEY.match(body):
            return self.block_mapping(indent, level)
        self.position += 1
        return self.inline(number, body)

    def block_list(self, indent: int, level: int) -> list:
        items = []
        while self.position < len(self.lines):
            number, at, body = self.lines[self.position]
            if at != indent or not (body == "-" or body.startswith("- ")):
                break
            rest = body[1:].lstrip(" ")
            if rest:
                # The item may itself be a mapping or a list, whose first line this is.
                inner = indent + len(body) - len(rest)
                self.lines[self.position] = (number, inner, rest)
                items.append(self.block(inner, level + 1))
            else:
                self.position += 1
                items.append(self.nested(indent + 1, level))
        return items

    def block_mapping(self, indent: int, level: int) -> dict:
        result: dict[str, Value] = {}
        while self.position < len(self.lines):
            number, at, body = self.lines[self.position]
            if at != indent:
                break
            match = KEY.match(body)
            if match is None:
                raise self.fail(number, f"expected 'key: value', not {body[:40]!r}")
            key = self.scalar(number, match.group(1))
            if key in result:
                raise self.fail(number, f"the key {key!r} a second time")
            rest = body[match.end() :].strip()
            self.position += 1
            if re.fullmatch(r"[|>][+-]?\d?", rest):
                result[key] = self.literal(number, indent)
            elif rest:
                result[key] = self.inline(number, rest)
            else:
                result[key] = self.nested(indent, level)
        return result

    def nested(self, indent: int, level: int) -> Value:
        """The value below a key or dash at `indent`: deeper lines, or a list at the key's own indent."""
        if self.position < len(self.lines):
            _, at, body = self.lines[self.position]
            if at > indent or (at == indent and (body == "-" or body.startswith("- "))):
                return self.block(at, level + 1)
        return ""

    def literal(self, number: int, indent: int) -> str:
        """The lines of a literal block, as they stand."""
        taken = []
        for line in self.raw[number:]:
            if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
                break
            taken.append(line.strip())
        last = number + len(taken)
        while self.position < len(self.lines) and self.lines[self.position][0] <= last:
            self.position += 1
        return "\n".join(taken).strip("\n")

    def inline(self, number: int, text: str) -> Value:
        """A value that begins on this line: in brackets, which may go on for lines, or a scalar."""
        if text[0] not in "[{":
            return self.scalar(number, text)
        while True:
            try:
                value, rest = self.flow(number, text, 0)
            except IndexError:
                if self.position == len(self.lines):
                    raise self.fail(number, "a bracket that is never closed") from None
                text += " " + self.lines[self.position][2]
                self.position += 1
                continue
            if rest.strip():
                raise self.fail(number, f"unexpected {rest.strip()[:40]!r} after a bracket")
            return value

    def flow(self, number: int, text: str, level: int) -> tuple[Value, str]:
        """A value in brackets and the text after it; IndexError where the text ends first."""
        if level > DEEPEST:
            raise self.fail(number, "nested too deeply")
        opening, text = text[0], text[1:].lstrip()
        is_list = opening == "["
        closing = "]" if is_list else "}"
        items: list[Value] = []
        pairs: dict[str, Value] = {}
        while text[0] != closing:
            if is_list:
                item, text = self.flow_item(number, text, level)
                items.append(item)
            else:
                match = KEY.match(text)
                if match is None:
                    if ":" not in text:
                        raise IndexError
                    raise self.fail(number, f"expected 'key: value' in braces, not {text[:40]!r}")
                value_text = text[match.end() :].lstrip()
                pairs[self.scalar(number, match.group(1))], text = self.flow_item(number, value_text, level)
            text = text.lstrip()
            if text[0] == ",":
                text = text[1:].lstrip()
            elif text[0] != closing:
                raise self.fail(number, f"expected ',' or {closing!r}, not {text[:40]!r}")
        return (items if is_list else pairs), text[1:]

    def flow_item(self, number: int, text: str, level: int) -> tuple[Value, str]:
        if text[0] in "[{":
            return self.flow(number, text, level + 1)
        if text[0] in "\"'":
            quote = closing_quote(text)
            if quote is None:
                raise IndexError
            return self.scalar(number, text[: quote + 1]), text[quote + 1 :]
        end = re.search(r"[,\]}]", text)
        if end is None:
            raise IndexError
        return self.scalar(number, text[: end.start()].strip()), text[end.start() :]

    def scalar(self, number: int, text: str) -> str:
        """The text of a plain or quoted scalar."""
        if text[:1] in ("'", '"'):
            if closing_quote(text) != len(text) - 1:
                raise self.fail(number, f"a quote that is not closed, or text after it: {text[:40]!r}")
            inner = text[1:-1]
            if text[0] == "'":
                return inner.replace("''", "'")
            return re.sub(r"\\(.)", lambda m: ESCAPES.get(m.group(1), m.group(0)), inner)
        if text[:1] in UNSUPPORTED:
            raise self.fail(number, f"an unsupported {UNSUPPORTED[text[0]]}: {text[:40]!r}")
        if re.search(r":(\s|$)", text):
            raise self.fail(number, f"two keys in one line: {text[:40]!r}")
        return "" if text in ("~", "null") else text


def without_comment(line: str) -> str:
    """The line up to a # that begins a comment: not within quotes, and after a space or at the line's start."""
    quote = ""
    for i, c in enumerate(line):
        if quote:
            quote = "" if c == quote and not (quote == '"' and line[i - 1] == "\\") else quote
        elif c in "\"'" and (i == 0 or line[i - 1] in " [{,:"):
            quote = c
        elif c == "#" and (i == 0 or line[i - 1] in " \t"):
            return line[:i]
    return line


def closing_quote(text: str) -> int | None:
    """Where the quote that `text` begins with is closed."""
    pattern = r"'(?:[^']|'')*'" if text[0] == "'" else r'"(?:[^"\\]|\\.)*"'
    match = re.match(pattern, text)
    return match.end() - 1 if match else None
