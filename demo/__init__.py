"""The demonstration that `make demo` runs: one virtual machine carried through the whole product.

It drives the installed commands (`vmfsctl`, `datarecovery`) and QEMU as a person would, and imports none of their
code: what it shows is what a user gets. Only the tiny guest that it boots comes from `appliance.tinyguest`.
"""
