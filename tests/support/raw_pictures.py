"""Write PNG and TIFF files sample by sample, as no imaging library would."""

import struct
import zlib


def png(values, colour_type, *chunks, bits=16):
    """PNG of these samples (height x width x channels); ``chunks`` come before the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values, photometric, order="<", bits=None, planar=1, deflate=False, tags=()):
    """TIFF of one image, in strips of whole planes.

    Args:
        values: height x width, or height x width x channels.
        photometric: PhotometricInterpretation: 0 WhiteIsZero, 1 BlackIsZero, 2 RGB.
        order: ``<`` or ``>``.
        bits: 12 packs two samples in three bytes; by default those of the array's type.
        tags: further (tag, values), of type SHORT.
    """
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    planes = [values[..., k] for k in range(channels)] if planar == 2 else [values]
    if bits == 12:
        packed = ["".join(f"{v:012b}" for v in row.ravel()) for row in values]
        strips = [b"".join(int(r, 2).to_bytes(len(r) // 8, "big") for r in packed)]
    else:
        strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    offsets = [8 + sum(map(len, strips[:k])) for k in range(len(strips))]
    data = b"".join(strips)
    data += b"\0" * (len(data) % 2)
    entries = {
        256: [width],
        257: [height],
        258: [bits or 8 * values.itemsize] * channels,
        259: [8 if deflate else 1],
        262: [photometric],
        273: offsets,
        277: [channels],
        278: [height],
        279: list(map(len, strips)),
        284: [planar],
        339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels,
        **dict(tags),
    }
    start = 8 + len(data)
    behind = start + 2 + 12 * len(entries) + 4
    directory, far = struct.pack(order + "H", len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        field = struct.pack(order + letter * len(numbers), *numbers)
        if len(field) > 4:
            field, far = struct.pack(order + "I", behind + len(far)), far + field + b"\0" * (len(field) % 2)
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + field.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + data + directory + bytes(4) + far
