"""What the documents say is true."""

import json
import os
import re
import subprocess

import numpy as np
import pytest

from tests.conftest import BIN, ROOT, StartServer, run, tracked

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.model
@pytest.mark.server
def test_the_readmes_commands_and_programs_run(start_server: StartServer, model_path: str) -> None:
    with start_server("--model-path", model_path, "--workers", "2") as server:
        (curl,) = (block for block in blocks("bash") if block.startswith("curl"))
        got = json.loads(subprocess.check_output(["bash", "-c", curl.replace("http://127.0.0.1:8000", server.url)]))
        said = json.loads(blocks("json")[0])
        np.testing.assert_allclose(
            got["data"][0].pop("embedding"), said["data"][0].pop("embedding"), atol=0.02
        )  # formats differ
        assert got == said

        library, client = blocks("python")
        for program in (library, client.replace("http://127.0.0.1:8000", server.url)):
            result = run(BIN / "python", "-c", program, cwd=ROOT)
            assert result.returncode == 0, result.stderr


@pytest.mark.model
def test_the_readmes_embed_command_runs() -> None:
    (command,) = re.findall(r"^embellama embed .*$", README, re.MULTILINE)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    row = json.loads(subprocess.check_output(command, shell=True, cwd=ROOT, env=environment))
    assert len(row) == 384


@pytest.mark.model
@pytest.mark.parametrize("document", ["frames", "library", "outputs"])
def test_a_documents_examples_run(document: str) -> None:
    text = (ROOT / "docs" / f"{document}.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    result = run(BIN / "python", "-c", program, cwd=ROOT)
    assert result.returncode == 0, result.stderr


DOCUMENTS = [str(path.relative_to(ROOT)) for path in tracked("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
        assert target.startswith("https://") or (folder / target).exists(), target


@pytest.mark.parametrize("top", ["embellama", "server/embellama_server"])
def test_the_map_has_every_room_and_module(top: str) -> None:
    [drawn] = re.findall(rf"^```\n{top}/\n(.*?)^```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL | re.MULTILINE)
    # An entry is a line that is indented by two; what follows with more belongs to it.
    entries: dict[str, str] = {}
    for names, about in re.findall(r"^  ((?:\w[\w/]*(?:, )?)+)(.*?)(?=^  \w|\Z)", drawn, re.DOTALL | re.MULTILINE):
        entries |= dict.fromkeys(names.split(", "), about)
    modules = [path.relative_to(ROOT / top) for path in tracked(top) if path.suffix == ".py"]
    for module in modules:
        if module.name.startswith("__"):
            assert module.parent.name == "" or f"{module.parent}/" in entries, module
        elif module.parent.name:
            assert re.search(rf"\b{module.stem}\b", entries[f"{module.parent}/"]), module
        else:
            assert module.stem in entries, module
    rooms = {f"{module.parent}/" for module in modules if module.parent.name}
    assert entries.keys() == rooms | {module.stem for module in modules if not module.parent.name} - {"__init__"}


@pytest.mark.parametrize("benchmark", ["compare", "crowd", "shapes"])
def test_the_map_names_the_benchmarks_that_it_rests_on(benchmark: str) -> None:
    assert f"{benchmark}.py" in (ROOT / "ARCHITECTURE.md").read_text()
