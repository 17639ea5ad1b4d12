"""The engine: blobs in frames in volumes, trees of blobs, snapshots of trees.

A *blob* is a piece of a file, or a record of a tree, named by a keyed hash of its bytes.  A *frame* is one blob or many small
ones, compressed and sealed together.  A *volume* is an immutable file of frames.  A *tree* is directories as blobs that
name blobs.  A *snapshot* is one sealed record that names a tree.  The *index* says where a blob lies; it is a cache of
what the volumes say and is never the only copy of anything.

Plain synchronous Python: nothing here knows a terminal, an event loop or a kernel, and nothing prints.
"""
