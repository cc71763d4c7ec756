"""Datasets of images in tar shards: format, conversion, drawing and streaming."""
