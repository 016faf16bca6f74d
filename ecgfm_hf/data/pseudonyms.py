"""Pseudonyms: salted hashes in place of ids, the same for the same id and salt, and no way back without the salt."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import pyarrow as pa

_BYTES = 12  # 24 hexadecimal digits: of a million ids, two share a pseudonym with a chance of 1e-17


def pseudonym(value: str | None, salt: bytes, kind: str) -> str | None:
    """The pseudonym of an id; `kind` keeps a patient and a recording of one number apart. None stays None."""
    if value is None:
        return None
    return hmac.new(salt, f"{kind}\0{value}".encode(), hashlib.sha256).digest()[:_BYTES].hex()


def read_salt(path: Path) -> bytes:
    """
    The salt in a file, which is made, readable by its owner alone, where there is none. Whoever has it can find out
    which pseudonym belongs to an id that they know.

    Raises:
        `ValueError`: fewer than 16 bytes.
    """
    if not path.exists():
        # Whole or not at all, and never in place of another: two machines that begin at once must have one salt.
        scratch = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(scratch, path)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    salt = path.read_bytes().strip()
    if len(salt) < 16:
        raise ValueError(f"{path}: {len(salt)} bytes of salt, expected at least 16 (or no file: it is made)")
    return salt


def pseudonymise_index(table: pa.Table, salt: bytes) -> pa.Table:
    """The index with pseudonyms, in their order: the order of the ids would tell which is which."""
    for name, kind in (("recording_id", "recording"), ("patient_id", "patient")):
        if name in table.column_names:
            values = [pseudonym(value, salt, kind) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table.sort_by("recording_id")
