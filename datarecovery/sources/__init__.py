"""The sources of disks (`datarecovery.source` is their contract). Stands on `vmfs` and `thin`, imported when needed."""
