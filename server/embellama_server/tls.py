"""The certificate that the server speaks TLS with, read again on SIGHUP.

files ── Certificate ──► an ssl.SSLContext ──► every connection that is made from then on
"""

import logging
import ssl

from embellama.errors import ConfigError

logger = logging.getLogger("embellama.server")


class Certificate:
    """A certificate and its key.

    Attributes:
        context: What connections are made with; it stays the same when the files are read again.
    """

    def __init__(self, cert: str, key: str):
        """Read PEM files; raises `ConfigError`, which names the file at fault."""
        self._cert, self._key = cert, key
        self.context = self._loaded()

    def renew(self) -> None:
        """Read the files again, for connections to come; if they are wrong, go on with what was read before."""
        try:
            self._loaded()  # a wrong key would leave the context in use with half of a pair
            self.context.load_cert_chain(self._cert, self._key, NO_PASSWORD)
        except (ConfigError, OSError) as error:
            logger.error("the certificate was not renewed, the old one goes on: %s", error)
        else:
            logger.info("the certificate was read again from %s", self._cert)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for name, path in (("tls_cert", self._cert), ("tls_key", self._key)):
            try:
                open(path, "rb").close()
            except OSError as error:  # OpenSSL does not say which of the two it is
                raise ConfigError(f"{name} is {path!r}: {error.strerror}") from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self._cert)
        except ssl.SSLError:
            raise ConfigError(f"tls_cert is {self._cert!r}: there is no certificate in it, in PEM form") from None
        try:
            context.load_cert_chain(self._cert, self._key, NO_PASSWORD)
        except ssl.SSLError as error:
            reason = f"it is not the key of {self._cert}, or not in PEM form, or has a password ({error.reason})"
            raise ConfigError(f"tls_key is {self._key!r}: {reason}") from None
        return context


# Without one, OpenSSL would ask for it on the terminal.
NO_PASSWORD = ""
