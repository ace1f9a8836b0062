"""What our documents name: links, files, and commands in running text. Those in shell blocks are run in tests/ray."""

import re

import pytest
import typer
from documentation import DOCUMENTS, ROOT, mentioned

from gemel_ray.cli.main import app


@pytest.mark.parametrize(("document", "text"), sorted(set(mentioned())))
def test_commands_in_running_text_exist_with_their_options(document, text):
    known = typer.main.get_command(app).commands
    name, *words = text.split()[1:]
    assert name in known, f"{document}: {text}"
    options = {option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options | {"--help"}, f"{document}: {text}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_exist(path):
    text = path.read_text()
    links = [path.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
    named = [
        ROOT / name for name in re.findall(r"\b(?:jobs|serve_configs|tests)/[\w/-]+\.(?:py|sh|yaml|yml|json)\b", text)
    ]
    assert [str(found) for found in (*links, *named) if not found.exists()] == []
