"""The playground: texts in, tokens, vectors, times and the call out; done by clicks and keys."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import Server, running_server
from tests.server.gateway.conftest import Keys
from tests.server.web.conftest import LOOKS, OpenPage, check_accessible

pytestmark = [pytest.mark.model, pytest.mark.server]

PATH = "/#playground"
# Whatever a page, a shell, a program or a spreadsheet might take for something else than a text.
HOSTILE = [
    "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>",
    "'; rm -rf / #$(touch hacked) `touch hacked` \\' \" %s {0} ${x} {{ 7 * 7 }}",
    "مرحبا \u202eright to left\u202c abc",
    "👩‍👩‍👧‍👦 e\u0301 \u0007 \\u0041 \\",
    "END",
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"), reader={}, slow={"requests_per_minute": 2})


@pytest.fixture(scope="module")
def guarded(tiny_path: str, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server below a path that answers nobody without a key."""
    log = tmp_path_factory.mktemp("guarded") / "log"
    flags = ("--model-path", tiny_path, "--workers", "1", "--root-path", "/below", "--keys-file", str(keys.path))
    with running_server(log, *flags) as server:
        yield server


def fill(page: Page, *texts: str) -> None:
    page.get_by_label("Texts, one a line").locator("visible=true").fill("\n".join(texts))


def open_file(page: Page, *texts: str) -> None:
    """Have many texts read from a file: to type them takes a browser seconds."""
    content: Any = {"name": "texts.txt", "mimeType": "text/plain", "buffer": "\n".join(texts).encode()}
    page.locator("section:not([hidden]) input[type=file]").set_input_files(content)
    expect(page.locator("section:not([hidden]) .form").get_by_role("status").first).to_have_text(f"{len(texts)} texts")


def embed(page: Page, *texts: str) -> Locator:
    """Embed texts, and return the list of what became of them."""
    fill(page, *texts)
    page.get_by_role("button", name="Embed").click()
    answers = page.locator("#playground .answers > li")
    expect(answers).to_have_count(len(texts))
    return answers


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_tokens_times_and_vectors_are_shown(server: Server, open_page: OpenPage, width: int, scheme: str) -> None:
    with open_page(server, PATH, width=width, scheme=scheme) as page:
        answers = embed(page, "A cat sleeps.", "Embeddings")
        expect(answers.nth(0).locator(".token")).to_have_text(["[CLS]", "a", "cat", "sleeps", ".", "[SEP]"])
        expect(answers.nth(1).locator(".token")).to_have_text(["[CLS]", "em", "##bed", "##ding", "##s", "[SEP]"])
        expect(answers.nth(0)).to_contain_text("384 numbers: ")
        phases = page.get_by_role("region", name="Time by phase").get_by_role("row")
        expect(phases).to_have_count(5)
        expect(phases.nth(3)).to_have_text(re.compile(r"inference[\d.]+ ms"))
        check_accessible(page)


@pytest.mark.parametrize(
    ("choice", "cut"), [("end", "three"), ("start", "one"), ("3", "three")], ids=["end", "start", "tokens"]
)
def test_what_was_cut_is_struck_out(server: Server, open_page: OpenPage, choice: str, cut: str) -> None:
    text = f"one {'two ' * (1 if choice == '3' else 509)}three"  # of 512 tokens two are special
    with open_page(server, PATH) as page:
        page.get_by_label("Too long").select_option("tokens" if choice == "3" else choice)
        if choice == "3":
            page.get_by_label("Tokens to keep").fill("4")  # with the special ones
        answers = embed(page, text)
        expect(answers.locator("s")).to_have_text([cut])
        expect(answers).to_contain_text("and 1 that were cut")


def test_a_text_of_100_000_characters_is_shown_whole_when_asked(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        page.get_by_label("Too long").select_option("end")
        answers = embed(page, "word " * 20_000)
        expect(answers.locator(".token")).to_have_count(600)
        answers.get_by_role("button", name="Show all 20002 tokens").click()
        expect(answers.locator(".token")).to_have_count(20_002)
        expect(answers.locator("s")).to_have_count(20_002 - 512)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_texts_are_shown_as_text(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        answers = embed(page, *HOSTILE)
        expect(answers.nth(0)).to_contain_text("<script>document.title='hacked'</script>")
        assert page.locator("#playground img, #playground script").count() == 0
        assert page.title() == "Playground – embellama"
        directions = page.eval_on_selector_all(".token bdi", "all => all.map((e) => getComputedStyle(e).unicodeBidi)")
        assert {*directions} == {"isolate"}


def test_texts_come_from_files_that_are_dropped_or_picked_and_from_the_clipboard(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    files = {"lines.txt": b"one\r\n\r\ntwo\nthree", "no.bin": b"\xff\xfe\x00", "empty.txt": b" \n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with open_page(server, PATH) as page:
        told = page.locator("#playground .form").get_by_role("status").first
        for name, words in {
            "lines.txt": "3 texts",
            "no.bin": "no.bin is not a text in UTF-8",
            "empty.txt": "empty.txt has no line with a text",
        }.items():
            with page.expect_file_chooser() as chooser:
                page.get_by_role("button", name="Open a file …").click()
            chooser.value.set_files(tmp_path / name)
            expect(told).to_have_text(words)
        dropped = page.evaluate_handle(
            "() => { const data = new DataTransfer(); data.items.add(new File(['a\\nb'], 'two.txt')); return data; }"
        )
        area = page.locator("#playground textarea")
        area.dispatch_event("drop", {"dataTransfer": dropped})
        expect(told).to_have_text("2 texts")
        for key in ("Control+A", "Control+C", "End", "Enter", "Control+V"):
            area.press(key)
        expect(told).to_have_text("4 texts")


@pytest.mark.parametrize("texts", [HOSTILE, ["long " * 12_000 + "ß" * 40_000]], ids=["hostile", "long"])
def test_the_call_can_be_copied_and_gives_the_same_vectors(
    guarded: Server, keys: Keys, open_page: OpenPage, texts: list[str], tmp_path: Path
) -> None:
    body = {"model": "tiny", "input": texts, "truncate": "end", "dimensions": 3}
    headers = {"authorization": f"Bearer {keys['reader']}"}
    answer = httpx.post(f"{guarded.url}/v1/embeddings", json=body, headers=headers).json()
    with open_page(guarded, f"/below{PATH}") as page:
        page.get_by_label("Key", exact=True).fill(keys["reader"])
        page.keyboard.press("Enter")
        expect(page.get_by_label("Model").locator("option")).to_have_text(["tiny"])
        page.get_by_label("Too long").select_option("end")
        page.get_by_label("Dimensions").fill("3")
        fill(page, *texts)
        for language, run in {"curl": run_by_bash, "Python": run_by_python, "JavaScript": run_by_chromium}.items():
            page.get_by_label("Language").select_option(language)
            call = page.get_by_label("The call").text_content() or ""
            assert keys["reader"] not in call
            program = call.replace("YOUR_KEY", keys["reader"])
            assert program != call
            found = run(program, tmp_path, page)
            np.testing.assert_allclose(found, [item["embedding"] for item in answer["data"]], atol=1e-6)
        page.get_by_role("button", name="Copy").click()
        page.locator("#playground textarea").press("Control+A")
        page.keyboard.press("Control+V")
        assert page.locator("#playground textarea").input_value().strip() == call.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["program"]


def run_by_bash(program: str, folder: Path, _: Page) -> Any:
    (folder / "program").write_text(program)
    answer = json.loads(subprocess.check_output(["bash", "program"], cwd=folder, stderr=subprocess.DEVNULL))
    return [item["embedding"] for item in answer["data"]]


def run_by_python(program: str, folder: Path, _: Page) -> Any:
    (folder / "program").write_text(program)
    return json.loads(subprocess.check_output([sys.executable, "program"], cwd=folder))


def run_by_chromium(program: str, _: Path, page: Page) -> Any:
    return page.evaluate(
        f"async () => {{ let said; const console = {{ log: (x) => (said = x) }};\n{program}\nreturn said; }}"
    )


def test_what_the_server_refuses_is_said_in_its_words(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH, told=("400",)) as page:
        fill(page, "fine", "word " * 600)
        page.get_by_role("button", name="Embed").click()
        alert = page.locator("#playground").get_by_role("alert")
        expect(alert).to_contain_text("400: input[1] has 602 tokens; the limit is 512")
        expect(alert).to_contain_text(re.compile("Request [0-9a-f]{16}-[0-9a-f]+"))
        check_accessible(page)
        embed(page, "fine")
        expect(alert).to_have_count(0)


def test_a_key_that_has_no_more_left_is_told_so(guarded: Server, keys: Keys, open_page: OpenPage) -> None:
    with open_page(guarded, f"/below{PATH}", told=("429",)) as page:
        page.get_by_label("Key", exact=True).fill(keys["slow"])
        page.keyboard.press("Enter")
        expect(page.get_by_label("Model").locator("option")).to_have_text(["tiny"])
        for _ in range(2):
            fill(page, "red")
            page.get_by_role("button", name="Embed").click()
            page.get_by_role("button", name="Embed").wait_for()
        expect(page.locator("#playground").get_by_role("alert").first).to_contain_text("429: ")


def test_a_request_can_be_cancelled(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        open_file(page, *(f"{i} {'long ' * 400}" for i in range(60)))
        page.get_by_role("button", name="Embed").click()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#playground .form").get_by_role("status").last).to_have_text("Cancelled.")
        embed(page, "A cat sleeps.")


def test_fields_and_their_labels_stand_in_line(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        page.get_by_label("Too long").select_option("tokens")
        boxes = [field.bounding_box() for field in page.locator("#playground .form select, .form [type=number]").all()]
        spans = {(box["y"], box["height"]) for box in boxes[:6] if box}
        assert len(spans) == 1, spans


def test_it_is_done_by_keys_alone(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        page.locator("#playground textarea").focus()
        page.keyboard.type("A cat sleeps.")
        button = page.get_by_role("button", name="Embed")
        for _ in range(12):
            page.keyboard.press("Tab")
            if button.evaluate("(element) => element === document.activeElement"):
                break
        page.keyboard.press("Enter")
        expect(page.locator("#playground .answers > li")).to_have_count(1)
