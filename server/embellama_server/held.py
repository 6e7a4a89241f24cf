"""`HeldBytes`: limit the bytes held for all requests together, so that a flood cannot take the machine's memory."""

from embellama_server.state import ServerState


class HeldBytes:
    """Bytes that one request holds: its body, tokens, rows and reply. Released at the end of the `with` block."""

    def __init__(self, state: ServerState):
        self._state = state
        self._n_bytes = 0

    def add(self, n_bytes: int) -> None:
        """Count bytes that are held whatever the limit."""
        self._n_bytes += n_bytes
        self._state.n_held_bytes += n_bytes

    def reserve(self, n_bytes: int) -> None:
        """Count bytes, or raise `Overloaded` if all requests would hold too many; a lone one may hold any number."""
        total, most = self._state.n_held_bytes, self._state.config.queue_bytes
        if total > self._n_bytes and total + n_bytes > most:
            raise self._state.overloaded(f"{total} bytes of requests are held already; {most} are the most allowed")
        self.add(n_bytes)

    def __enter__(self) -> "HeldBytes":
        return self

    def __exit__(self, *_: object) -> None:
        self.add(-self._n_bytes)
