"""Tar shards of faces: format, conversion, drawing and streaming."""
