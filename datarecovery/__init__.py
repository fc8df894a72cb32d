"""Agentless, deduplicating disk-to-disk backup. Stands on `vmfs` and `thin`; knows nothing of libvirt or a UI."""
