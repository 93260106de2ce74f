"""Names that an earlier version used, and what they are called now.

Keys that a user types keep working for this version, and old run folders stay readable.
"""

# Configuration keys and groups by their dotted path; a prefix stands for all keys below it.
KEYS: dict[str, str] = {
    "model.replies": "model.cache",
    "pictures": "image_cache",
}
# Columns of metrics.csv.
METRICS: dict[str, str] = {}
