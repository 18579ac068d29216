"""Documents are true: what they name exists, and what must be documented is.

`python -m tests.docs` writes anew what a program writes.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.main import cli
from agent.core import ledgerevent
from agent.core.ask import Explain, Pause, Restrict, Resume, Status, parse_ask
from agent.core.policy import parse_unsigned_policy
from tests import car, docs
from tests.docs import ROOT

AGENT = ROOT / "agent"
TEXTS = {docs.name_of(path): path.read_text(encoding="utf-8") for path in docs.documents()}
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in AGENT.rglob("*.py")}
TOP = {path.name for path in ROOT.iterdir()}


def reasons_in_code(error: str) -> set[str]:
    """Return each `reason="…"` with which an error of that name, or a branch of it, is made."""
    branches = {
        "PolicyRejected": {"PolicyRejected", "BadSignature", "WrongVehicle", "WrongCatalogue"}
        | {"Rollback"},
        "EnvelopeRejected": {"EnvelopeRejected"},
    }[error]
    return {
        keyword.value.value
        for tree in SOURCES.values()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in branches
        for keyword in call.keywords
        if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
    }


def first_cells(text: str) -> set[str]:
    """Return the code in the first cell of every table row."""
    return {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in code(row)}


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("words", sorted(docs.commands()))
def test_the_help_in_the_document_is_the_real_one(words: str) -> None:
    shown = docs.part(TEXTS["docs/commands.md"], f"help: {words or 'consentry'}")

    assert shown == docs.help_part(words), "run: python -m tests.docs"


def test_the_document_has_no_command_that_is_gone() -> None:
    shown = [name for name in docs.parts(TEXTS["docs/commands.md"]) if name.startswith("help: ")]

    assert sorted(shown) == sorted(f"help: {words or 'consentry'}" for words in docs.commands())


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_command_line_in_a_document_can_be_given(name: str) -> None:
    """Its command exists, and so does each of its options."""
    for arguments in docs.command_lines(TEXTS[name]):
        words, command, rest = docs.resolve(arguments)
        given = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert given <= docs.options(command), f"consentry {words}: {given}"


def test_command_lines_are_found_at_all() -> None:
    assert ["check", "--config", "agent.toml"] in docs.command_lines(TEXTS["docs/mapping.md"])
    assert any("--mapping" in line for line in docs.command_lines(TEXTS["README.md"]))


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_option_that_is_named_alone_is_one_of_some_command(name: str) -> None:
    known = set[str]().union(*(docs.options(command) for command in docs.commands().values()))
    named = {span.split()[0] for span in docs.spans(TEXTS[name]) if span.startswith("--")}

    assert named <= known


def test_every_exit_status_is_documented() -> None:
    errors = ast.parse((ROOT / "agent" / "errors.py").read_text(encoding="utf-8"))
    statuses = {
        node.value.value
        for node in errors.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id.startswith("EXIT_")
    }
    told = set(re.findall(r"^\| (\d+) \|", TEXTS["docs/commands.md"], re.MULTILINE))

    assert {str(status) for status in statuses} | {"0", "130"} == told


def test_every_key_of_the_configuration_is_in_the_example_and_in_the_document() -> None:
    example = (ROOT / "config" / "agent.toml").read_text(encoding="utf-8")
    shown = docs.part(TEXTS["docs/commands.md"], "keys")

    assert shown == docs.key_part(), "run: python -m tests.docs"
    for key in docs.config_keys():
        section, name = key.split(".")
        assert re.search(rf"^\[+{section}\]+$", example, re.MULTILINE), section
        assert re.search(rf"^(# )?{name} = ", example, re.MULTILINE), key


def test_every_reason_for_a_refused_policy_is_documented_and_exists() -> None:
    section = TEXTS["docs/policy.md"].partition("## Reasons for a refusal")[2]

    assert first_cells(section) == reasons_in_code("PolicyRejected")


def test_every_reason_for_a_refused_envelope_is_documented_and_exists() -> None:
    table = TEXTS["docs/envelope.md"].partition("| reason |")[2].partition("\n\n")[0]
    told = first_cells(table) | set(docs.spans(TEXTS["docs/protocol.md"])) & {"wrong-topic"}

    assert told == reasons_in_code("EnvelopeRejected")


def test_every_reason_can_stand_in_the_ledger() -> None:
    reasons = reasons_in_code("PolicyRejected") | reasons_in_code("EnvelopeRejected")

    assert {reason for reason in reasons if not ledgerevent.WORD.accepts(reason)} == set()


def test_every_event_of_the_ledger_is_written_by_somebody() -> None:
    """An auditor looks in vain for what is in the list and never happens."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "agent").rglob("*.py")]
    others = "".join(text for text in texts if "EVENTS: Mapping" not in text)

    assert {name for name in ledgerevent.EVENTS if f'"{name}"' not in others} == set()


def test_the_module_table_is_complete_and_says_what_the_modules_say() -> None:
    shown = docs.part(TEXTS["docs/architecture.md"], "modules")

    assert shown == docs.module_part(), "run: python -m tests.docs"


def test_the_table_of_the_ledger_s_events_is_the_list_in_the_code() -> None:
    shown = docs.part(TEXTS["docs/ledger.md"], "events")

    assert shown == docs.event_part(), "run: python -m tests.docs"


def test_the_sizes_in_the_document_are_about_right() -> None:
    shown = docs.part(TEXTS["docs/architecture.md"], "sizes")
    told = {
        name.removesuffix("/*.py").removeprefix("agent/"): int(count.replace(",", ""))
        for name, count in re.findall(r"^\| `(.+?)` \| ([\d,]+) \|$", shown, re.MULTILINE)
    }

    assert told.keys() == docs.sizes().keys()
    for package, count in docs.sizes().items():
        assert abs(told[package] - count) <= max(100, 0.15 * count), "run: python -m tests.docs"


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_links_between_documents_resolve(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_path_that_a_document_names_is_there(name: str) -> None:
    """A path is inline code, or a word of a command line, that begins in a folder of ours."""
    words = {
        word.rstrip(".,:")
        for text in (*docs.spans(TEXTS[name]), *map(" ".join, docs.command_lines(TEXTS[name])))
        for word in text.split()
    }
    for word in words:
        first, slash, rest = word.partition("/")
        if not (slash and first and rest) or first in {"..", ".venv"} or set(word) & set("{}<>$=…"):
            continue
        places = [ROOT] * (first in TOP) + [AGENT] * (AGENT / first).is_dir()
        found = [
            path for place in places for path in (*place.glob(word), *place.glob(f"{word}.py"))
        ]
        assert found or not places, word


def test_paths_are_found_at_all() -> None:
    assert "agent/cloud/envelope.py" in docs.spans(TEXTS["docs/envelope.md"])


def test_every_word_of_the_glossary_is_used_in_the_code() -> None:
    text = " ".join(ast.unparse(tree) for tree in SOURCES.values()).lower()
    rows = re.findall(r"^\| (.+?) \| .+ \|$", TEXTS["docs/glossary.md"], re.MULTILINE)[1:]
    words = [word for row in rows for word in re.split(r", | \(|\)", row.lower()) if word]

    assert len(words) > 40
    unused = [word for word in words if word not in text and word.replace(" ", "_") not in text]
    assert unused == []
    assert len(words) == len(set(words))


def test_the_documents_the_broker_and_the_agent_have_the_same_topics() -> None:
    table = set(re.findall(r"^\| `(consentry/v1/\S+)` \|", TEXTS["docs/protocol.md"], re.MULTILINE))
    lane = ast.get_docstring(SOURCES[ROOT / "agent" / "edge" / "uplink" / "uplink.py"]) or ""
    agent = set(re.findall(r"consentry/v1/\S+", lane))
    access = (ROOT / "config" / "mosquitto" / "vehicles.acl").read_text(encoding="utf-8")
    broker = set(re.findall(r"^pattern \w+ (\S+)$", access, re.MULTILINE))

    assert agent <= table
    levels = {"{vehicle}": "%u", "{recipient}": "+", "{grant}": "+"}
    assert {"/".join(levels.get(w, w) for w in topic.split("/")) for topic in table} == broker


def test_the_capture_side_has_no_call_that_sends_on_a_bus() -> None:
    """docs/security.md: only the poller of OBD-II does, which is off; `play` is a tool."""
    sending = {"send", "send_periodic", "sendto", "sendmsg", "sendall"}
    calls = {
        (path.relative_to(ROOT).as_posix(), node.func.attr)
        for path, tree in SOURCES.items()
        if not {"demo", "uplink"} & set(path.parts)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in sending
    }

    tools = {"agent/cli/play.py", "agent/cli/virtualbus.py"}
    assert {call for call in calls if call[0] not in tools} == {("agent/edge/obd.py", "send")}


def test_what_can_send_on_a_bus_is_not_even_loaded_unless_it_is_asked_for() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, agent.daemon; sys.exit('agent.edge.obd' in sys.modules)",
        ],
        check=False,
    )

    assert done.returncode == 0


def test_the_example_policy_is_one_and_grants_what_the_demo_vehicle_has() -> None:
    policy = parse_unsigned_policy(
        (ROOT / "config" / "example_policy.json").read_bytes(), car.catalogue()
    )

    assert [grant.grant_id for grant in policy.grants] == ["gr_fleet", "gr_city"]


def test_the_examples_of_the_commands_work_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    made = [
        ["keys", "new", "recipient", "fx-1", "--out", "fleet-x.jwk"],
        ["keys", "new", "policy", "p-1", "--out", "policy.jwk"],
    ]
    examples = [
        line.split()[1:]
        for block in docs.blocks(TEXTS["docs/commands.md"])
        for line in block.splitlines()
        if line.startswith("consentry ")
    ]

    ended = [runner.invoke(cli, line) for line in (*made, *examples)]

    assert [result.exit_code for result in ended] == [0] * len(ended), ended
    assert len(examples) >= 2
    assert (tmp_path / "policy.jws").read_text().count(".") == 2


def test_what_the_document_says_can_be_asked_of_the_agent_can_be() -> None:
    """Each line that docs/operate.md shows, and no verb is left out."""
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    lines = re.findall(r'`(\{"verb": [^`]*\})`', text)

    asked = {type(parse_ask(line.replace("…", "a.b.c").encode())) for line in lines}

    assert asked == {Pause, Resume, Status, Explain, Restrict}


def test_each_decision_is_numbered_and_says_what_is_bad_about_it() -> None:
    files = sorted((ROOT / "docs" / "adr").glob("*.md"))

    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        for needed in (
            "\nStatus: ",
            "\n## Context\n",
            "\n## Decision\n",
            "\n## Bad consequences\n",
        ):
            assert needed in text, (path.name, needed)


def test_the_changelog_has_the_version_and_room_for_the_next() -> None:
    headings = re.findall(r"^## \[(.+?)\]", TEXTS["CHANGELOG.md"], re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert headings[0] == "Unreleased"
    assert f'version = "{headings[1]}"' in project


def test_what_the_readme_runs_can_be_given() -> None:
    """The commands of its transcripts are ours, and the files they read are there."""
    for name in docs.parts(TEXTS["README.md"]):
        (block,) = docs.blocks(docs.part(TEXTS["README.md"], name))
        for command, output in docs.transcript(block):
            assert output, command
            assert command.split()[0] in {"make", "sed", ".venv/bin/consentry"}, command
            for word in command.split():
                if "/" in word and not word.startswith(".venv/"):
                    assert (ROOT / word).is_file(), word


def test_every_log_line_of_the_agent_is_documented_with_its_facts() -> None:
    """So what is logged can be reviewed in one table: no value, no position."""
    table = TEXTS["docs/commands.md"].partition("### Log lines")[2]
    told = {
        (event, level, tuple(code(facts)))
        for event, level, facts in re.findall(
            r"^\| `(.+?)` \| (\w+) \| (.*?) ?\| ", table, re.MULTILINE
        )
    }
    platform = AGENT / "cloud"
    logged = {
        line
        for path, tree in SOURCES.items()
        if platform not in path.parents
        for node in ast.walk(tree)
        for line in log_line(node)
    }

    assert told == logged


def log_line(node: ast.AST) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (event, level, facts) of a call on a module's logger."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return []
    if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "_log"):
        return []
    facts = [
        ast.literal_eval(key)
        for keyword in node.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict)
        for key in keyword.value.keys
        if key is not None
    ]
    level = {"exception": "error"}.get(node.func.attr, node.func.attr)
    return [(ast.literal_eval(node.args[0]), level, tuple(facts))]


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {n for n in TEXTS if "/adr/" in n}))
def test_every_extra_that_a_document_names_can_be_installed(name: str) -> None:
    """Decision records stay as they were written; what they name may be gone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"extras? `(\w+)`", TEXTS[name])

    assert set(named) <= project["optional-dependencies"].keys()
