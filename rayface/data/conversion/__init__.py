"""Convert sources of images to a dataset, by resumable tasks: list, read into sorted pieces, write shards."""
