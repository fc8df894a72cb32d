"""The control plane, where everything is put together. Stands on every other package."""
