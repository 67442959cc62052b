"""Records under a builder's key: only his, and only as he left them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
from tiny import tiny_meta, written_engine

from tsss_edge.artifacts import Engine, ParityRecord
from tsss_edge.errors import ArtifactError
from tsss_edge.seals import write_sealed
from tsss_edge.signing import require_signed, sign_engine
from tsss_edge.stream.opening import require_gate

pytest.importorskip("cryptography")
FAILED = ParityRecord(
    passed=False, miou_reference=70.0, miou_engine=60.0, miou_drop=10.0, pixel_agreement=0.9, boundary_agreement=0.8,
    images=4, max_drop=0.5, data_sha256="0" * 64,
)  # fmt: skip


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_only_the_builders_signature_counts(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "builder")
    _, other = key_pair(tmp_path, "other")
    engine = written_engine(tmp_path / "e.xml", tiny_meta())
    with pytest.raises(ArtifactError, match="is not signed"):
        require_signed(engine, public)
    signed = sign_engine(engine, private)
    require_signed(Engine.load(signed.path), public)
    with pytest.raises(ArtifactError, match=r"not of other\.pub"):
        require_signed(Engine.load(signed.path), other)


def test_a_changed_record_loses_its_signature_and_a_forged_one_is_refused(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "builder")
    signed = sign_engine(written_engine(tmp_path / "e.xml", tiny_meta()).with_record(parity=FAILED), private)
    require_gate(signed.path, force=True, trusted_key=public)
    passed = msgspec.structs.replace(FAILED, passed=True)
    signed = Engine.load(signed.path)
    write_sealed(
        Engine.record_path(signed.path), msgspec.structs.replace(signed.record, parity=passed)
    )  # a fitting digest
    with pytest.raises(ArtifactError, match="the record was changed since"):
        require_gate(signed.path, force=False, trusted_key=public)
    assert not Engine.load(signed.path).with_record(parity=passed).record.signed


def test_what_is_no_key_is_told(tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "builder")
    engine = written_engine(tmp_path / "e.xml", tiny_meta())
    (tmp_path / "bad.key").write_text("hello")
    for key in (tmp_path / "bad.key", public, tmp_path / "absent.key"):
        with pytest.raises(ArtifactError, match=key.name):
            sign_engine(engine, key)


def test_keys_of_openssl_fit(tmp_path: Path) -> None:
    key = tmp_path / "k.key"
    try:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", tmp_path / "k.pub"], check=True)
    require_signed(sign_engine(written_engine(tmp_path / "e.xml", tiny_meta()), key), tmp_path / "k.pub")
