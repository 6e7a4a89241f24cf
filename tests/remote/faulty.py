"""A server of embeddings that fails by turns; a process of its own, on real sockets.

python -m tests.remote.faulty PORT LOG '{"turns": ["ok", "429 0.5", "reset"], …}'

Vectors follow from the texts alone. Each request for some is a line of LOG: when it came, with what, how it ended.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

DIM = 8


class Plan(msgspec.Struct):
    """How a server answers.

    Attributes:
        turns: For each request in turn, again and again: ``ok``; a status, with seconds for Retry-After; ``reset``,
            ``half``, ``silent``; ``garbage``, ``fewer``, ``shorter``: bodies of good answers that are none.
        model: Whose vectors.
        weights: The weights' hash that it tells; none without.
        key: The key that it wants.
        floats: Whether it does not know base64.
        prompts: For each answer in turn, the prompt that embellama's servers tell; none without.
        most: Texts in a request.
        delay_s: How long an answer takes.
    """

    turns: tuple[str, ...] = ("ok",)
    model: str = "m"
    weights: str | None = None
    prompts: tuple[str, ...] = ()
    key: str = ""
    floats: bool = False
    most: int = 2048
    delay_s: float = 0.0


class Reply(NamedTuple):
    """An answer: what follows the head, and how it may be cut."""

    status: int
    body: bytes
    headers: str = ""


def vector(text: str, model: str = "m") -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(f"{model} {text}".encode()).digest()[:8], "little")
    row = np.random.default_rng(seed).standard_normal(DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def n_tokens(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


class Faulty:
    def __init__(self, plan: Plan, log: str):
        self.plan = plan
        self.turns = itertools.cycle(plan.turns)
        self.prompts = itertools.cycle(plan.prompts)
        self.log = Path(log)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                came = time.monotonic()
                method, path, _ = head.decode().split(" ", 2)
                headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self.answer(method, path, headers, body, came, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, came: float, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request; return whether the connection goes on."""
        if self.plan.key and headers.get("authorization") != f"bearer {self.plan.key}":
            return await self.send(Reply(401, error(f"wrong key {headers.get('authorization')}")), writer)
        if method == "GET":
            entry = {"id": self.plan.model, "weights_sha256": self.plan.weights}
            return await self.send(Reply(200, json.dumps({"data": [entry]}).encode()), writer)
        asked = json.loads(body)
        turn, _, seconds = next(self.turns).partition(" ")
        with self.log.open("a") as log:
            log.write(json.dumps({"at": came, "texts": asked["input"], "turn": turn}) + "\n")
        if turn == "reset":
            writer.transport.abort()
            return False
        if turn == "silent":
            await asyncio.sleep(3600)
        await asyncio.sleep(self.plan.delay_s)
        if turn.isdigit():
            told = f"retry-after: {seconds}\r\n" if seconds else ""
            return await self.send(Reply(int(turn), error("not now"), told), writer)
        return await self.send(self.computed(asked, turn), writer, half=turn == "half")

    def computed(self, asked: dict[str, Any], turn: str) -> Reply:
        texts = asked["input"]
        if self.plan.floats and "encoding_format" in asked:
            return Reply(400, error("encoding_format is not known"))
        if len(texts) > self.plan.most:
            return Reply(413, error("too many texts"))
        for index, text in enumerate(texts):
            if "named" in text.split():
                return Reply(400, error(f"input[{index}] is bad", "bad_text"))
            if "unnamed" in text.split():
                return Reply(422, error("one of them is bad", "bad_text"))
            if "poison" in text.split():
                return Reply(500, error("it broke"))
        if turn == "garbage":
            return Reply(200, b'{"data": [{"embedding": [1, 2')
        data = [self.item(index, text, turn) for index, text in enumerate(texts)]
        usage = {"prompt_tokens": n_tokens(texts), "total_tokens": n_tokens(texts)}
        told = f"x-embellama-prompt: {next(self.prompts)}\r\n" if self.plan.prompts else ""
        return Reply(200, json.dumps({"data": data[turn == "fewer" :], "usage": usage}).encode(), told)

    def item(self, index: int, text: str, turn: str) -> dict[str, Any]:
        row = vector(text, self.plan.model)[turn == "shorter" :]
        embedding = row.tolist() if self.plan.floats else base64.b64encode(row.tobytes()).decode()
        return {"index": index, "embedding": embedding}

    async def send(self, reply: Reply, writer: asyncio.StreamWriter, *, half: bool = False) -> bool:
        head = f"HTTP/1.1 {reply.status} X\r\n{reply.headers}content-length: {len(reply.body)}\r\n\r\n"
        writer.write(head.encode() + reply.body[: len(reply.body) // 2 if half else None])
        await writer.drain()
        return not half


def error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


async def main(port: int, log: str, plan: str) -> None:
    faulty = Faulty(msgspec.json.decode(plan, type=Plan), log)
    server = await asyncio.start_server(faulty.serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
