"""Bundles: variants, their code and figures, and the policy to choose among them, packed with their hashes."""

from edgescale.bundle.manifest import (
    BundleError,
    DatasetRecord,
    EntryRecord,
    Manifest,
    manifest_schema,
    write_manifest_schema,
)
from edgescale.bundle.pack import Context, Entry, check_destination, tool_versions, write_bundle
from edgescale.bundle.reader import Bundle, open_bundle

__all__ = [
    "Bundle",
    "BundleError",
    "Context",
    "DatasetRecord",
    "Entry",
    "EntryRecord",
    "Manifest",
    "check_destination",
    "manifest_schema",
    "open_bundle",
    "tool_versions",
    "write_bundle",
    "write_manifest_schema",
]
