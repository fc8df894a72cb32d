"""`vmfsctl dump`: a volume's structures as they lie on the disk, damaged ones too. Nothing is written or locked.

    structure    what is shown of one structure, and its form in JSON
    fields       each record of `vmfs.ondisk` as named fields
    decode       bytes to fields, by the parsers of `vmfs.ondisk`; of damaged bytes what can be told
    places       what the superblock says lies at an address
    fixed        superblock copies, slots, locks, groups, chunks, orphan lists, any block
    trees        inodes, their maps and layers, nodes, directories, and the way from a path to its inode
    journals     a slot's journal: headers, records, images

Stands on `vmfs.volume`, `vmfs.geometry`, `vmfs.liveness` and `vmfs.ondisk`.
"""
