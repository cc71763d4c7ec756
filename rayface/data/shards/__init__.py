"""Tar shards: the format, its members and samples, random access, scans."""
