"""Settings of a small run, shared by the tests of the room."""

SMALL = {
    "data.image_size": 32,
    "backbone.name": "mini",
    "backbone.embedding_size": 64,
    "backbone.width": 0.5,
    "train.precision": "fp32",
}
