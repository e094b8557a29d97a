"""What lies in a folder of ours: names, places, the record, how files are written, settings' numbers."""

from .files import folder_bytes, keep_sockets_short, read_json, whole_file, whole_folder, write_json
from .places import Release, StudyFolder, bundled_folder, cache_folder, default_model
from .record import Record
from .typed import RecordError

__all__ = [
    "Record",
    "RecordError",
    "Release",
    "StudyFolder",
    "bundled_folder",
    "cache_folder",
    "default_model",
    "folder_bytes",
    "keep_sockets_short",
    "read_json",
    "whole_file",
    "whole_folder",
    "write_json",
]
