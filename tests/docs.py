"""What stands in the documents, read as data; and the parts of them that are written by a program.

`python -m tests.docs` writes those parts anew: help texts, tables, the transcript of a replay. That
of the demo varies in its numbers and takes half a minute, so it is written only when it is named:
`python -m tests.docs demo`.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import click
from click.testing import CliRunner
from pydantic import BaseModel

from agent.cli.main import cli
from agent.config import Config
from agent.core.ledgerevent import EVENTS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
COMMANDS = DOCS / "commands.md"
ARCHITECTURE = DOCS / "architecture.md"
LEDGER = DOCS / "ledger.md"
PACKAGE = ROOT / "agent"

# What `make` runs, without its set-up.
SHOWN_BY = {"make demo": ".venv/bin/consentry demo"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_SHOWN_WIDTH = 78  # What click takes on a terminal of 80 columns.


def documents() -> list[Path]:
    """Every Markdown file of the project, but for what tools bring."""
    return sorted(
        path
        for folder in (".", "docs", "docs/adr", "config/vehicles", "demo")
        for path in (ROOT / folder).glob("*.md")
    )


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[str]:
    """Return the code blocks."""
    return [found.group(2) for found in _FENCE.finditer(text)]


def spans(text: str) -> list[str]:
    """Return the inline code."""
    return _SPAN.findall(_FENCE.sub("", text))


def part(text: str, name: str) -> str:
    """Return what stands between the markers of a part that a program writes."""
    found = _marked(name).search(text)
    assert found, f"there are no markers of {name}"
    return found.group(2)


def with_part(text: str, name: str, new: str) -> str:
    """Return the text with the part between the markers replaced."""
    assert part(text, name) is not None
    return _marked(name).sub(lambda found: found.group(1) + new + found.group(3), text)


def parts(text: str) -> list[str]:
    """Return the names of all marked parts."""
    return re.findall(r"<!-- (.+?): begin -->", text)


def _marked(name: str) -> re.Pattern[str]:
    mark = re.escape(name)
    return re.compile(rf"(<!-- {mark}: begin -->\n)(.*?)(<!-- {mark}: end -->)", re.DOTALL)


@cache
def commands() -> dict[str, click.Command]:
    """Return every command by its words, such as "policy sign"; "" is the whole."""
    return dict(_commands("", cli))


def _commands(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(f"{words} {name}".strip(), found)


def options(command: click.Command) -> set[str]:
    """Return the spelling of each option, `--help` included."""
    declared = {
        spelling
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }
    return declared | {"--help", "-h"}


def help_of(words: str) -> str:
    """Return what `consentry WORDS --help` prints."""
    result = CliRunner().invoke(
        cli, [*words.split(), "--help"], prog_name="consentry", terminal_width=_SHOWN_WIDTH
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def help_part(words: str) -> str:
    return f"```\n{help_of(words)}```\n"


def command_lines(text: str) -> list[list[str]]:
    """Return the arguments of each `consentry …` in code blocks, transcripts and inline code."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = []
    for line in [*lines, *spans(text)]:
        words = shlex.split(line.replace("…", "..."), comments=True) if "consentry" in line else []
        program = words[0].rpartition("/")[2] if words else ""
        if program == "consentry":
            ends = [words.index(sign) for sign in ("|", ">", "&&", ";") if sign in words]
            found.append(words[1 : min(ends, default=len(words))])
    return found


def resolve(arguments: list[str]) -> tuple[str, click.Command, list[str]]:
    """Return the command that arguments lead to, and those that are left for it."""
    words, command, rest = "", cli, list(arguments)
    found: click.Command = command
    while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
        words = f"{words} {rest.pop(0)}".strip()
        assert words in commands(), f"there is no command `consentry {words}`"
        found = commands()[words]
    return words, found, rest


def key_part() -> str:
    """Return the table of agent.toml's keys with their defaults."""
    lines = ["| key | default |", "|---|---|"]
    for key, default in config_keys().items():
        lines.append(f"| `{key}` | {default} |")
    return "\n".join(lines) + "\n"


def config_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Return every key of agent.toml, with its default in words."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if inner is not None:
            found |= config_keys(inner, f"{prefix}{name}.")
        elif field.is_required():
            found[prefix + name] = "needed"
        elif field.default is None or field.default == {}:
            found[prefix + name] = "none"
        elif isinstance(field.default, bool):
            found[prefix + name] = str(field.default).lower()
        elif isinstance(field.default, tuple):
            found[prefix + name] = ", ".join(field.default)
        else:
            found[prefix + name] = str(field.default)
    return found


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def first_line(module: Path) -> str:
    """Return the first line of a module's docstring."""
    told = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert told, f"{module} has no docstring"
    return told.splitlines()[0]


def module_part() -> str:
    """Return the module table: each package with its own line, then its modules."""
    lines = ["| module | what it is |", "|---|---|"]
    for module in sorted(modules(), key=_place):
        inside = module.relative_to(PACKAGE)
        if inside.name != "__init__.py":
            name = f"`{inside.as_posix()}`"
        elif inside.parent == Path():
            name = "**`agent/`**"
        else:
            name = f"**`{inside.parent.as_posix()}/`**"
        lines.append(f"| {name} | {first_line(module).replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _place(module: Path) -> tuple[int, str]:
    """Sort the top modules first, then the packages from the inside out."""
    order = ("", "core", "edge", "control", "cloud", "demo", "cli")
    inside = module.relative_to(PACKAGE)
    package = inside.parts[0] if len(inside.parts) > 1 else ""
    return order.index(package), inside.as_posix().replace("__init__.py", "")


def sizes() -> dict[str, int]:
    """Return the lines of each package, and of the modules beside them under `agent`."""
    found: dict[str, int] = {}
    for module in modules():
        inside = module.relative_to(PACKAGE)
        package = inside.parts[0] if len(inside.parts) > 1 else "agent"
        count = len(module.read_text(encoding="utf-8").splitlines())
        found[package] = found.get(package, 0) + count
    return found


def size_part() -> str:
    """Return the table of sizes, in steps of 100 so that it holds for a while."""
    lines = ["| package | lines |", "|---|---|"]
    for package, count in sizes().items():
        name = "`agent/*.py`" if package == "agent" else f"`agent/{package}`"
        lines.append(f"| {name} | {round(count, -2):,} |")
    return "\n".join(lines) + "\n"


def event_part() -> str:
    """Return the table of the ledger's events, each with its facts and their kinds."""
    lines = ["| event | facts |", "|---|---|"]
    for name, kinds in EVENTS.items():
        facts = ", ".join(f"`{fact}` {kind.name}" for fact, kind in kinds.items())
        lines.append(f"| `{name}` | {facts} |")
    return "\n".join(lines) + "\n"


def transcript(block: str) -> list[tuple[str, str]]:
    """Return (command, output) of each `$ ` line in a transcript."""
    found: list[tuple[str, str]] = []
    for line in block.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((" ".join(line[2:].split()), ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def shown_again(block: str, *, folder: Path) -> str:
    """Run a transcript's commands and return it with what they print now."""
    found = "```\n"
    for lines in re.findall(r"^\$ (?:.*\\\n)*.*\n", block, re.MULTILINE):
        command = " ".join(lines[2:].replace("\\\n", " ").split())
        command = SHOWN_BY.get(command, command)
        found += lines + run_shown(command, folder=folder)
    return found + "```\n"


def run_shown(command: str, *, folder: Path) -> str:
    """Run a command of the README and return all that a person would see.

    Args:
        command: A shell line. `.venv/bin/consentry` is the one under test.
        folder: Where files without a folder are written.
    """
    program = Path(sys.executable).with_name("consentry")
    line = command.replace(".venv/bin/consentry", shlex.quote(str(program)))
    line = re.sub(
        r"(?<![\w/.])permitted\.jsonl", shlex.quote(str(folder / "permitted.jsonl")), line
    )
    ended = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stdout}"
    return ended.stdout


def _write(*names: str) -> None:
    """Write what a program writes, the named transcripts of the README among it."""
    text = COMMANDS.read_text(encoding="utf-8")
    for words in commands():
        text = with_part(text, f"help: {words or 'consentry'}", help_part(words))
    text = with_part(text, "keys", key_part())
    COMMANDS.write_text(text, encoding="utf-8")
    text = with_part(ARCHITECTURE.read_text(encoding="utf-8"), "modules", module_part())
    ARCHITECTURE.write_text(with_part(text, "sizes", size_part()), encoding="utf-8")
    text = LEDGER.read_text(encoding="utf-8")
    LEDGER.write_text(with_part(text, "events", event_part()), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            shown = shown_again(part(text, f"transcript: {name}"), folder=Path(folder))
        text = with_part(text, f"transcript: {name}", shown)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write("replay", *sys.argv[1:])
