"""VMDK images: descriptors and flat extents, thin and extendable. Pure: stands on nobody in this project."""
