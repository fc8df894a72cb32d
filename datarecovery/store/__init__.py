"""The deduplicating store: packs of records, an index, manifests, and the sessions that write them.

Stands on nothing but `datarecovery.errors`. Layout of a store's folder (formats in the modules named):

    store               configuration, feature words            config.py in the envelope of document.py
    packs/HHHHHH/N.pack records of chunks and of id pages        pack.py, record.py
    index/LO-HI.seg     where each chunk lies; can be rebuilt    segment.py, index.py
    points/VM/ID.point  manifests, one a restore point           manifest.py in the envelope of document.py
    sessions/           who writes now; in-flight ids            session.py, inflight.py
    tmp/                files on their way to their place; anything here of a dead session is rubbish

Order of durability of a backup (session.py): packs and their folders are fsynced, then the index segment is renamed
into place, then the manifest, and only then may a source move its changed-block baseline.
"""
