"""The version of llmc, as the manifest of an artifact records it."""

VERSION = "0.1.0"
