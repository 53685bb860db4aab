//! Tar shards of JPEGs to batches of the same view at two resolutions.
