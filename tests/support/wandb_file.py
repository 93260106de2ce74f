"""Read the file ``run-ID.wandb`` of a W&B run: protobuf records in LevelDB's log format."""

import struct

from wandb.proto.wandb_internal_pb2 import Record

# Bytes. A header holds checksum, length and part of a record: 1 whole, 2 first, 3 middle, 4 last.
BLOCK, HEADER = 32768, 7


def records(path):
    """Every record of the file, in order."""
    data, at, found, parts = path.read_bytes(), HEADER, [], []  # W&B's own header first
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # padding
            at += BLOCK - at % BLOCK
            continue
        _, length, part = struct.unpack("<IHB", data[at : at + HEADER])
        at += HEADER
        parts.append(data[at : at + length])
        at += length
        if part in (1, 4):
            found.append(Record.FromString(b"".join(parts)))
            parts = []
    return found
