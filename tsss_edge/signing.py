"""A builder's key -> a name under an engine record (Ed25519), so that a fleet takes only engines that its builder proved.

Keys are PEM files as OpenSSL makes them: `openssl genpkey -algorithm ed25519 -out build.key`, and for the fleet
`openssl pkey -in build.key -pubout -out build.pub`. Signed are all fields of the record but its digest: the hashes of the
engine's files, the verdict of its gate, all.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tsss_edge.artifacts import Engine
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import decode_json, edge, read_bytes
from tsss_edge.seals import counted

PURPOSE = b"tsss-edge engine record\n"  # so that a signature of something else never fits


def sign_engine(engine: Engine, key: Path) -> Engine:
    """Sign the engine's record on disk with a private key. Raises: ArtifactError: no readable Ed25519 key without a password."""
    private, engine = (
        read_private(key),
        engine.with_record(),
    )  # so that the file holds every field that this version knows
    signature = base64.b64encode(private.sign(_message(engine))).decode()
    return engine.with_record(signature=signature)


def require_signed(engine: Engine, key: Path) -> None:
    """Raise ArtifactError unless the record carries the signature of this public key."""
    public = _read(key, "load_pem_public_key", "Ed25519PublicKey", "public key")
    if not engine.record.signature:
        raise ArtifactError(f"{engine.path}: its record is not signed; sign it with `tsss-edge parity --sign KEY`")
    if not _fits(public, engine):
        raise ArtifactError(
            f"{engine.path}: the signature in its record is not of {key.name}, or the record was changed since; take the "
            "engine from its builder again"
        )


def _fits(public: Any, engine: Engine) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(engine.record.signature, validate=True), _message(engine))
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(engine: Engine) -> bytes:
    path = Engine.record_path(engine.path)
    return PURPOSE + counted(decode_json(read_bytes(path, "record"), dict, path), without=("digest", "signature"))


def read_private(key: Path) -> Any:
    """A private key, before hours of work are signed with it. Raises: ArtifactError: as `sign_engine`."""
    return _read(key, "load_pem_private_key", "Ed25519PrivateKey", "private key", password=None)


def _read(key: Path, reader: str, kind: str, what: str, **options: Any) -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{error}; install it with `pip install 'tsss-edge[sign]'`") from error
    with edge(key, what, "make one with `openssl genpkey -algorithm ed25519`"):
        found = getattr(serialization, reader)(read_bytes(key, what), **options)
    if not isinstance(found, getattr(ed25519, kind)):
        raise ArtifactError(f"{key}: is no Ed25519 {what}; make one with `openssl genpkey -algorithm ed25519`")
    return found
