"""Version of rayface, as recorded in the files that it writes."""

VERSION = "0.1.0"
