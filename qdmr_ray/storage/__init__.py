"""Local paths and s3:// addresses alike: files, retries, claims."""

from qdmr_ray.storage.location import (
    ENDPOINT_VARIABLE,
    S3_SCHEME,
    TEMPORARY_PREFIX,
    Location,
    disk_error,
    open_location,
    write_file_atomic,
)
from qdmr_ray.storage.paths import AnyPath, StorePath, any_path, location_of
