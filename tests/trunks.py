"""Small trunks of the methods that have their own, for tests that go over all methods."""

TRUNKS = {
    "tada2d": {"depths": [1, 2, 1, 1], "dims": [8, 16, 32, 32, 48], "image_size": 32},
    "tadaconvnext": {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32], "image_size": 32},
}


def trunk_of(method: str, vit: dict) -> dict:
    """The method's own, or the transformer."""
    return TRUNKS.get(method, vit)
